"""Run folders, checkpoints and tokenizers of strangers: they can be wrong, they cannot run code or fell the machine."""

import ast
import builtins
import json
from pathlib import Path

import jax.numpy as jnp
import pytest

import mmjax
from mmjax.checkpoints import location
from mmjax.checkpoints.manager import Checkpoints
from mmjax.commands import inspect
from mmjax.core.config import ConfigError
from mmjax.core.state import TrainState
from mmjax.data import tokenizer
from mmjax.experiment import Experiment
from mmjax.runs import folder as run_folder
from support import tiny

PACKAGE = Path(mmjax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))

UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}
RUNS = {"eval", "exec", "compile", "__import__"}
MAY_RUN_FILES = {"experiment.py"}  # what --config names, and nothing else


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

        open_split(experiment.data, "train")
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
