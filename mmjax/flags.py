"""The flags of every subcommand, and what is read from the words of a command line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmjax import __version__
from mmjax.core.config import ConfigError, literal, nearest

Run = Callable[[argparse.Namespace, list[tuple[str, str]]], int]
_NO_FLAGS = ("run", "command", "bench", "data", "overridable")


def parser(run: Mapping[str, Run]) -> argparse.ArgumentParser:
    """The parser of the whole command; ``run`` has the function of each subcommand."""
    parser = argparse.ArgumentParser(prog="mmjax", description="Trains and evaluates CLIP-like image-text models.")
    parser.add_argument("--version", action="version", version=f"mmjax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    command = _command(
        commands, "train", run["train"], "train a model, or go on with a run that was stopped",
        "Trains the experiment of a config file. The same command again goes on from the last checkpoint in DIR. "
        "SIGTERM or Ctrl-C saves first.",
    )  # fmt: skip
    _add_config(command)
    command.add_argument("--workdir", required=True, metavar="DIR", help="the run folder; made if it is not there")
    command.add_argument(
        "--profile", metavar="steps:A-B",
        help="trace these steps into DIR/profile, with a page about where device time went; changes no result",
    )  # fmt: skip
    _add_processes(command)

    command = _command(
        commands, "eval", run["eval"], "measure a checkpoint",
        "Runs evaluators on a checkpoint of a run folder and prints their metrics.",
    )  # fmt: skip
    _add_checkpoint(command)
    command.add_argument("--split", metavar="NAME", help="the split to measure on (default: eval.final_split)")
    command.add_argument("--tasks", metavar="A,B", help="the evaluators to run (default: eval.final_tasks)")
    _add_processes(command)

    command = _command(
        commands, "inspect", run["inspect"], "say what a checkpoint holds",
        "Prints a checkpoint's step, its parameters by module, their bytes, and one SHA-256 over all of them.",
    )  # fmt: skip
    _add_checkpoint(command)

    command = _command(
        commands, "compare", run["compare"], "train variants over paired seeds and compare them",
        "Trains each variant with the same seeds, several runs at a time with their own cores, and prints mean, spread "
        "and paired differences with 95 % intervals. The same command again goes on where it was stopped.",
    )  # fmt: skip
    _add_config(command)
    command.add_argument("--workdir", required=True, metavar="DIR", help="the folder of all runs")
    command.add_argument("--augment", metavar="A,B+C", help="augmentations, a variant each; the first is the baseline")
    command.add_argument(
        "--variant", action="append", default=[], metavar="NAME:KEY=VALUE;…", help="a variant by overrides; repeatable"
    )
    command.add_argument("--seeds", type=int, default=8, metavar="N", help="seeds for each variant (default: 8)")
    command.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first seed (default: 0)")
    command.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    command.add_argument(
        "--metrics", default="test/rsum,test/pairwise/replace_shape,test/pairwise/replace_relation", metavar="A,B",
        help="the final metrics to compare (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _command(
        commands, "compile", run["compile"], "plan training on a TPU slice that is not there",
        "Compiles the step that training would run for a slice of TPU chips and prints its memory against theirs, its "
        "arithmetic and collectives, and the step time that follows from the chips' published figures. Needs libtpu "
        "(pip install 'mmjax[aot]'), no TPU and no data. The status is 1 where the step does not fit.",
    )  # fmt: skip
    _add_config(command)
    command.add_argument(
        "--topology", required=True, metavar="CHIP:AxB", help="the slice: v5e:16x16, v6e:4x4, v4:2x2x2, v5p:4x4x8, …"
    )
    command.add_argument("--fit", choices=["batch"], help="find the largest global batch that fits; compiles it often")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = commands.add_parser("bench", help="measure speed and memory", description="Measures speed and memory.")
    command.set_defaults(command="bench")
    benches = command.add_subparsers(dest="bench", metavar="WHAT", required=True)
    command = _command(
        benches, "step", run["bench step"], "time the compiled training step",
        "Prints step time, examples a second, FLOPs, and memory of the compiled step, with the ratio to the first row.",
    )  # fmt: skip
    command.set_defaults(command="bench step")
    _add_config(command)
    command.add_argument(
        "--augment", metavar="A,B+C", help="augmentations to compare, one row each (default: the config's)"
    )
    command.add_argument("--repeats", type=int, default=10, metavar="N", help="timed steps of each row (default: 10)")
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_data(commands, run)
    return parser


def _add_data(commands: Any, run: Mapping[str, Run]) -> None:
    command = commands.add_parser(
        "data", help="prepare, look at and time data", description="Prepares, looks at and times data."
    )
    command.set_defaults(command="data")
    data = command.add_subparsers(dest="data", metavar="WHAT", required=True)

    command = _command(
        data, "prepare", run["data prepare"], "turn any source into a TFDS data set of ArrayRecord shards",
        "Writes DIR/NAME/VERSION in the layout of TensorFlow Datasets, which needs no TensorFlow to be read. The same "
        "command again after a kill makes what is missing; with another --split it adds that to the data set. What "
        "cannot be used is left out and listed in unreadable.jsonl.",
    )  # fmt: skip
    command.set_defaults(command="data prepare")
    _add_source(command)
    command.add_argument("--output", required=True, metavar="DIR", help="the folder of data sets")
    command.add_argument("--name", metavar="NAME", help="of the data set (default: the source's)")
    command.add_argument("--version", default="1.0.0", metavar="X.Y.Z", help="of the data set (default: 1.0.0)")
    size = command.add_mutually_exclusive_group()
    size.add_argument("--shards", type=int, metavar="N", help="how many files")
    size.add_argument(
        "--shard-mib", type=int, default=256, metavar="N", help="or about how large at most (default: 256)"
    )
    command.add_argument(
        "--image-size", type=int, default=0, metavar="N",
        help="make pictures smaller until their shorter side is N pixels; none is enlarged (default: as they are)",
    )  # fmt: skip
    command.add_argument(
        "--format", default="keep", metavar="F",
        help="jpeg, png or webp (default: keep, each its own; what needs no change keeps its bytes)",
    )  # fmt: skip
    command.add_argument("--quality", type=int, default=90, metavar="N", help="of JPEG and WebP (default: 90)")
    command.add_argument("--drop", metavar="A,B", help="fields that are not stored")
    command.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    command.add_argument(
        "--max-unreadable", type=float, default=0.01, metavar="SHARE",
        help="the status is 1 where more than this share was left out (default: 0.01)",
    )  # fmt: skip
    command.add_argument("--json", action="store_true", help="print the summary as JSON")

    command = _command(
        data, "inspect", run["data inspect"], "say what a source holds, and draw what the model sees of it",
        "Prints fields, pictures, captions against the context length, what is broken, and the shares of a mixture. "
        "With --sheet draws rows of real training batches, after all transforms. Without --config, as a ViT-B-32 would "
        "train on it with no transforms but random crops.",
    )  # fmt: skip
    command.set_defaults(command="data inspect")
    _add_source(command)
    command.add_argument(
        "--examples", default="2000", metavar="N", help="how many to read, evenly spaced, or 'all' (default: 2000)"
    )
    command.add_argument("--sheet", metavar="FILE", help="draw a contact sheet there (.png)")
    command.add_argument("--rows", type=int, default=24, metavar="N", help="images on the sheet (default: 24)")
    command.add_argument("--threads", type=int, metavar="N", help="that read (default: one a core)")
    command.add_argument("--json", action="store_true", help="print JSON")

    command = _command(
        data, "bench", run["data bench"], "time reading, decoding, transforms and whole batches",
        "Prints examples a second for ever more of the work, where the time goes, and whether training would wait.",
    )  # fmt: skip
    command.set_defaults(command="data bench")
    _add_source(command)
    command.add_argument("--batch-size", type=int, metavar="N", help="default: the config's, or 64")
    command.add_argument("--seconds", type=float, default=5.0, metavar="S", help="for each number (default: 5)")
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: the config's)")
    command.add_argument("--threads", type=int, metavar="N", help="default: the config's, or one a core")
    command.add_argument("--autotune", action="store_true", help="find the best workers and threads first")
    command.add_argument("--step-ms", type=float, metavar="MS", help="how long a training step takes")
    command.add_argument("--json", action="store_true", help="print JSON")


def _command(commands: Any, name: str, run: Any, summary: str, description: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=summary, description=description)
    command.set_defaults(run=run)
    return command


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--config", required=True, metavar="FILE[:ARGS]",
        help="a config file with its arguments; --config.KEY=VALUE overrides any key, as --config.batch_size=128",
    )  # fmt: skip
    command.set_defaults(overridable=True)


def _add_source(command: argparse.ArgumentParser) -> None:
    which = command.add_mutually_exclusive_group()
    which.add_argument(
        "--config", metavar="FILE[:ARGS]",
        help="a config file: the source of its data section; --config.KEY=VALUE overrides any key",
    )  # fmt: skip
    which.add_argument("--source", metavar="NAME", help="or a source by its name (default: auto, which looks at PATH)")
    command.add_argument("--path", metavar="PATH", help="the source's path: a file, folder, glob, {0..9} or a::b")
    command.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="a further option of the source; repeatable"
    )
    command.add_argument("--modalities", metavar="A,B", help="which pictures (default: image)")
    command.add_argument("--split", default="train", metavar="NAME", help="default: train")
    command.set_defaults(overridable=True)


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("--workdir", required=True, metavar="DIR", help="a run folder")
    command.add_argument("--step", default="last", metavar="N", help="a checkpoint's step, 'last' (default) or 'best'")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_processes(command: argparse.ArgumentParser) -> None:
    processes = command.add_argument_group(
        "several processes", "Needless where Slurm, Open MPI, a TPU pod or a file of launch/ starts them."
    )
    processes.add_argument("--coordinator", metavar="HOST:PORT", help="of the first process (or MMJAX_COORDINATOR)")
    processes.add_argument("--processes", type=int, metavar="N", help="how many (or MMJAX_PROCESSES)")
    processes.add_argument("--process", type=int, metavar="I", help="which of them, from 0 (or MMJAX_PROCESS)")


def overrides(words: Sequence[str], options: argparse.Namespace) -> list[tuple[str, str]]:
    """The (key, value) pairs of ``--config.KEY=VALUE`` among the words that no flag took; anything else is an error."""
    found = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not (word.startswith("--config.") and getattr(options, "overridable", False)):
            flags = [f"--{name.replace('_', '-')}" for name in vars(options) if name not in _NO_FLAGS]
            raise ConfigError(f"{word}: no such option; {nearest(word.partition('=')[0], flags)}")
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{word}: has no value; write {word}=VALUE")
            value = rest.pop(0)
        found.append((key, value))
    return found


def check(options: argparse.Namespace) -> None:
    """Raises where a flag cannot mean what it says, whatever the command."""
    workdir = getattr(options, "workdir", None) or ""
    if "://" in workdir:
        raise ConfigError(
            f"--workdir={workdir}: a run folder is on this machine; name one, and give "
            f"--config.checkpoint.directory={workdir} when you train, for the checkpoints to lie there"
        )


def which(step: str) -> Any:
    """A checkpoint's step, ``last`` or ``best``."""
    if step in ("last", "best"):
        return step
    if not step.isdigit():
        raise ConfigError(f"--step={step}: expected a number, 'last' or 'best'")
    return int(step)


