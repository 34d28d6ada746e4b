"""``mmjax embed``: from a folder of pictures to embeddings, through kills, and with several processes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmjax
from mmjax import cli
from mmjax.inference.embedding_store import open_store
from support import command, models_in_use, pictures, processes

COUNT = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models_in_use.write(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures without captions, the fourth broken."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(COUNT):
        content = pictures.encoded(pictures.photograph(40, 32 + i, seed=i))
        (root / f"{i:02}.jpg").write_bytes(b"no picture" if i == 3 else content)
    return root


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flags(model, folder, out, *more):
    return ["embed", f"--model={model}", f"--path={folder}", f"--output={out}", "--batch-size=8", *more]


def test_a_folder_of_pictures(tmp_path, model, folder, capsys, monkeypatch):
    out = tmp_path / "out"
    assert cli.main(flags(model, folder, out, "--json")) == 1  # one of 40 is more than 1 %
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["images"] == summary["examples"] == COUNT - 1 and summary["unreadable"] == {"corrupt image": 1}
    assert "2.50% of the examples were left out" in printed.err and "example 40/40" in printed.err
    [entry] = map(json.loads, (out / "unreadable.jsonl").read_text().splitlines())
    assert entry["key"] == "03.jpg" and entry["reason"] == "corrupt image"
    store = open_store(out)
    assert store.paths == [f"{i:02}.jpg" for i in range(COUNT) if i != 3]
    expected = mmjax.load(model, batch_size=8).encode_image([folder / path for path in store.paths])
    np.testing.assert_allclose(store.embeddings, expected, atol=1e-6)
    before = content(out)
    monkeypatch.chdir(folder)  # a relative path is the same data
    assert cli.main(flags(model, ".", out, "--max-unreadable=0.1")) == 0
    assert content(out) == before
    assert "39 images in 16 dimensions, 1 shards; 1 unreadable (corrupt image 1)" in capsys.readouterr().out
    table = tmp_path / "neighbors.parquet"
    assert cli.main(["neighbors", f"--in={out}", f"--output={table}", "--count=4"]) == 0
    assert "4 neighbors of each of 39 examples" in capsys.readouterr().out
    rows = pq.read_table(table).to_pylist()
    assert [row["key"] for row in rows] == store.paths and rows[3]["index"] == 4
    cosines = store.embeddings @ store.embeddings[3] - 2 * (np.arange(39) == 3)
    assert rows[3]["neighbors"] == np.argsort(-cosines)[:4].tolist()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size=0"], "--batch-size=0: must be at least 1"),
        (["--kind=text"], "neither captions beside them"),
        (["--path=/nowhere"], "nowhere"),
        (["--model=/nowhere"], "nowhere"),
        (["--output=/dev/null"], "is not a folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, model, folder, capsys, more, message):
    assert cli.main([*flags(model, folder, tmp_path / "out"), *more]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_without_data_the_model_must_be_a_run(tmp_path, model, capsys):
    assert cli.main(["embed", f"--model={model}", f"--output={tmp_path / 'out'}"]) == 2
    assert "--path: is missing, and" in capsys.readouterr().err


@pytest.mark.slow
def test_kills_and_several_processes_change_no_byte(tmp_path, model, folder):
    more = ("--shard-rows=8", "--max-unreadable=1")
    command.run(*flags(model, folder, tmp_path / "whole", *more))
    expected = content(tmp_path / "whole")
    killed = tmp_path / "killed"
    process = command.start(*flags(model, folder, killed, *more))
    while process.poll() is None and not (killed / "images-00000-of-00005.parquet").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    command.run(*flags(model, folder, killed, *more))
    assert content(killed) == expected

    shared = tmp_path / "shared"
    given = command.environment(MMJAX_COORDINATOR=f"127.0.0.1:{processes.free_port()}", MMJAX_PROCESSES="2")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "mmjax", *flags(model, folder, shared, *more)],
            env=given | {"MMJAX_PROCESS": str(index), "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    outputs = processes.outputs(started)
    assert [process.returncode for process in started] == [0, 0], outputs
    assert {name: data for name, data in content(shared).items() if name != ".lock-1"} == expected
    assert os.path.getsize(shared / ".lock-1") == 0 and "39 images" in outputs[0] and "images in" not in outputs[1]
