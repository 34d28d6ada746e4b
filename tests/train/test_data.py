"""From the sections of an experiment to what training and evaluation see of pictures."""

import json

import numpy as np
import pytest

from mmjax import config_file
from mmjax.commands.common.split_inspector import SplitInspector
from mmjax.core.config import ConfigError
from mmjax.data.transforms import rewrites
from mmjax.experiment import Experiment
from mmjax.train import data as train_data
from mmjax.train.evaluation import make_evaluation
from mmjax.train.setup import setup
from support import archives, tiny
from support.pictures import encoded, photograph


def open_view(experiment, split):
    return train_data.open_eval_split(experiment, split)


def test_pixels_of_another_size_are_brought_to_the_models_in_evaluation_too():
    experiment = tiny.experiment(
        data__source={"name": "scenes", "world": "easy", "image_size": 48},
        data__transforms=(("random_resized_crop", {}),),
    )
    resolved = setup(experiment)
    assert resolved.source[0]["image"].shape == (48, 48, 3)
    assert resolved.make_batches().shapes == {"image": (32, 32, 3)}
    view = open_view(experiment, "val")
    assert view[0]["image"].shape == (32, 32, 3) and len(view) == 1000 and view[0]["captions"]
    plain = tiny.experiment()
    assert open_view(plain, "val")[0]["image"].shape == (32, 32, 3)


def test_a_fraction_of_the_training_split_alone_is_kept():
    experiment = tiny.experiment(data__fraction=0.26)
    assert len(train_data.open_split(experiment, "train")) == 12  # of 48
    assert len(train_data.open_split(experiment, "val")) == len(train_data.open_split(tiny.experiment(), "val"))
    assert len(SplitInspector(experiment, "train").source) == 12
    with pytest.raises(ConfigError, match=r"^data\.fraction=0\.02: leaves none of the 48 .* set it to 0\.04 or more"):
        train_data.open_split(tiny.experiment(data__fraction=0.02), "train")
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"data\.fraction"):
            tiny.experiment(data__fraction=wrong)


@pytest.fixture
def folder(tmp_path):
    items = [(f"{i:03d}", encoded(photograph(40, 48, seed=i)), [f"picture {i}"]) for i in range(16)]
    archives.write_webdataset(tmp_path / "tars", items)
    rows = [{"key": f"00000.tar/{key}", "caption": "a rewritten caption"} for key, _, _ in items]
    (tmp_path / "rewrites.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_encoded_pictures_are_cropped_after_their_captions_are_chosen_and_tables_are_read_once(folder, monkeypatch):
    opened = []
    read = rewrites.lookup.Texts
    monkeypatch.setattr(rewrites.lookup, "Texts", lambda pairs: (opened.append(1), read(pairs))[1])
    data = {
        "source": {"name": "webdataset", "path": str(folder / "tars" / "*.tar")},
        "transforms": (("rewrites", {"paths": (str(folder / "rewrites.jsonl"),)}), ("flip", {})),
        "tokenizer": {"name": "word"},
    }
    resolved = setup(tiny.experiment(data=data))
    batches = resolved.make_batches()
    assert len(opened) == 1
    assert batches[0]["images"]["image"].shape == (16, 32, 32, 3)
    inspector = SplitInspector(resolved.experiment, "train")
    assert inspector.train_transforms.names == ["rewrites", "random_resized_crop", "flip"]


def test_how_evaluation_brings_pictures_to_size_is_the_models_way_or_the_named_one(folder):
    """A wide picture: its centre, all of it squashed, or all of it with bars."""
    data = {"source": {"name": "webdataset", "path": str(folder / "tars" / "*.tar")}, "tokenizer": {"name": "word"}}
    views = {
        mode: open_view(tiny.experiment(data=data | {"preprocess": section}), "train")[0]["image"]
        for mode, section in (
            ("own", None), ("shortest", {"mode": "shortest"}), ("squash", {"name": "resize_crop", "mode": "squash"}),
            ("longest", {"mode": "longest"}),
        )
    }  # fmt: skip
    assert all(view.shape == (32, 32, 3) for view in views.values())
    assert (views["own"] == views["shortest"]).all()
    assert not (views["shortest"] == views["squash"]).all()
    assert not views["longest"][:2].any() and views["squash"][:2].any()  # bars above and below
    wrong = tiny.experiment(data=data | {"preprocess": {"name": "flip"}})
    with pytest.raises(ConfigError, match=r"data\.preprocess\.name='flip'.*resize_crop"):
        open_view(wrong, "train")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"workers": 0, "threads": 1}),  # pixels need no decoding
        ({"threads": 3}, {"workers": 0, "threads": 3}),
        ({"workers": 2, "threads": 4, "prefetch": 5}, {"workers": 2, "threads": 4, "prefetch": 5}),
        ({"autotune": True}, {"workers": 7, "threads": 9}),
    ],
)
def test_the_stream_is_read_as_the_configuration_says(monkeypatch, options, expected):
    asked = {}

    class Made:
        decodes = False

        def stream(self, **how):
            asked.update(how)

    monkeypatch.setattr(train_data.autotune, "tune", lambda batches, *, cores: (7, 9))
    experiment = tiny.experiment(**{f"data__{name}": value for name, value in options.items()})
    train_data.stream_batches(train_data.tune(experiment.data, Made()), Made(), start_step=4)
    assert asked["start_step"] == 4 and expected.items() <= asked.items()


