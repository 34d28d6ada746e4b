"""Every recipe that ships keeps the promises of records: order, batches, provenance and splits."""

import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.config_file import load_config, shipped_configs
from mmjax.core import plugins
from mmjax.generate import block
from mmjax.generate.inputs import Inputs
from mmjax.generate.job import phases
from mmjax.generate.recipe import make_recipe
from mmjax.generate.summary import forecast
from support import generating

NAMES = sorted(shipped_configs("generate"))
SIZE = 6


def recipe(name, folder):
    """A recipe's sections; styles are two plain pictures."""
    if name != "style":
        return load_config(name, folder="generate")
    (folder / "styles").mkdir(exist_ok=True)
    for value in (40, 200):
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(folder / "styles" / f"{value}.png")
    return load_config(f"style:styles={folder / 'styles'}", folder="generate")


def made(output, name, **keys):
    sections = recipe(name, output.parent)
    splits = ("train", "val") if name == "t_sciq" else ("train",)
    keys = {key: value for key, value in sections.items() if key not in ("stages", "models")} | keys
    job = generating.make_job(
        output, sections["stages"], sections["models"], source={"size": SIZE}, splits=splits, **keys
    )
    return job, generating.run(pickle.loads(pickle.dumps(job)))


@pytest.mark.parametrize("name", NAMES)
def test_batches_change_nothing_and_all_that_was_made_says_by_what(tmp_path, name):
    job, records = made(tmp_path / "a", name, batch_size=4, shard=4)
    made(tmp_path / "b", name, batch_size=1, shard=4)
    assert generating.content(tmp_path / "a") == generating.content(tmp_path / "b")
    by_id = {one.id: one for one in records}
    assert len(by_id) == len(records)
    originals = [one for one in records if not one.parent_id]
    assert [one.index for one in originals] == list(range(len(job.inputs)))
    for one in records:
        assert one.image is not None and bool(one.reason) != one.keep
        if one.parent_id:
            assert one.split == by_id[one.parent_id].split and one.index == by_id[one.parent_id].index
        for made_text in [c for c in one.captions if c["source"] != "raw"] + [n for n in one.negatives if "by" in n]:
            entry = one.provenance[made_text["by"]]
            assert entry["model"] and entry["revision"] and entry["block"] and {"seed", "prompt_sha"} <= entry.keys()
        for negative in one.negatives:
            assert negative["text"] != one.captions[negative["of"]]["text"]
        assert set(one.neg_image_ids) <= by_id.keys()


@pytest.mark.parametrize("name", NAMES)
def test_forecasts_are_upper_bounds_and_models_of_the_hub_are_named(tmp_path, name):
    checked = make_recipe(recipe(name, tmp_path))
    result = forecast(checked, SIZE)
    assert set(result["requests"]) == set(checked.models) and all(n > 0 for n in result["requests"].values())
    content, deciding = phases(checked)
    assert sorted(n for group in (*content, *deciding) for n in group) == list(range(len(checked.blocks)))


@pytest.mark.parametrize("name", plugins.names(block.FOLDER))
def test_a_block_says_what_it_is(name):
    cls = plugins.load_class(block.FOLDER, "Block", name, path="stages")
    assert issubclass(cls, block.Block) and cls.__doc__


def test_inputs_keep_what_a_recipe_made_before(tmp_path):
    _, records = made(tmp_path / "a", "laclip")
    inputs = Inputs({"name": "generated", "path": str(tmp_path / "a")}, splits=("train",))
    for number, one in enumerate(records):
        again = inputs.record(number)
        assert again.captions == one.captions and again.provenance == one.provenance and again.id == one.id
