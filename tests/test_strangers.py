"""Run folders, checkpoints and tokenizers of strangers: they can be wrong, they cannot run code or fell the machine."""

import ast
import builtins
import json
import os
from pathlib import Path

import jax.numpy as jnp
import pytest

import mmjax
from mmjax.checkpoints import location
from mmjax.checkpoints.manager import Checkpoints
from mmjax.checkpoints.orbax_errors import DamagedCheckpoint
from mmjax.commands import inspect
from mmjax.core.config import ConfigError
from mmjax.core.state import TrainState
from mmjax.data import tokenizer
from mmjax.experiment import Experiment
from mmjax.runs import folder as run_folder
from mmjax.runs.jsonl import read_jsonl
from support import tiny

PACKAGE = Path(mmjax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
RUNS = {"eval", "exec", "compile", "__import__"}
MAY_RUN_FILES = {"config_file.py"}  # what --config names, and nothing else


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_unpickles_or_runs_text(path):
    tree = ast.parse(path.read_text())
    name = str(path.relative_to(PACKAGE))
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & UNPICKLES
    assert "runpy" not in imported or name in MAY_RUN_FILES
    for node, function, keywords in calls(tree):
        where = f"{name}:{node.lineno}: {function}"
        assert function not in RUNS, where
        assert keywords.get("allow_pickle", "False") == "False", where
        assert keywords.get("trust_remote_code", "False") == "False", where
        assert keywords.get("shell", "False") == "False" and function not in ("os.system", "os.popen"), where
        if function.endswith(("np.load", "numpy.load")):
            assert keywords.get("allow_pickle") == "False", where
        if function.endswith(".from_pretrained"):
            assert keywords.get("trust_remote_code") == "False", where


def test_the_walk_would_see_them():
    assert len(MODULES) > 150 and hasattr(builtins, "exec")
    seen = [function for _, function, _ in calls(ast.parse("exec(text)\nnp.load(path)\nx.from_pretrained(name)"))]
    assert seen == ["exec", "np.load", "x.from_pretrained"]


def test_a_tokenizer_folder_with_code_is_refused_without_asking(tmp_path, monkeypatch):
    def asked(*_):
        raise AssertionError("asked whether to run it")

    monkeypatch.setattr(builtins, "input", asked)
    ran = tmp_path / "ran"
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Evil: pass\n")
    (folder / "config.json").write_text('{"model_type": "custom", "auto_map": {"AutoConfig": "evil.Evil"}}')
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", null]}}'
    )
    with pytest.raises(ConfigError, match="cannot be loaded"):
        tokenizer.load(str(folder), context_length=8)
    assert not ran.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"augment": [["../../evil", {}]]},
        {"augment": [["os", {}]]},
        {"eval": {"tasks": ["..retrieval"]}},
        {"objective": {"name": "contrastive.__class__"}},
        {"data": {"source": {"name": "os.path"}, "tokenizer": {"name": "word"}}},
        {"model": "__import__('os').system('true')"},
    ],
)
def test_names_in_a_config_name_only_what_mmjax_has(tmp_path, change):
    with run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        pass
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ConfigError):
        experiment = Experiment.from_dict(run_folder.read_config(tmp_path))
        from mmjax.train.data import open_split
        from mmjax.train.program import Program

        open_split(experiment, "train")
        Program(experiment)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(location, "_DELETION_SECONDS", 0.0)


def forged(folder, arrays):
    """A checkpoint whose params are what a stranger wrote by hand: names with their shapes, and no content."""
    state = TrainState(step=jnp.int32(1), params={"w": jnp.ones(3)}, opt_state=(), ema_params=None)
    checkpoints = Checkpoints(folder)
    checkpoints.save(state, step=1)
    checkpoints.close()
    params = folder / "checkpoints" / "1" / "params"
    for path in sorted(params.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    value = {"value_type": "jax.Array", "skip_deserialize": False}
    tree = {f"({n!r},)": {"key_metadata": [{"key": n, "key_type": 2}], "value_metadata": value} for n in arrays}
    (params / "_METADATA").write_text(
        json.dumps({"tree_metadata": tree, "use_ocdbt": False, "use_zarr3": False, "custom_metadata": None})
    )
    zarr = {"compressor": None, "fill_value": None, "filters": None, "order": "C", "zarr_format": 2}
    for name, (dtype, shape) in arrays.items():
        (params / name).mkdir(parents=True, exist_ok=True)
        claim = zarr | {"dtype": dtype, "shape": shape, "chunks": shape, "dimension_separator": "."}
        (params / name / ".zarray").write_text(json.dumps(claim))


@pytest.mark.parametrize("arrays", [{"w": ("<f4", [1 << 40])}, {f"w{i}": ("<f4", [1 << 32]) for i in range(64)}])
def test_enormous_claims_are_an_error_and_not_a_dead_machine(tmp_path, arrays):
    forged(tmp_path, arrays)
    with pytest.raises(ConfigError, match="GiB of memory"):
        inspect.summarize(tmp_path)


def test_objects_in_an_array_are_refused(tmp_path):
    forged(tmp_path, {"w": ("|O", [3])})
    with pytest.raises(ConfigError, match="damaged"):
        inspect.summarize(tmp_path)


def test_names_that_lead_out_of_a_checkpoint_write_nothing_there(tmp_path):
    run = tmp_path / "run"
    forged(run, {"../../../../outside": ("<f4", [3])})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="damaged"):
        inspect.summarize(run)
    assert sorted(tmp_path.rglob("*")) == before


