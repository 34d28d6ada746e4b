"""Jobs: phases, kills, resuming, errors of single items, and what is refused."""

import itertools
import os
import signal
import warnings

import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from mmjax.generate.blocks import caption as caption_block
from mmjax.generate.inputs import Inputs
from mmjax.generate.job import Job, phases
from mmjax.generate.recipe import make_recipe
from mmjax.generate.stages import StageRunner
from support import generating
from support.pictures import encoded, photograph

ORACLES = {"captioner": {"name": "scenes", "error": 0.2}, "scorer": {"name": "scenes"}}
STAGES = (("caption", {"n": 2}), ("score", {}), ("caption_mix", {"fraction": 0.3}))
TWO_PHASES = (*STAGES[:2], ("caption_mix", {"fraction": 0.5}), ("caption", {"source": "detail"}), ("score", {}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Outputs that nothing interrupted, by their stages."""
    folder = tmp_path_factory.mktemp("whole")
    made = {}
    for name, stages in (("deciding", STAGES), ("two", TWO_PHASES)):
        job = generating.make_job(folder / name, stages, ORACLES)
        made[name] = (stages, generating.run(job), generating.content(folder / name))
    return made


def test_phases_are_split_at_global_blocks_and_what_only_decides_comes_last():
    recipe = {name: make_recipe({"stages": s, "models": ORACLES}) for name, s in (("a", STAGES), ("b", TWO_PHASES))}
    assert phases(recipe["a"]) == ([[0, 1]], [[2]])
    assert phases(recipe["b"]) == ([[0, 1], [2, 3, 4]], [])
    only = make_recipe({"stages": STAGES[2:], "models": {}})
    assert phases(only) == ([[]], [[0]])


def test_records_keep_their_order_and_say_where_captions_come_from(whole):
    _, records, files = whole["deciding"]
    assert [record.id for record in records] == [str(number) for number in range(24)]
    assert {name.partition("-")[0] for name in files} == {"records", "generate.json"}
    for record in records:
        assert record.image is not None and record.size == (32, 32) and record.split == "train"
        for made in record.captions:
            if made["source"] == "raw":
                assert "by" not in made
                continue
            entry = record.provenance[made["by"]]
            assert entry["model"] == "scenes.captioner" and entry["block"] == "caption" and entry["seed"] > 0
    assert any(record.keep for record in records) and not all(record.keep for record in records)


def test_what_is_kept_trains(whole, tmp_path):
    job = generating.make_job(tmp_path / "out", STAGES, ORACLES)
    records = generating.run(job)
    source = open_source({"name": "generated", "path": str(tmp_path / "out")}, split="train")
    kept = [record for record in records if record.keep]
    assert len(source) == len(kept)
    for number, record in enumerate(kept):
        assert source[number]["captions"] == [c["text"] for c in record.captions if c["weight"]]
        assert source[number]["image"] == record.image


@pytest.mark.parametrize("name", ["deciding", "two"])
@pytest.mark.parametrize("keys", [{"batch_size": 1}, {"batch_size": 8}])
def test_batches_do_not_change_what_is_made(whole, tmp_path, name, keys):
    stages, _, files = whole[name]
    generating.run(generating.make_job(tmp_path / "out", stages, ORACLES, **keys))
    assert generating.content(tmp_path / "out") == files


def killed(job, moment):
    """Runs the job in a child that kills itself when it names the file of that number; whether it did."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking beside jax's threads, which the child does not use
        child = os.fork()
    if child == 0:
        replace, calls = os.replace, iter(range(1, 1000))

        def kill_or_replace(*names):
            number = next(calls)
            if number == moment[0] and moment[1] == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*names)
            if number == moment[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = kill_or_replace
        try:
            generating.run(job)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("name", ["deciding", "two"])
def test_a_killed_run_goes_on_with_the_same_bytes(whole, tmp_path, name):
    stages, _, files = whole[name]
    for moment in [(1, "after"), (2, "before"), (4, "after"), (5, "before"), (6, "after"), (8, "before")]:
        output = tmp_path / f"{moment[0]}-{moment[1]}"
        made = generating.make_job(output, stages, ORACLES)
        assert killed(made, moment), moment
        generating.run(generating.make_job(output, stages, ORACLES))
        assert generating.content(output) == files, moment
        assert not (output / ".work").exists()


def test_a_complete_output_asks_no_model(whole, tmp_path, monkeypatch):
    job = generating.make_job(tmp_path / "out", STAGES, ORACLES)
    first = generating.run(job)
    monkeypatch.setattr(caption_block.Block, "__call__", None)
    assert generating.run(generating.make_job(tmp_path / "out", STAGES, ORACLES)) == first


def test_another_question_is_refused_and_names_the_difference(tmp_path):
    generating.run(generating.make_job(tmp_path / "out", STAGES, ORACLES, limit=3))
    other = (("caption", {"n": 3}), *STAGES[1:])
    with pytest.raises(ConfigError, match=r"--output=.*begun with stages.0.caption=\{'n': 2\}, now it is .*'n': 3"):
        generating.run(generating.make_job(tmp_path / "out", other, ORACLES, limit=3))
    with pytest.raises(ConfigError, match="examples=3, now it is examples=4"):
        generating.run(generating.make_job(tmp_path / "out", STAGES, ORACLES, limit=4))


@pytest.mark.parametrize("split", ["test", "zeroshot", "winoground"])
def test_splits_for_tests_are_refused(tmp_path, split):
    with pytest.raises(ConfigError, match=f"--split={split}: .*use train"):
        generating.make_job(tmp_path, STAGES, ORACLES, splits=("train", split))


def test_several_splits_stay_apart(tmp_path):
    stages = (*STAGES[:1], ("score", {}))
    records = generating.run(generating.make_job(tmp_path / "out", stages, ORACLES, splits=("train", "val"), limit=5))
    assert [record.split for record in records] == ["train"] * 5 + ["val"] * 5
    assert len({record.id for record in records}) == 10
    assert len(open_source({"name": "generated", "path": str(tmp_path / "out")}, split="val")) == 5


def test_draws_differ_by_record_draw_stage_and_seed():
    seeds = set()
    for seed in (0, 1):
        recipe = make_recipe({"stages": STAGES, "models": ORACLES, "seed": seed})
        runner = StageRunner(recipe, Inputs(generating.SCENES, splits=("train",)))
        for stage, name, draw in itertools.product((0, 1), ("1", "2"), ((), (0,), (1,))):
            seeds.add(runner.tools(stage).seed(generating.record(id=name), *draw))
    assert len(seeds) == 24 and all(0 <= seed < 1 << 32 for seed in seeds)


def test_an_item_that_fails_is_dropped_with_its_reason_and_the_others_are_not(tmp_path, monkeypatch):
    call = caption_block.Block.__call__

    def fails(block, records, tools):
        if any(record.id in ("4", "9") for record in records):
            raise RuntimeError("out of luck")
        return call(block, records, tools)

    expected = generating.run(generating.make_job(tmp_path / "a", STAGES[:2], ORACLES))
    monkeypatch.setattr(caption_block.Block, "__call__", fails)
    records = generating.run(generating.make_job(tmp_path / "b", STAGES[:2], ORACLES))
    assert [record.id for record in records if not record.keep] == ["4", "9"]
    assert records[4].reason == "caption: RuntimeError: out of luck"
    assert [r for r in records if r.keep] == [r for r in expected if r.id not in ("4", "9")]
    # Nor do they count where a stage decides by all records: half of 22 keep their raw captions.
    mix = ("caption_mix", {"fraction": 0.5, "filtered": False})
    mixed = generating.run(generating.make_job(tmp_path / "c", (*STAGES[:2], mix), ORACLES))
    assert sum(r.keep and any(c["weight"] > 0 and c["source"] == "raw" for c in r.captions) for r in mixed) == 11


def test_pictures_that_cannot_be_read_are_dropped_with_their_reason(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\nthere.png,a dog\nmissing.png,a cat\n")
    (tmp_path / "there.png").write_bytes(encoded(photograph(8, 8), "PNG"))
    source = {"name": "tables", "path": str(tmp_path / "t.csv")}
    recipe = make_recipe({"stages": STAGES[:1], "models": {"captioner": ORACLES["captioner"]}})
    there, missing = generating.run(Job(recipe, Inputs(source, splits=("train",)), tmp_path / "out", {}))
    assert there.reason == "caption: the picture has no scene graph; the backend scenes needs data of the source scenes"
    assert not missing.keep and "missing file" in missing.reason and missing.image is None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"stages": ()}, r"stages=\(\): the recipe has none"),
        ({"stages": (("captoin", {}),)}, "stages.captoin.name='captoin': no such name; did you mean 'caption'"),
        ({"stages": (("caption", {"m": 1}),)}, "stages.caption.m=1: unknown key"),
        ({"stages": (("caption", {"n": 0}),)}, "stages.caption.n=0: must be at least 1"),
        ({"stages": ("caption",)}, r"stages\[0\]='caption': expected"),
        ({"stages": STAGES[:1], "models": {}}, "models.captioner is missing: 'caption' asks a Captioner"),
        ({"stages": STAGES[:1], "models": ORACLES}, "models='scorer': no such name"),
        ({"stages": STAGES[:1], "models": {"captioner": {"name": "scene"}}}, "models.captioner.name='scene'"),
        (
            {"stages": STAGES[:1], "models": {"captioner": {"name": "scenes", "error": 2}}},
            "models.captioner.error=2.0: must be between 0 and 1",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line(sections, message):
    with pytest.raises(ConfigError, match=message):
        make_recipe(sections)
