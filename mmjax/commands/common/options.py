"""Flags that several commands share, and what their values mean."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmjax.core.config import ConfigError, Range, nearest
from mmjax.core.printable import printable


def add_config(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """``--config``, which takes overrides."""
    parser.add_argument(
        "--config", required=required, metavar="FILE[:ARGS]",
        help="a config file, or the name of a shipped one, with its arguments; --config.KEY=VALUE overrides any key, "
        "as --config.batch_size=128",
    )  # fmt: skip


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """``--workdir`` and ``--step``, which name a checkpoint."""
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a run folder")
    parser.add_argument("--step", default="last", metavar="N", help="a checkpoint's step, 'last' (default) or 'best'")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """The flags that join several processes to one run."""
    group = parser.add_argument_group(
        "several processes", "Not needed where Slurm, Open MPI, a TPU pod or a file of launch/ starts them."
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0 (or MMJAX_COORDINATOR)")
    group.add_argument("--processes", type=int, metavar="N", help="number of processes (or MMJAX_PROCESSES)")
    group.add_argument("--process", type=int, metavar="I", help="this process's index, from 0 (or MMJAX_PROCESS)")


def add_json(parser: argparse._ActionsContainer) -> None:
    """``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def print_result(result: Any, format_text: Callable[[Any], str], *, as_json: bool) -> None:
    """Prints a command's result, as text or as JSON."""
    if as_json:
        print_json(result)
    else:
        print(printable(format_text(result), lines=True))


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Prints ``value`` as JSON; numbers that JSON does not have (NaN, infinity) are null."""
    print(json.dumps(without_nan(value), indent=indent, allow_nan=False))


def without_nan(value: Any) -> Any:
    """``value`` with None for numbers that JSON does not have."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_overrides(unknown: Iterable[str], args: argparse.Namespace) -> list[tuple[str, str]]:
    """The (key, value) pairs of ``--config.KEY=VALUE`` among the words that argparse did not know.

    Raises ConfigError for any other word.
    """
    overrides = []
    remaining = iter(unknown)
    for word in remaining:
        if not (word.startswith("--config.") and "config" in args):
            flags = [f"--{name.replace('_', '-')}" for name in vars(args) if name not in ("command", "run")]
            raise ConfigError(f"{word}: no such option; {nearest(word.partition('=')[0], flags)}")
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            following = next(remaining, None)
            if following is None:
                raise ConfigError(f"{word}: has no value; write {word}=VALUE")
            value = following
        overrides.append((key, value))
    return overrides


def name_flags(message: str, args: argparse.Namespace) -> str:
    """An error about a source or a decoding that flags gave, by these flags: keys are no use to who wrote none."""
    if "top_k" in args:  # of `mmjax caption`
        message = re.sub(r"^caption\.(\w+)=", lambda key: f"--{key[1].replace('_', '-')}=", message)
    named = getattr(args, "path", None) or getattr(args, "source", None)
    if "input" in args:  # of `mmjax generate`, whose config is a recipe
        path, keys = "--input", "--input"
    elif named and getattr(args, "config", None) is None:
        path, keys = "--path", r"(?:--source|data\.source)"
    else:
        return message
    message = re.sub(rf"{keys}\.path=", f"{path}=", message)
    message = re.sub(rf"{keys}\.name=", "--source=", message)
    return re.sub(rf"{keys}\.(?:options\.)?(\w+)=", r"--option \1=", message)


def check_ranges(args: argparse.Namespace, **ranges: Range) -> None:
    """Raises ConfigError unless each named flag is in its range or left out."""
    for name, limits in ranges.items():
        if (value := getattr(args, name)) is not None:
            limits.check(value, path=f"--{name.replace('_', '-')}")


def local_workdir(args: argparse.Namespace) -> Path:
    """``--workdir``, which must not be a URL."""
    if "://" in args.workdir:
        raise ConfigError(
            f"--workdir={args.workdir}: a run folder is on this machine; name one, and give "
            f"--config.checkpoint.directory={args.workdir} when you train, for the checkpoints to lie there"
        )
    return Path(args.workdir)


def checkpoint_step(args: argparse.Namespace) -> int | Literal["last", "best"]:
    """``--step``."""
    if args.step in ("last", "best"):
        return args.step
    if not args.step.isdigit():
        raise ConfigError(f"--step={args.step}: expected a number, 'last' or 'best'")
    return int(args.step)


def processes(args: argparse.Namespace) -> Mapping[str, Any]:
    """The flags of ``add_processes``, as arguments of ``distributed.join``."""
    return {name: getattr(args, name) for name in ("coordinator", "processes", "process")}


def split_csv(text: str | None) -> tuple[str, ...]:
    """``A,B`` as its words; none where the flag was left out."""
    return () if text is None else tuple(word.strip() for word in text.split(","))


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def align(rows: Sequence[Sequence[str]]) -> str:
    """A text table whose first column is aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )
