"""The run folder's own files: claimed once, known from the last start where they are damaged, and never half there."""

import json
import os
import shutil

import pytest

from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
from mmjax.core.config import ConfigError
from mmjax.core.locks import find_owner
from mmjax.data import tokenizer
from mmjax.runs import folder as run_folder
from support import disks, tiny


def claim(workdir, **overrides):
    with run_folder.claim(workdir, tiny.experiment(**overrides), overrides=[]) as claimed:
        return claimed.augmentation_changes


DAMAGE = {
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "no text": lambda p: p.write_bytes(b"\xff\xfe\x00" * 9),
    "no section": lambda p: p.write_text("[1, 2]\n"),
    "endless": lambda p: p.write_text("[" * 100_000),
    "gone": lambda p: p.unlink(),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_config_is_known_from_the_last_start_and_written_anew(tmp_path, messages, kind):
    claim(tmp_path)
    whole = (tmp_path / "config.json").read_bytes()
    DAMAGE[kind](tmp_path / "config.json")
    assert run_folder.read_config(tmp_path) == json.loads(whole)
    (line,) = messages
    assert "config.json" in line and "starts.jsonl" in line and len(line) < 400
    with pytest.raises(ConfigError, match=r"another experiment.*batch_size: 16 there, 32 now"):
        claim(tmp_path, batch_size=32)
    claim(tmp_path)
    assert (tmp_path / "config.json").read_bytes() == whole


def test_where_nothing_says_what_it_was_it_is_an_error(tmp_path):
    claim(tmp_path)
    (tmp_path / "starts.jsonl").write_text('{"config": 3}\n{"conf')
    DAMAGE["half"](tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"config.json is damaged .*restore it or start from scratch"):
        claim(tmp_path)


def test_a_torn_line_of_starts_hides_no_other(tmp_path):
    claim(tmp_path)
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write('{"command": ["mmj')
    claim(tmp_path)
    lines = (tmp_path / "starts.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[0])["config"] == json.loads(lines[2])["config"]


class Torn:
    """A tokenizer whose folder is torn by a kill, and later one that is not."""

    def __init__(self, killed):
        self.killed = killed

    def save(self, folder):
        folder.mkdir(parents=True)
        (folder / "tokenizer.json").write_text("{")
        if self.killed:
            raise KeyboardInterrupt
        (folder / "tokenizer_config.json").write_text("{}")


def test_the_tokenizer_is_there_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_folder.save_tokenizer(Torn(True), tmp_path)
    assert not (tmp_path / "tokenizer").exists()
    run_folder.save_tokenizer(Torn(False), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer"]
    assert len(list((tmp_path / "tokenizer").iterdir())) == 2
    run_folder.save_tokenizer(Torn(True), tmp_path)  # is there already


@pytest.fixture
def read_only(tmp_path):
    folder = tmp_path / "disk"
    if os.geteuid() != 0:
        folder.mkdir(mode=0o500)
        yield folder
        folder.chmod(0o700)
        return
    with disks.mounted(folder, size="64k", read_only=True):  # root may write whatever the permissions are
        yield folder


def test_a_read_only_folder_is_one_line_at_the_start(read_only):
    for workdir in (read_only, read_only / "new"):
        with pytest.raises(ConfigError, match=rf"--workdir={workdir}: cannot be written to \(.+\); .*another folder"):
            claim(workdir)


def test_the_start_before_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(run_folder.os, "replace", full)
    with pytest.raises(ConfigError, match=r"cannot be written to \(No space left on device\)"):
        claim(tmp_path)


def test_a_folder_deleted_during_a_run_is_written_again_and_another_run_in_it_is_an_error(tmp_path, messages):
    workdir, words = tmp_path / "run", tokenizer.load("word", context_length=8, captions=["a red cat"])
    with run_folder.claim(workdir, tiny.experiment(), overrides=["a=1"], tokenizer=words) as claim:
        before = sorted(p.name for p in workdir.rglob("*"))
        claim.restore()
        assert not messages
        shutil.rmtree(workdir)
        claim.restore()
        assert sorted(p.name for p in workdir.rglob("*")) == before and "was deleted" in messages[0]
        assert json.loads((workdir / "starts.jsonl").read_text())["overrides"] == ["a=1"]
        assert find_owner(workdir / run_folder.LOCK).startswith(f"{os.getpid()} on ")
        shutil.rmtree(workdir)
        workdir.write_text("")  # nothing can be made there
        claim.restore()
        with pytest.raises(CheckpointNotSaved, match=r"was deleted and cannot be written again \(File exists\)"):
            claim.restore(required=True)
        workdir.unlink()
        workdir.mkdir()
        (workdir / run_folder.LOCK).write_text("77 on elsewhere")
        with pytest.raises(CheckpointNotSaved, match="process 77 on elsewhere is training there now"):
            claim.restore()


def test_a_start_after_one_that_ended_without_a_word_names_memory(tmp_path, messages):
    with run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        pass
    with pytest.raises(KeyError), run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        raise KeyError
    with run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        assert not messages  # both ended in good order
        killed = (tmp_path / run_folder.LOCK).read_bytes()
    (tmp_path / run_folder.LOCK).write_bytes(killed)
    claim(tmp_path)
    assert "ended without a word" in messages[0] and "memory" in messages[0] and f"{os.getpid()} on" in messages[0]
    claim(tmp_path)
    assert len(messages) == 1
