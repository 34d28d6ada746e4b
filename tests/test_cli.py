"""What a user sees when something is wrong: one line that names it, status 2, and nothing left behind."""

import shutil
import subprocess
import sys

import pytest

from mmjax import cli
from mmjax.core.config import ConfigError
from support import command

BROKEN_FILE = "def get_config(arg=''):\n    return {'steps': 1 / 0}\n"

RULES = "optimizer.learning_rate_multipliers"

MISTAKES = {
    "wrong key": (["--config.optimizer.learning_rat=1"], ["optimizer.learning_rat", "learning_rate"]),
    "wrong top-level key": (["--config.stepz=1"], ["stepz", "steps"]),
    "wrong key of a plug-in": (["--config.objective.target=identity"], ["objective.target", "targets"]),
    "wrong key of the source": (["--config.data.source.wrld=easy"], ["data.source.wrld", "world"]),
    "wrong key of the training data": (["--config.data.train.twin=True"], ["data.train.twin", "twins"]),
    "wrong key of the model": (["--config.model.vision_cfg.widht=8"], ["model.vision_cfg.widht", "width"]),
    "wrong type": (["--config.batch_size=many"], ["batch_size='many'", "int"]),
    "a float where an integer belongs": (["--config.steps=1.5"], ["steps=1.5", "int"]),
    "an empty section": (["--config.optimizer={}"], ["optimizer", "empty", "learning_rate"]),
    "an empty plug-in section": (["--config.objective={}"], ["objective", "empty", "contrastive"]),
    "a value for a section": (["--config.optimizer=adam"], ["optimizer=adam", "is a section", "learning_rate"]),
    "a key below a value": (["--config.steps.all=1"], ["steps.all=1", "not a section"]),
    "a batch that does not divide": (["--config.batch_size=12"], ["batch_size=12", "8 devices", "16"]),
    "an evaluation batch that does not divide": (["--config.eval.batch_size=9"], ["eval.batch_size=9", "8", "16"]),
    "no steps": (["--config.steps=0"], ["steps=0", "at least 1"]),
    "an unknown preset": (["--config.model=ViT-B-33"], ["ViT-B-33", "ViT-B-32"]),
    "an unknown precision": (["--config.precision=float16"], ["precision='float16'", "bfloat16"]),
    "an unknown augmentation": (["--config.augment=(('nothing_such', {}),)"], ["nothing_such"]),
    "an unknown evaluator": (["--config.eval.tasks=('retrievl',)"], ["retrievl", "retrieval"]),
    "an unknown source": (["--config.data.source.name=scene"], ["scene", "scenes"]),
    "an unknown world": (["--config.data.source.world=esay"], ["esay", "easy"]),
    "an unknown metric to save the best by": (["--config.eval.weights=best"], ["eval.weights", "checkpoint.best"]),
    "a mesh too large": (["--config.mesh.data=3"], ["mesh.data=3", "8"]),
    "a mesh of nothing": (["--config.mesh.fsdp=0"], ["mesh.fsdp=0", "-1"]),
    "two axes of what is left": (["--config.mesh.fsdp=-1"], ["mesh.data=-1", "mesh.fsdp=-1"]),
    "a rule that matches nothing": (
        ["--config.optimizer.learning_rate_multipliers=(('vision', 0.1),)"],
        ["'vision'", "visual"],
    ),
    "a rule that freezes everything": (
        ["--config.optimizer.learning_rate_multipliers=(('.*', 0.0),)"],
        ["optimizer.learning_rate_multipliers", "frozen"],
    ),
    "a rule that is no expression": (
        ["--config.optimizer.learning_rate_multipliers=(('(', 0.1),)"],
        ["optimizer.learning_rate_multipliers", "'('"],
    ),
    "a negative rate": (["--config.optimizer.learning_rate=-1.0"], ["optimizer.learning_rate=-1.0", "at least 0"]),
    "images of another size": (["--config.data.source.image_size=64"], ["image_size=32", "64"]),
    "an unknown modality": (["--config.data.modalities=('image', 'sonar')"], ["sonar", "thermal"]),
    "an unknown tokenizer folder": (["--config.data.tokenizer.name=/no/such/folder"], ["/no/such/folder"]),
    "negatives that the data lacks": (
        ["--config.data.negatives_per_image=1"],
        ["negatives_per_image=1", "supplies no"],
    ),
    "no captions": (["--config.data.captions_per_image=0"], ["data.captions_per_image=0", "at least 1"]),
    "a metric that evaluation lacks": (
        ["--config.checkpoint.best=val/nope"],
        ["checkpoint.best='val/nope'", "val/rsum"],
    ),
    "a metric of no evaluation": (
        ["--config.checkpoint.best=val/rsum", "--config.eval.tasks="],
        ["checkpoint.best='val/rsum'", "eval.tasks"],
    ),
    "workers below 0": (["--config.data.workers=-1"], ["data.workers=-1", "between 0 and"]),
    "as many workers as kill a machine": (["--config.data.workers=100000"], ["data.workers=100000", "between 0 and"]),
    "nothing read ahead": (["--config.data.prefetch=-5"], ["data.prefetch=-5", "between 1 and"]),
    "a seed below 0": (["--config.seed=-1"], ["seed=-1", "between 0 and"]),
    "a seed of more than 64 bits": (["--config.seed=99999999999999999999"], ["seed=9999999", "64 bits"]),
    "a number of thousands of digits": (["--config.steps=0x" + "f" * 5000], ["steps=a number of", "64 bits"]),
    "more steps than a counter holds": (["--config.steps=3000000000"], ["steps=3000000000", "at most"]),
    "an infinite rate": (["--config.optimizer.learning_rate=1e400"], ["optimizer.learning_rate=inf", "finite"]),
    "an infinite option of a plug-in": (
        ["--config.augment=(('mixup', {'weight': 1e400}),)"],
        ["augment[0][1].weight=inf", "finite"],
    ),
    "a rate beyond single precision": (["--config.optimizer.eps=1e300"], ["optimizer.eps=1e+300", "finite"]),
    "bytes": (["--config.precision=b'float32'"], ["precision=b'float32'", "bytes"]),
    "a complex number": (["--config.optimizer.eps=1j"], ["optimizer.eps=1j", "complex"]),
    "a set": (["--config.eval.tasks={'retrieval'}"], ["eval.tasks={'retrieval'}", "set"]),
    "a key that is no text": (["--config.objective={1: 2}"], ["objective={1: 2}", "key 1", "quotes"]),
    "a null character": (["--config.data.tokenizer.name='\\0'"], ["data.tokenizer.name", "null"]),
    "a size of the model": (["--config.model.vision_cfg.head_width=5"], ["model.vision_cfg.head_width=5", "divide"]),
    "sections in each other": (["--config.objective=" + "{'a':" * 40 + "1" + "}" * 40], ["objective.a.a", "flatter"]),
    "augmentations that are no pairs": (
        ["--config.augment=5", "--config.augment.mixup.weight=1"],
        ["augment=5", "pairs"],
    ),
    "a model larger than memory": (
        ["--config.model.text_cfg.width=65536", "--config.model.text_cfg.layers=1000"],
        ["model: parameters and moments need", "GiB", "mesh.fsdp"],
    ),
    "a batch larger than memory": (["--config.batch_size=2000000000"], ["batch_size=2000000000: its pictures", "GiB"]),
    "no hidden unit": (["--config.model.vision_cfg.mlp_ratio=0.0001"], ["model.vision_cfg.mlp_ratio=0.0001"]),
    "a value of thousands of characters": (["--config.optimizer=" + "x" * 5000], ["optimizer=xxx", "is a section"]),
    "a split that is not there": (["--config.eval.final_splits=tset"], ["eval.final_splits='tset'", "'test'"]),
    "a name that is a list": (["--config.objective.name=[1]"], ["objective.name=[1]", "contrastive"]),
    "an option in a schedule that is none": (
        ["--config.augment=(('mixup', {'weight': 1.0}),)", "--config.augment.mixup.weight.over=1"],
        ["augment.mixup.weight.over=1", "is not a section"],
    ),
    "no final split": (["--config.eval.final_splits="], ["eval.final_splits=()", "final_tasks"]),
    "an empty folder of checkpoints": (["--config.checkpoint.directory="], ["checkpoint.directory=''", "None"]),
    "a file as the folder of checkpoints": (
        ["--config.checkpoint.directory=/etc/hostname"],
        ["checkpoint.directory=/etc/hostname", "not a folder"],
    ),
    "an unknown option of a tokenizer": (["--config.data.tokenizer.vocab_size=2"], ["data.tokenizer.vocab_size=2"]),
    "no value": (["--config.steps"], ["--config.steps", "VALUE"]),
    "an unknown flag": (["--wrkdir=x"], ["--wrkdir", "--workdir"]),
}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("trian --config=scenes", "mmjax trian: no such command; did you mean 'train'?"),
        ("data fecth emoji", "mmjax data fecth: no such command; did you mean 'fetch'?"),
        ("fetch emoji", "mmjax fetch: no such command; did you mean 'data fetch'?"),
        ("zzz", "mmjax zzz: no such command; known: bench, bench device, "),
        ("train --confg=scenes --workdir=x", "mmjax train: --confg=scenes: no such option; did you mean '--config'?"),
        ("eval --modle x --path=y", "mmjax eval: --modle: no such option; did you mean '--model'?"),
        ("data fetch emoji --config.seed=1", "mmjax data fetch: --config.seed=1: no such option; known: "),
    ],
)
def test_a_mistyped_command_or_option_names_the_nearest_one(words, line, capfd):
    """Before argparse says that something else is missing, or lists all commands."""
    assert cli.main(words.split()) == 2
    out, error = capfd.readouterr()
    assert not out and len(error.splitlines()) == 1 and error.startswith(line), error


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--conf=scenes", "--config.seed", "1"],  # argparse takes the beginning of an option
        ["search", "--in=x", "--", "--confg"],
        ["search", "--a query of words"],
        ["--version"],
        ["-h"],
        [],
    ],
)
def test_words_that_are_none_of_it_are_left_to_argparse(words):
    cli.check_arguments(cli.make_parser(), words)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_with_the_way_out_and_leaves_nothing(name, tmp_path, capfd):
    words, mentions = MISTAKES[name]
    workdir = tmp_path / "run"
    status = cli.main(["train", f"--config={command.config_file(tmp_path)}", f"--workdir={workdir}", *words])
    error = capfd.readouterr().err
    assert status == 2
    assert len(error.strip().splitlines()) == 1, error
    for mention in mentions:
        assert mention in error, error
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("spec", "mentions"),
    [
        ("nowhere.py", ["nowhere.py", "neither a file"]),
        ("broken.py", ["broken.py", "line 2", "ZeroDivisionError"]),
        ("empty.py", ["get_config"]),
        ("sizes.py:sise=small", ["sise", "size"]),
        ("sizes.py:size=tiny", ["size", "tiny", "small"]),
    ],
)
def test_a_config_file_that_cannot_be_read(spec, mentions, tmp_path, capfd, monkeypatch):
    (tmp_path / "broken.py").write_text(BROKEN_FILE)
    (tmp_path / "empty.py").write_text("")
    shutil.copy("configs/common.py", tmp_path)
    (tmp_path / "sizes.py").write_text(
        "from common import parse_arguments\nfrom mmjax.core.config import choose\n\n"
        "def get_config(arg):\n    choose(parse_arguments(arg, size='small').size, ['small'], path='size')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", f"--config={spec}", "--workdir=run"]) == 2
    error = capfd.readouterr().err
    assert len(error.strip().splitlines()) == 1
    for mention in mentions:
        assert mention in error, error
    assert not (tmp_path / "run").exists()


