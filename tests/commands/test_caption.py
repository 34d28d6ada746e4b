"""``mmjax caption``: a table of captions that ``mmjax.load`` would write, continued after a stop."""

import functools
import json

import jax
import numpy as np
import pyarrow.csv
import pytest
from flax import nnx

import mmjax
from mmjax import cli
from mmjax.core.state import flatten
from mmjax.data.tokenizer import load as load_tokenizer
from mmjax.inference.shards import ShardFolder
from mmjax.models.clip import Clip
from mmjax.models.config import ClipConfig, TextConfig, VisionConfig, with_tokenizer
from mmjax.models.joint_config import DecoderConfig
from mmjax.weights.export.folders import Exported, write_open_clip
from support import pictures
from support.models_in_use import CAPTIONS

COUNT, BROKEN = 11, 4
TOWER = {"width": 16, "layers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CoCa of random weights in open_clip's layout."""
    folder = tmp_path_factory.mktemp("coca")
    tokenizer = load_tokenizer("word", context_length=8, captions=CAPTIONS)
    tokenizer.save(folder / "tokenizer")
    pooler = {"attentional_pool": "shared", "attn_pooler_queries": 4, "attn_pooler_heads": 2}
    config = ClipConfig(
        embed_dim=16,
        vision_cfg=VisionConfig(**TOWER, image_size=32, patch_size=8, head_width=8, **pooler),
        text_cfg=TextConfig(
            **TOWER, context_length=8, heads=2, vocab_size=None, embed_cls=True, final_ln_after_pool=True
        ),
        decoder=DecoderConfig(width=16, heads=2, layers=1),
    )
    config = with_tokenizer(config, tokenizer)
    params = flatten(nnx.to_pure_dict(nnx.state(Clip(config, rngs=nnx.Rngs(0)))))
    random = np.random.default_rng(0)
    params = {path: np.asarray(random.normal(0, 0.3, x.shape), np.float32) for path, x in params.items()}
    model = Exported(config=config, params=params, tokenizer=folder / "tokenizer", card="", recipe={})
    write_open_clip(model, folder)
    return folder


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i in range(COUNT):
        content = pictures.encoded(pictures.photograph(40, 32 + 3 * i, seed=i))
        (folder / f"{i:02}.jpg").write_bytes(b"no picture" if i == BROKEN else content)
    return folder


def run(model, photographs, out, *more):
    flags = [f"--model={model}", f"--path={photographs}", f"--output={out}", "--batch-size=8", "--shard-rows=4"]
    return cli.main(["caption", *flags, "--max-unreadable=0.2", *more])


def test_captions_are_those_of_mmjax_load_and_a_stopped_command_goes_on(model, photographs, tmp_path, monkeypatch):
    writes, write = [], ShardFolder.write

    def recorded(self, number, files, *, process=0, stop=True):
        if stop and writes:
            raise KeyboardInterrupt
        writes.append(number)
        write(self, number, files, process=process)

    monkeypatch.setattr(ShardFolder, "write", recorded)
    assert run(model, photographs, tmp_path / "c.csv") != 0 and writes == [0]
    monkeypatch.setattr(ShardFolder, "write", functools.partialmethod(recorded, stop=False))
    assert run(model, photographs, tmp_path / "c.csv") == 0
    assert sorted(writes) == [0, 1, 2]  # the first shard was not made again
    table = pyarrow.csv.read_csv(tmp_path / "c.csv").to_pydict()
    loaded = mmjax.load(model, devices=jax.devices()[:1], batch_size=8)
    paths = [path for i, path in enumerate(sorted(photographs.iterdir())) if i != BROKEN]
    assert table["caption"] == loaded.caption(paths) and set(table["number"]) == {0}
    assert max(table["log_probability"]) < 0 and len(set(table["log_probability"])) == COUNT - 1
    assert json.loads((tmp_path / "c.csv.unreadable.jsonl").read_text())["key"].endswith(f"{BROKEN:02}.jpg")
    assert not (tmp_path / ".c.csv.shards").exists()


def test_several_are_drawn_and_flags_that_do_nothing_are_refused(model, photographs, tmp_path, capsys):
    assert run(model, photographs, tmp_path / "c.jsonl", "--method=sample", "--count=3", "--top-p=0.9") == 0
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * (COUNT - 1) and [row["number"] for row in rows[:4]] == [0, 1, 2, 0]
    assert run(model, photographs, tmp_path / "d.jsonl", "--top-k=3") != 0
    assert "--top-k=3: is for method='sample'" in capsys.readouterr().err
    assert run(model, photographs, tmp_path / "d.jsonl", "--method=beam", "--length-penalty=-1") != 0
    assert "--length-penalty=-1.0: must be at least 0" in capsys.readouterr().err
    assert run(model, photographs, tmp_path / "c.jsonl", "--method=sample", "--count=2") != 0
    assert "was begun with count=3" in capsys.readouterr().err
