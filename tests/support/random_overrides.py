"""Random overrides of an experiment: every key with values of every kind, most of them wrong.

``python -m support.random_overrides 2000`` (in ``tests/``) tries that many and prints each that is neither accepted nor
refused in one line that names the key.
"""

import contextlib
import dataclasses
import io
import random
import re
import sys
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union
from unittest import mock

from mmjax import cli
from mmjax.core import plugins
from mmjax.core.config import _parameters
from mmjax.experiment import Experiment
from mmjax.train import loop
from support import command

VALUES = [
    "0", "1", "2", "3", "7", "-1", "-5", "8", "16", "64", "1000", "100000", "2147483647", "2147483648", "-2147483649",
    "99999999999999999999", "0x" + "f" * 4000, "1" * 5000, "0.0", "0.5", "1.0", "1.5", "-0.1", "1e-9", "1e30", "1e39",
    "1e300", "1e400", "-1e400", "1e-400", "nan", "inf", "-inf", "1j", "True", "False", "true", "FALSE", "None", "none",
    "", " ", "''", "'a'", "word", "bpe", "val", "test", "train", "retrieval", "retrieval,zeroshot", "a,b", ",", "../..",
    "/etc/passwd", "/no/such/file", "/dev/null", "/tmp", ".", "~", "b'x'", "...", "{}", "()", "[]", "{1}", "{1: 2}",
    "{'a': 1}", "{'name': 'word'}", "{'name': 'scenes', 'world': 'easy'}", "{'name': None}", "{'value': 1e400}", "[1]",
    "(1, 2)", "('a', 'b')", "('a', ('b', ('c',)))", "(('mixup', {}),)", "(('flip', {}),)", "(('mixup',),)", "((1, 2),)",
    "(('.*', 0.5),)", "(('(', 0.5),)", "(('.*', 'fsdp'),)", "[[[[[[[[]]]]]]]]", "[" * 30 + "]" * 30,
    "[" * 300 + "]" * 300,
    "'\\0'", "'\\x1b[2J'", "'\\n'", "\\d+", "'\\d'", "(", "[", "*", "é", "\U0001f600", "'\\ud800'", "%s", "{split}",
    "{0..9}", "{0..99999999999}", "a::b", "gs://nowhere", "s3://nowhere", "ftp://x", "zip://a::b",
    "float32", "bfloat16",
    "auto", "random", "first", "cosine", "rsqrt", "cls", "map", "avg", "ViT-B-32", "scenes-tiny", "nothing.json",
    "last",
    "best", "val/rsum", "val/nope", "contrastive", "sigmoid", "ring", "chunked", "dense", "identity", "image",
    "image,depth", "depth", "('image', 'depth', 'thermal')", "easy", "full", "lambda: 1", "__import__('os')", "1 if 1",
    "x" * 5000, "'x' * 10", "1_000", "0b11", "1,", "-", "--", "=", "a=b", "tensorboard", "wandb", "os.path", "json",
]  # fmt: skip

SECTIONS = {
    "data.source": ("mmjax.data.sources", "Source", "scenes"),
    "data.train": ("mmjax.data.sources", "Source", "scenes"),
    "data.evaluation": ("mmjax.data.sources", "Source", "scenes"),
    "data.tokenizer": None,
    "objective": ("mmjax.objectives", "Objective", "contrastive"),
    "augment.mixup": ("mmjax.augment", "Augmentation", "mixup"),
    "augment.patch_dropout": ("mmjax.augment", "Augmentation", "patch_dropout"),
    "data.transforms.flip": ("mmjax.data.transforms", "Transform", "flip"),
    "data.transforms.mixgen": ("mmjax.data.transforms", "Transform", "mixgen"),
}
"""Sections whose keys are the options of a plug-in."""

AUGMENT = "(('mixup', {}), ('patch_dropout', {}))"
TRANSFORMS = "(('flip', {}), ('mixgen', {}))"


