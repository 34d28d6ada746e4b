"""Plug-ins and commands of another package: by entry point, by dotted name, and what goes wrong."""

import json
import os
import subprocess
import sys

import pytest

from mmjax.config_file import load_config
from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.experiment import Experiment
from mmjax.runs.metrics_file import read_metrics
from support import command

FILES = {
    "my_package/__init__.py": "",
    "my_package/my_mix.py": '''
"""Steps away from another pair."""

import jax.numpy as jnp
from flax import nnx

from mmjax.augment.common import base, schedules
from mmjax.augment.common.mixing import flipped


class Augmentation(base.Base):
    """Extrapolation by a learned factor."""

    tap = "pooled"

    def __init__(self, *, weight: schedules.Strength = 1.0, strength: float = 0.25):
        super().__init__(weight=weight)
        self.strength = strength
        self.factor = nnx.Param(jnp.ones(()))

    def augment(self, clean, *, key, step):
        pairs, strength = clean.pairs(), self.strength * self.factor[...]
        image, text = ((h + strength * (h - flipped(h))).astype(h.dtype) for h in (pairs.image, pairs.text))
        return base.Augmented(views=[base.View(image=image, text=text)], metrics={"strength": strength})
''',
    "my_package/readers.py": '''
from mmjax.data.sources import scenes


class MyScenes(scenes.Source):
    """Scenes under another name."""


Source = MyScenes
''',
    "my_package/count.py": '''
"""Count the examples of a source.

Prints one number.
"""

from mmjax.commands.common import data_source


def add_arguments(parser):
    data_source.add_source(parser)


def run(args):
    print(len(data_source.open_source(args)[0]))
    return 0
''',
    "my_package/broken.py": "raise RuntimeError('no luck')\n",
    "my_package/needy.py": "import not_there_either\n",
    "my_package-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n",
    "my_package-1.0.dist-info/entry_points.txt": """
[mmjax.augment]
my_mix = my_package.my_mix
twice = my_package.my_mix
m2mix = my_package.broken

[mmjax.sources]
my_scenes = my_package.readers:MyScenes

[mmjax.evals]
gone = my_package.gone

[mmjax.commands]
count_examples = my_package.count
broken = my_package.broken
""",
    "rival-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: rival\nVersion: 1.0\n",
    "rival-1.0.dist-info/entry_points.txt": "[mmjax.augment]\ntwice = my_package.broken\n",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed packages, as pip leaves it."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def installed(site, monkeypatch):
    monkeypatch.syspath_prepend(site)
    plugins._entry_points.cache_clear()
    yield
    plugins._entry_points.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def run(site, *words, status=0):
    environment = command.environment()
    environment["PYTHONPATH"] += f"{os.pathsep}{site}"
    done = subprocess.run(
        [sys.executable, "-m", "mmjax", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_a_run_with_another_packages_augmentations_and_source(site, tmp_path):
    run(
        site, "train", f"--config={command.config_file(tmp_path)}", f"--workdir={tmp_path / 'run'}", "--config.steps=2",
        "--config.data.source.name=my_package.readers",
        "--config.augment=(('my_mix', {}), ('my_package.my_mix', {}))",
        "--config.augment.my_mix.strength=0.5",
        "--config.augment.my_package.my_mix.strength=0.125", "--config.eval.tasks=()", "--config.eval.final_tasks=()",
    )  # fmt: skip
    lines = [line for line in read_metrics(tmp_path / "run") if "augment/my_mix/strength" in line]
    assert lines[0]["augment/my_mix/strength"] == 0.5
    first, second = (line["augment/my_package.my_mix/strength"] for line in lines)
    assert first == 0.125 != second  # its factor is trained
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["data"]["source"]["name"] == "my_package.readers"


def test_another_packages_command_and_a_source_by_entry_point(site):
    done = run(site, "count_examples", "--source=my_scenes", "--option", "world=easy", "--option", "size=24")
    assert done.stdout.strip() == "24"
    # A command that cannot be imported stops no other.
    assert done.stderr.startswith(
        "mmjax: command='broken': my_package.broken cannot be imported (RuntimeError: no luck)"
    )
    shown = run(site, "--help").stdout
    assert "count the examples of a source" in shown and "train a model" in shown and " broken" not in shown
    assert "Prints one number." in run(site, "count_examples", "--help").stdout


def test_mmjaxs_own_plugins_come_first(installed):
    assert {"my_mix", "m2mix", "twice"} <= set(plugins.names("mmjax.augment"))
    assert plugins.load("mmjax.augment", "m2mix", path="p").__name__ == "mmjax.augment.m2mix"
    assert plugins.load_class("mmjax.data.sources", "Source", "my_scenes", path="p").__name__ == "MyScenes"


@pytest.mark.parametrize(
    ("folder", "attribute", "name", "message"),
    [
        ("augment", "Augmentation", "my_mx", "p='my_mx': no such name; did you mean 'my_mix'?"),
        ("augment", "Augmentation", "twice", "p='twice': several installed packages have it; write one of my_package."),
        ("augment", "Augmentation", "no_package.my_mix",
         "p='no_package.my_mix': there is no module no_package; install its package or put its folder on PYTHONPATH"),
        ("augment", "Augmentation", "my_package.my_mx", "p='my_package.my_mx': there is no module my_package.my_mx; "),
        ("augment", "Augmentation", "my_package.count",
         "p='my_package.count': the module my_package.count has no class Augmentation; define it there, as "),
        ("augment", "Augmentation", "my_package.broken",
         "p='my_package.broken': my_package.broken cannot be imported (RuntimeError: no luck)"),
        ("augment", "Augmentation", "my_package.needy",
         "p='my_package.needy': my_package.needy cannot be imported (No module named 'not_there_either')"),
        ("augment", "Augmentation", "my_package.", "p='my_package.': no such name"),
        ("augment", "Augmentation", "../my_package", "p='../my_package': no such name"),
        ("evals", "Evaluator", "gone", "p='gone': there is no module my_package.gone; "),
    ],
)  # fmt: skip
def test_errors_name_the_key_and_the_way_out(installed, folder, attribute, name, message):
    with pytest.raises(ConfigError) as caught:
        plugins.load_class(f"mmjax.{folder}", attribute, name, path="p")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["augment", "data.transforms", "eval.tasks"])
def test_an_experiment_is_refused_where_its_plugin_is_not_there(installed, key, tmp_path):
    value = "('nowhere.to_be',)" if key == "eval.tasks" else "(('nowhere.to_be', {}),)"
    with pytest.raises(ConfigError, match=rf"^{key}='nowhere\.to_be': there is no module nowhere"):
        Experiment.from_dict(load_config(str(command.config_file(tmp_path)), [(key, value)]))