def test_a_transforms_option_is_overridden_by_name(tmp_path):
    (tmp_path / "config.py").write_text(tiny.CONFIG_FILE)
    overrides = [
        ("data.transforms", "(('flip', {}), ('mixgen', {'variant': 'a'}))"),
        ("data.transforms.mixgen.variant", "e"),
        ("data.transforms.flip.horizontal", "0.25"),
    ]
    sections = config_file.load_config(str(tmp_path / "config.py"), overrides)
    assert sections["data"]["transforms"] == (("flip", {"horizontal": 0.25}), ("mixgen", {"variant": "e"}))
    with pytest.raises(ConfigError, match=r"data\.transforms\.mixgenn\.variant=e.*'mixgen'"):
        config_file.load_config(str(tmp_path / "config.py"), [*overrides[:1], ("data.transforms.mixgenn.variant", "e")])


@pytest.mark.parametrize("name", ["word", "bpe"])
def test_where_nothing_can_be_read_the_first_reason_is_the_error_not_a_vocabulary_of_nothing(tmp_path, name):
    (tmp_path / "cat").mkdir()
    for number in range(3):
        (tmp_path / "cat" / f"{number}.png").touch()
    source = {"name": "folders", "path": str(tmp_path)}
    experiment = tiny.experiment(data={"source": source, "tokenizer": {"name": name, "vocab_size": 300}})
    with pytest.raises(ConfigError, match=r"first examples.*the first one: cat/0\.png: empty image"):
        setup(experiment)


def test_transparent_pictures_are_put_on_the_background_in_training_and_evaluation(tmp_path):
    clear = encoded(np.zeros((40, 40, 4), np.uint8), "PNG")
    archives.write_folder(tmp_path, [(f"{i}", clear, ["clear"]) for i in range(16)], extension="png", texts=True)
    data = {"source": {"name": "folders", "path": str(tmp_path)}, "tokenizer": {"name": "word"}}
    for background, color in ((None, (255, 255, 255)), ("#010203", (1, 2, 3))):
        experiment = tiny.experiment(data=data | ({} if background is None else {"background": background}))
        assert (setup(experiment).make_batches()[0]["images"]["image"] == color).all()
        assert (open_view(experiment, "train")[0]["image"] == color).all()
    for background, message in (("keep", "the model has no channel"), ("pale", "not a color")):
        with pytest.raises(ConfigError, match=rf"data\.background='{background}': {message}"):
            setup(tiny.experiment(data=data | {"background": background}))


@pytest.fixture
def tables(tmp_path):
    for name in ("train", "val", "style"):
        (tmp_path / f"{name}.png").write_bytes(encoded(photograph(40, 48), "PNG"))
        (tmp_path / f"{name}.csv").write_text(f"filepath,title\n{name}.png,a picture of {name}\n")
    return tmp_path


def test_a_table_answers_only_for_the_split_that_it_was_given_for(tables):
    source = {"name": "tables", "path": str(tables / "train.csv")}
    data = {"source": source, "evaluation": {"path": str(tables / "val.csv")}}
    experiment = tiny.experiment(data=data)
    assert open_view(experiment, "val")[0]["captions"] == ["a picture of val"]
    assert open_view(experiment, "train")[0]["captions"] == ["a picture of train"]
    with pytest.raises(ConfigError, match=r"split='style': data\.evaluation has no splits .* for 'val' .*{split}"):
        open_view(experiment, "style")
    with pytest.raises(ConfigError, match=r"split='val': data\.source is the training data; set data\.evaluation"):
        open_view(tiny.experiment(data={"source": source}), "val")
    by_name = tiny.experiment(data={"source": {"name": "auto", "path": str(tables / "{split}.csv")}})
    assert open_view(by_name, "style")[0]["captions"] == ["a picture of style"]
    with pytest.raises(ConfigError, match=r"split='tset': .* no such split; there are style, train, val"):
        open_view(by_name, "tset")