def processes(options: argparse.Namespace) -> dict[str, Any]:
    """What the flags say of the other processes of a run."""
    return {name: getattr(options, name) for name in ("coordinator", "processes", "process")}


def profiled(text: str | None) -> tuple[int, int] | None:
    """``steps:10-15`` as its first and last step; None stays."""
    if text is None:
        return None
    found = re.fullmatch(r"steps:([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if found is None:
        raise ConfigError(f"--profile={text}: expected steps:FIRST-LAST, as steps:10-15")
    first, last = int(found[1]), int(found[2] or found[1])
    if not 1 <= first <= last:
        raise ConfigError(f"--profile={text}: steps count from 1, the first before the last; as steps:10-15")
    return first, last


def words(text: str | None) -> tuple[str, ...] | None:
    """``A,B`` as its words; None stays."""
    return None if text is None else tuple(text.split(","))


def source(options: argparse.Namespace, overridden: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """The section that ``--source``, ``--path`` and ``--option`` stand for."""
    if overridden:
        key, value = overridden[0]
        raise ConfigError(f"--config.{key}={value}: needs --config=FILE; for a source write --option {key}={value}")
    if options.source is None and options.path is None:
        raise ConfigError("what data? give --config=FILE, --path=PATH, or --source=NAME")
    section: dict[str, Any] = {"name": options.source or "auto"}
    if options.path is not None:
        section["path"] = options.path
    further: dict[str, Any] = {}
    for text in options.option:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text}: has no value; write KEY=VALUE")
        further[key] = literal(value)
    # What is found at a path takes the options, not the one that looks.
    return section | ({"options": further} if section["name"] == "auto" and further else further)