def keys() -> dict[str, Any]:
    """Every dotted key of an experiment, sections included, and some that do not exist, with its type."""
    found = dict(_fields(Experiment))
    for section, plugin in SECTIONS.items():
        found |= dict.fromkeys((section, f"{section}.name", f"{section}.nothing"), Any)
        if plugin is not None:
            folder, attribute, name = plugin
            target = plugins.load_class(folder, attribute, name, path="name")
            hints = typing.get_type_hints(target if dataclasses.is_dataclass(target) else target.__init__)
            found |= {f"{section}.{option}": hints.get(option, Any) for option in _parameters(target)}
    found |= {"data.tokenizer.vocab_size": int, "data.preprocess.name": str, "data.preprocess.mode": str}
    nonsense = ("", ".", "..", "steps.", ".steps", "steps.x", "nothing", "nothing.at.all", "augment.0", "model.x.y")
    return found | dict.fromkeys(nonsense, Any)


def _fields(kind: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(hints[field.name], f"{prefix}{field.name}.")


def fitting(kind: Any, generator: random.Random) -> str:
    """A value of type ``kind``, small as a rule."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return str(generator.choice(arguments))
    if kind is int:
        return str(generator.choice((0, 1, 2, 3, 4, 8, 16, 24, 32, 48, 64, 96, generator.randrange(1 << 16), 1 << 20)))
    if kind is float:
        return str(generator.choice((0.0, 0.25, 0.5, 0.9, 1.0, 2.0, 10.0, generator.random(), 1e-12, 1e6)))
    if kind is bool:
        return generator.choice(("True", "False"))
    if typing.get_origin(kind) is tuple:
        items = [fitting(arguments[0], generator) for _ in range(generator.randrange(4))]
        return f"({''.join(f'{item},' for item in items)})"
    if arguments and typing.get_origin(kind) in (Union, types.UnionType):
        option = generator.choice(arguments)
        return "None" if option is type(None) else fitting(option, generator)
    return generator.choice(VALUES)


class Accepted(Exception):
    """Training would begin: everything is checked, and the next thing is to claim the run folder."""


def attempt(overrides: list[tuple[str, str]], *, config: str, workdir: Path) -> tuple[int, str]:
    """The exit status of ``mmjax train`` with the overrides and what it prints to stderr; 0 if it would train."""
    flags = [f"--config.{key}={value}" for key, value in overrides]
    accept = mock.patch.object(loop, "claim_folder", side_effect=Accepted)
    with contextlib.redirect_stderr(io.StringIO()) as error, contextlib.redirect_stdout(io.StringIO()), accept:
        try:
            status = cli.main(["train", f"--config={config}", f"--workdir={workdir}", *flags])
        except Accepted:
            status = 0
    return status, error.getvalue()


def problem(overrides: list[tuple[str, str]], *, config: str, folder: Path) -> tuple[str, str]:
    """What is wrong with the answer to the overrides, or an empty text; and the answer."""
    workdir = folder / "run"
    try:
        status, error = attempt(overrides, config=config, workdir=workdir)
    except Exception as unforeseen:
        return f"{type(unforeseen).__name__}: {unforeseen}", ""
    if workdir.exists():
        return "leaves a folder", error
    if status == 0:
        return "", "accepted"
    if status != 2 or len(error.splitlines()) != 1:
        return f"status {status} with {len(error.splitlines())} lines", error
    if len(error) > 1500:
        return "is long", error
    if not re.match(rf"mmjax train: ({'|'.join(map(re.escape, keys()))})[^ ]*(=|:| is missing)", error):
        return "names no key", error
    return "", error


def draw(generator: random.Random) -> list[tuple[str, str]]:
    """One to three overrides."""
    known = keys()
    overrides = [("augment", AUGMENT), ("data.transforms", TRANSFORMS)]
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        key = generator.choice(list(known))
        fits = generator.random() < 0.6
        overrides.append((key, fitting(known[key], generator) if fits else generator.choice(VALUES)))
    return overrides


def main(count: int, seed: int = 0) -> int:
    """Tries ``count`` cases and prints those with a problem; returns how many there were."""
    accepted, wrong = 0, 0
    with tempfile.TemporaryDirectory() as name:
        config = str(command.config_file(Path(name)))
        for number in range(count):
            overrides = draw(random.Random(f"{seed}/{number}"))
            what, answer = problem(overrides, config=config, folder=Path(name))
            accepted += answer == "accepted"
            if what:
                wrong += 1
                shown = " ".join(f"{key}={value[:80]}" for key, value in overrides[2:])
                print(f"{number}: {shown}\n    {what}\n    {answer[:300].strip()}", flush=True)
    print(f"{count} cases: {accepted} accepted, {count - accepted - wrong} refused in one line, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