def test_a_run_says_how_many_words_of_the_validation_are_unknown(tmp_path):
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for split, words in (("train", ["a red cat", "a red dog"]), ("val", ["a red cat", "ein roter Hund"])):
        rows = "".join(f"a.png,{caption}\n" for caption in words * 8)
        (tmp_path / f"{split}.csv").write_text(f"image,caption\n{rows}")
    source = {"name": "tables", "path": str(tmp_path / "{split}.csv")}
    sections = tiny.sections(data__source=source, data__train={}, data__transforms=(("resize_crop", {}),), batch_size=8)
    lines = "\n".join(setup(Experiment.from_dict(sections)).advice())
    assert "50% of the words of 'val' are unknown" in lines and "data.tokenizer.name=bpe" in lines
    sections["data"]["tokenizer"] = {"name": "bpe", "vocab_size": 300}
    assert "unknown" not in "\n".join(setup(Experiment.from_dict(sections)).advice())
    del sections["data"]["tokenizer"]
    (tmp_path / "val.csv").unlink()
    sections["eval"] |= {"tasks": (), "final_tasks": ()}
    assert "unknown" not in "\n".join(setup(Experiment.from_dict(sections)).advice())


def test_views_of_their_own_need_only_the_first_one_at_evaluation(tables):
    (tables / "both.csv").write_text("filepath,title,depth\ntrain.png,a,style.png\n")
    (tables / "one.csv").write_text("filepath,title\nval.png,b\n")
    data = {
        "source": {"name": "tables", "path": str(tables / "both.csv")},
        "evaluation": {"path": str(tables / "one.csv")},
        "modalities": ("image", "depth"),
    }
    assert set(open_view(tiny.experiment(data=data), "val")[0]) >= {"image", "captions"}
    with pytest.raises(ConfigError, match=r"modalities='depth': .*one.csv.* no such column"):
        open_view(tiny.experiment(data=data, model__vision_cfg__fusion="channels"), "val")


def test_zero_shot_classifies_a_named_split_if_there_is_none_for_it(tables, caplog):
    rows = "".join(f"{name}.png,{name},{name}\n" for name in ("train", "val", "style"))
    (tables / "all.csv").write_text(f"filepath,class,split\n{rows}")
    source = {"name": "tables", "path": str(tables / "all.csv"), "label_column": "class", "split_column": "split"}
    source["class_names"] = ("val", "train", "style", "none of them")
    sections = {"tasks": (), "final_tasks": ("zeroshot",), "final_splits": ("style", "val")}
    experiment = setup(tiny.experiment(data={"source": source}, eval=sections, batch_size=8))
    caplog.set_level("INFO")
    evaluation = make_evaluation(experiment.experiment, experiment.program, experiment.tokenizer)
    evaluation.open()
    assert len(evaluation.evaluator("zeroshot", "style").class_names) == 4
    assert "zeroshot is measured on 'style' (split='zeroshot': " in caplog.text
    with pytest.raises(ConfigError, match=r"split='zeroshot'.* no such split.*; split='nope'.* no such split"):
        evaluation.evaluator("zeroshot", "nope")


def make(experiment):
    resolved = setup(experiment)
    return make_evaluation(resolved.experiment, resolved.program, resolved.tokenizer)


def test_evaluators_take_their_options_from_the_configuration_by_name():
    evaluation = make(tiny.experiment(eval__options={"retrieval": {"folds": 5, "max_captions": 2}}))
    evaluator = evaluation.evaluator("retrieval", "val")
    assert (evaluator.folds, evaluator.max_captions) == (5, 2)
    for options, message in (
        ({"retrieval": {"fold": 5}}, r"eval.options.retrieval.fold=5: unknown key; did you mean 'folds'\?"),
        ({"retrieval": {"folds": 0}}, r"eval.options.retrieval.folds=0: must lie between 1 and"),
        ({"retrieval": {"folds": "5"}}, r"eval.options.retrieval.folds='5': expected int"),
        ({"retrieval": {"split": "test"}}, r"eval.options.retrieval.split='test': .* eval.final_splits; set these"),
        ({"retrieval": {"source": {"name": "nope"}}}, r"eval.options.retrieval.source.name='nope': no such name"),
        ({"retrieved": {}}, r"eval.options='retrieved': no such name; did you mean 'retrieval'"),
    ):
        with pytest.raises(ConfigError, match=message):
            make(tiny.experiment(eval__options=options)).open()


def test_an_evaluator_can_be_of_other_data_than_the_experiment(tables):
    table = {"name": "tables", "path": str(tables / "style.csv")}
    evaluation = make(tiny.experiment(eval__options={"retrieval": {"source": table}}))
    split = evaluation.evaluator("retrieval", "val").split
    assert len(split.source) == 1 and split.source[0]["image"].shape == (32, 32, 3)  # as the model sees pictures
    assert evaluation.evaluator("retrieval", "test").split.source[0]["captions"] == split.source[0]["captions"]
    smaller = make(tiny.experiment(eval__options={"retrieval": {"source": {"size": 7}}}))
    assert len(smaller.evaluator("retrieval", "val").split.source) == 7