def pipe(path):
    path.unlink()
    os.mkfifo(path)


STRANGE = {
    "a list": lambda path: path.write_text("[1, 2]"),
    "a number": lambda path: path.write_text("7"),
    "nested deeply": lambda path: path.write_text('{"a": ' * 800 + "1" + "}" * 800),
    "nested very deeply": lambda path: path.write_text("[" * 100_000),
    "a pipe": pipe,
    "without end": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "huge": lambda path: os.truncate(path, 1 << 40),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_configuration_that_is_anything_else_is_one_line(tmp_path, kind):
    with run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        pass
    (tmp_path / "starts.jsonl").unlink()
    STRANGE[kind](tmp_path / "config.json")
    with pytest.raises(ConfigError, match=r"config\.json is damaged \(.*\); restore it"):
        run_folder.read_config(tmp_path)
    with pytest.raises(ConfigError), run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        pass


@pytest.mark.parametrize("section", [7, [], {"directory": 7}, {"directory": ["a"]}])
def test_a_section_that_is_anything_else_is_named(tmp_path, section):
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint": section}))
    with pytest.raises(ConfigError, match=r"^checkpoint(\.directory)?=.*expected"):
        run_folder.checkpoint_directory(tmp_path)


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_is_anything_else_is_one_line(tmp_path, kind, name):
    tokenizer.load("word", context_length=8, captions=["a red cat"]).save(tmp_path)
    STRANGE[kind](tmp_path / name)
    with pytest.raises(ConfigError, match=r"^tokenizer='.*'.*(is not a regular file|cannot be read)"):
        tokenizer.load(str(tmp_path), context_length=8)


@pytest.mark.parametrize(
    "specials",
    [3, [], {}, {"bos": 1, "eos": "<eos>", "pad": "<pad>"}, {"bos": None, "eos": None, "pad": "x"}, {"eos": "<eos>"}],
)
def test_special_tokens_of_other_types_are_one_line(tmp_path, specials):
    tokenizer.load("word", context_length=8, captions=["a red cat"]).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mmjax": specials}))
    with pytest.raises(ConfigError, match=r"tokenizer_config.json cannot be read \(mmjax.*\); save it again"):
        tokenizer.load(str(tmp_path), context_length=8)


def test_a_vocabulary_without_its_unknown_token_is_found_when_it_is_loaded(tmp_path):
    tokenizer.load("word", context_length=8, captions=["a red cat"]).save(tmp_path)
    stored = json.loads((tmp_path / "tokenizer.json").read_text())
    stored["added_tokens"] = [token for token in stored["added_tokens"] if token["content"] != "<unk>"]
    del stored["model"]["vocab"]["<unk>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="cannot be read"):
        tokenizer.load(str(tmp_path), context_length=8)


@pytest.mark.parametrize("name", ["metrics.jsonl", "starts.jsonl", "times.jsonl"])
def test_a_pipe_in_a_run_folder_is_neither_waited_for_nor_written(tmp_path, name):
    with run_folder.claim(tmp_path, tiny.experiment(), overrides=[]):
        pass
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    assert list(read_jsonl(tmp_path / name)) == []
    with (
        pytest.raises(ConfigError, match=f"{name} is not a regular file"),
        run_folder.claim(tmp_path, tiny.experiment(), overrides=[]),
    ):
        pass


@pytest.mark.parametrize(
    "path", ["params/_METADATA", "manifest/metadata", "_CHECKPOINT_METADATA", "params/manifest.ocdbt"]
)
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tmp_path, path):
    forged(tmp_path, {"w": ("<f4", [3])})
    path = tmp_path / "checkpoints" / "1" / path
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="is not a regular file"):
        inspect.summarize(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "7", '"x"', "[" * 100_000])
def test_a_description_of_a_checkpoint_that_is_anything_else_is_one_line(tmp_path, text):
    forged(tmp_path, {"w": ("<f4", [3])})
    (tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA").write_text(text)
    with pytest.raises(ConfigError, match=r"cannot be opened \(.*\); move it away"):
        inspect.summarize(tmp_path)


@pytest.mark.parametrize(
    "change", [{"metrics": [1]}, {"metrics": {"m": "high"}}, {"checksums": 3}, {"checksums": {"params": [None]}}]
)
def test_a_manifest_of_other_types_is_damage(tmp_path, change):
    forged(tmp_path, {"w": ("<f4", [3])})
    path = tmp_path / "checkpoints" / "1" / "manifest" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DamagedCheckpoint):
        Checkpoints(tmp_path, read_only=True)._reader(1).read_manifest()