def test_a_config_file_imports_its_neighbors_and_no_other_folders(tmp_path):
    from mmjax import config_file

    before = list(sys.path)
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "common.py").write_text(f"STEPS = {number}\n")
        (folder / "run.py").write_text(
            "import common\n\ndef get_config(arg):\n    from late import SEED\n"
            "    return {'steps': common.STEPS, 'seed': SEED}\n"
        )
        (folder / "late.py").write_text(f"SEED = {number}\n")
    for number in (1, 2, 1):
        assert config_file.load_config(str(tmp_path / str(number) / "run.py")) == {"steps": number, "seed": number}
    assert sys.path == before and not {"common", "late", "run"} & set(sys.modules)
    (tmp_path / "1" / "late.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=r"run\.py: line 4: ZeroDivisionError"):
        config_file.load_config(str(tmp_path / "1" / "run.py"))
    assert sys.path == before and not {"common", "late", "run"} & set(sys.modules)


@pytest.mark.parametrize("name", ["eval", "inspect"])
@pytest.mark.parametrize("content", [{}, {"config.json": "{"}])
def test_a_folder_that_is_no_run(name, content, tmp_path, capfd):
    for file, text in content.items():
        (tmp_path / file).write_text(text)
    assert cli.main([name, f"--workdir={tmp_path}"]) == 2
    error = capfd.readouterr().err
    assert len(error.strip().splitlines()) == 1 and str(tmp_path) in error
    assert {path.name for path in tmp_path.iterdir()} == set(content)


@pytest.mark.parametrize("name", ["train", "eval", "inspect"])
def test_a_run_folder_is_no_url(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = [f"--config={command.config_file(tmp_path)}"] if name == "train" else []
    assert cli.main([name, *config, "--workdir=gs://bucket/run"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "--config.checkpoint.directory=gs://bucket/run" in error
    assert [path.name for path in tmp_path.iterdir()] == (["tiny.py"] if config else [])


def test_a_folder_with_other_things_in_it_is_refused_and_untouched(tmp_path, capfd):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "thesis.txt").write_text("years of work")
    assert cli.main(["train", f"--config={command.config_file(tmp_path)}", f"--workdir={workdir}"]) == 2
    assert "not empty" in capfd.readouterr().err
    assert [path.name for path in workdir.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("words", [[], ["train"], ["eval"], ["inspect"], ["bench"], ["bench", "step"]])
def test_help_explains_each_command(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([*words, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage: mmjax" in shown and len(shown) > 150


def test_help_names_a_first_run_that_can_be_typed(capsys):
    from mmjax import config_file, experiment

    assert cli.main([]) == 2
    shown = " ".join(capsys.readouterr().out.split())
    words = shown.split("First run: mmjax ")[1].split(". Flags")[0].split()
    args = cli.make_parser().parse_args(words)
    assert args.command == "train" and experiment.Experiment.from_dict(config_file.load_config(args.config)).steps > 0


@pytest.mark.parametrize("name", ["quickstart", "scenes", "clip"])
def test_every_shipped_config_is_a_valid_experiment(name):
    from mmjax import config_file, experiment

    settings = experiment.Experiment.from_dict(config_file.load_config(f"configs/{name}.py:augment=none"))
    assert settings.steps > 0 and settings.augment == ()
    assert experiment.Experiment.from_dict(settings.to_dict()) == settings  # what a run folder keeps can be read again


def test_overrides_reach_any_key_also_those_the_file_leaves_out(tmp_path):
    from mmjax import config_file, experiment

    spec = str(command.config_file(tmp_path))
    overrides = [
        ("optimizer.ema_decay", "0.5"),
        ("model", "scenes-tiny"),
        ("model.text_cfg.layers", "3"),
        ("seed", "7"),
    ]
    settings = experiment.Experiment.from_dict(config_file.load_config(spec, overrides))
    assert settings.optimizer.ema_decay == 0.5 and settings.seed == 7
    assert settings.model.embed_dim == 96 and settings.model.text_cfg.layers == 3


HEAVY = "('tensorflow', 'torch', 'transformers')"


def test_import_is_light_and_quick():
    code = (
        "import time; t = time.perf_counter(); import mmjax, mmjax.cli; s = time.perf_counter() - t;"
        f"import sys; heavy = [m for m in (*{HEAVY}, 'jax') if m in sys.modules];"
        "assert not heavy, heavy; assert s < 2, s"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
