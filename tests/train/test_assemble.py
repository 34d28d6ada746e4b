"""From the sections of an experiment to what training and evaluation see of pictures."""

import json

import pytest

from mmjax.data.transforms import rewrites
from mmjax.train import assemble
from support import archives, tiny
from support.pictures import encoded, photograph


def chained(experiment):
    source = assemble.open_source(experiment.data, "train")
    tokens = assemble.open_tokenizer(experiment, source, workdir="nowhere")
    experiment = assemble.with_data(experiment, source, tokens)
    return experiment, source, tokens


def test_pixels_of_another_size_are_brought_to_the_models_in_evaluation_too():
    experiment = tiny.experiment(
        data__source={"name": "scenes", "world": "easy", "image_size": 48},
        data__transforms=(("random_resized_crop", {}),),
    )
    experiment, source, tokens = chained(experiment)
    assert source[0]["image"].shape == (48, 48, 3)
    assert assemble.rows(experiment, source, tokens).shapes == {"image": (32, 32, 3)}
    view = assemble.open_view(experiment, "val")
    assert view[0]["image"].shape == (32, 32, 3) and len(view) == 1000 and view[0]["captions"]
    plain = tiny.experiment()
    assert assemble.open_view(plain, "val")[0]["image"].shape == (32, 32, 3)


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
    experiment, source, tokens = chained(tiny.experiment(data=data))
    rows = assemble.rows(experiment, source, tokens)
    assert len(opened) == 1
    assert rows[0]["images"]["image"].shape == (16, 32, 32, 3)
    assert assemble.training_chain(experiment, source, tokens).names == ["rewrites", "random_resized_crop", "flip"]
