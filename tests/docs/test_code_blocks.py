"""Code of the documentation: Python runs, and command lines are read by the real parser against the real schema."""

import inspect
import shlex

import ml_collections
import pytest

from mmjax import cli
from mmjax.commands.common.options import parse_overrides, split_csv
from mmjax.commands.comparing.recipes import make_recipes
from mmjax.commands.comparing.runs import check, list_runs
from mmjax.config_file import load_config
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.data.open_source import OF_ANY_SOURCE
from mmjax.experiment import Experiment
from mmjax.generate.recipe import make_recipe
from support import documents
from support.documents import ROOT, Block

SHELL = ("bash", "sh", "shell", "console")
WRONG_MIXTURE = '{"name":"mix","sources":[{"name":"scenes","a":1}]}'
OF_A_COMPONENT = ("weight", "upsample", "title")  # of a mixture
OTHER_PROGRAMS = {
    "python3",
    "pip",
    "pytest",
    "ruff",
    "mypy",
    "sphinx-build",
    "pre-commit",
    "tensorboard",
    "clip_benchmark",
    ".ci/run",
    "launch/accelerator_report.sh",
    "source",
}
PLUGINS = (
    ("augment", "mmjax.augment", "Augmentation"),
    ("data.transforms", "mmjax.data.transforms", "Transform"),
)


def named(blocks):
    return pytest.mark.parametrize("block", blocks, ids=[block.name for block in blocks])


def test_every_block_says_its_language():
    assert not [b.name for page in documents.PAGES for b in documents.blocks(page, "")]


@named(documents.all_blocks("python"))
def test_python_runs(block):
    config = ml_collections.ConfigDict({"data": {}})
    names = {"config": config, "__name__": "mmjax.augment.example"}
    exec(compile(block.code, block.name, "exec"), names)
    if "get_config" in names:
        check_experiment(Experiment.from_dict(names["get_config"]().to_dict()))
    for section in config.data.get("source", {}).get("sources", ()):
        check_options("mmjax.data.sources", "Source", section["name"], set(section) - {"name", "weight", "upsample"})


@named(documents.all_blocks(*SHELL))
def test_command_lines_are_right(block, monkeypatch, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name, code in documents.saved_files(block.page).items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    lines = documents.commands(block)
    assert lines
    for words in lines:
        check_command(words)


def test_inline_commands_are_right(monkeypatch):
    monkeypatch.chdir(ROOT)
    for page in documents.PAGES:
        for code in documents.inline_code(page):
            if code.startswith(("mmjax ", ".venv/bin/")) and not set("…[") & set(code) and "COMMAND" not in code:
                words = shlex.split(code)
                if words[0] == "mmjax" and not any(word.startswith("--") for word in words):
                    check_name(words[1:])
                else:
                    for part in documents.commands(Block(page, "bash", code, 0)):
                        check_command(part)


@pytest.mark.parametrize(
    "line",
    [
        "mmjax trian --config=configs/quickstart.py --workdir=x",
        "mmjax train --config=configs/nothing.py --workdir=x",
        "mmjax train --config=configs/quickstart.py:augmint=none --workdir=x",
        "mmjax train --config=configs/quickstart.py --workdir=x --config.guard.bad_steps=3",
        "mmjax train --config=configs/scenes.py:augment=lemda --workdir=x --config.augment.lemda.weigth=1",
        "mmjax train --config=configs/quickstart.py --folder=x",
        """mmjax train --config=configs/scenes.py --workdir=x --config.data.train='{"world":"easy","sise":9}'""",
        f"mmjax train --config=scenes --workdir=x --config.data.train='{WRONG_MIXTURE}'",
        "mmjax compare --config=configs/scenes.py --workdir=x --variant='a:optimizer.rate=1'",
        "pytest tests/nowhere.py",
        "wget file",
    ],
)
def test_a_wrong_line_is_found(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ConfigError, SystemExit)):
        for words in documents.commands(Block(ROOT / "README.md", "bash", line, 0)):
            check_command(words)


def check_name(words):
    """Fails unless these words name a command or a group of commands."""
    with pytest.raises(SystemExit) as end:
        cli.make_parser().parse_args([*words, "--help"])
    assert end.value.code == 0, words


def check_command(words):
    program = words[0].removeprefix(".venv/bin/")
    if program != "mmjax":
        assert program in OTHER_PROGRAMS, f"{program}: not a program that the documentation uses"
        for word in words[1:]:
            if word.startswith(("tests/", "docs/", "configs/", "launch/")):
                assert (ROOT / word).exists(), f"{word}: no such file"
        return
    args, unknown = cli.make_parser().parse_known_args(words[1:])
    assert "run" in args, f"{' '.join(words)}: not a command"
    overrides = parse_overrides(unknown, args)
    spec = getattr(args, "config", None)
    if spec is None:
        return
    if args.command == "generate":
        make_recipe(load_config(spec, overrides, folder="generate"))
        return
    check_experiment(Experiment.from_dict(load_config(spec, overrides)))
    if args.command == "compare":
        recipes = make_recipes(
            spec,
            overrides,
            names=split_csv(args.recipes),
            file=args.recipes_file,
            variants=args.variant,
        )
        check(list_runs(recipes, seeds=[0]), metrics=split_csv(args.metrics))
        for recipe in recipes:
            check_experiment(recipe.experiment())


def check_experiment(experiment):
    for name, options in experiment.augment:
        check_options("mmjax.augment", "Augmentation", name, options)
    for name, options in experiment.data.transforms:
        check_options("mmjax.data.transforms", "Transform", name, options)
    data = experiment.data
    for further in ({}, data.train, data.evaluation):
        check_source(further if "name" in further else {**data.source, **further})
    objective = dict(experiment.objective)
    check_options("mmjax.objectives", "Objective", objective.pop("name"), objective)


def check_source(section):
    """Fails unless a source, and each of a mixture's, takes the options of its section."""
    options = {key: value for key, value in section.items() if key not in OF_ANY_SOURCE}
    check_options("mmjax.data.sources", "Source", options.pop("name"), options)
    for component in options.get("sources", ()):
        check_source({key: value for key, value in component.items() if key not in OF_A_COMPONENT})


def check_options(folder, attribute, name, options):
    """Fails unless a plug-in's constructor takes these options."""
    plugin = getattr(plugins.load(folder, name, path=folder), attribute)
    known = inspect.signature(plugin.__init__).parameters
    assert set(options) <= set(known), f"{name}: no option {set(options) - set(known)}"
