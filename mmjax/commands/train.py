"""Train a model, or resume a stopped run.

Trains the experiment of a config file. Run the same command again to resume from the last checkpoint in DIR. SIGTERM or
Ctrl-C saves first.
"""

from __future__ import annotations

import argparse
import os
import re
import sys

from mmjax import __version__
from mmjax.commands.common import options
from mmjax.commands.common.trainings import stop_with_parent
from mmjax.core.config import ConfigError

STOPPED_STATUS = "MMJAX_STOPPED_STATUS"
"""A launcher sets this variable to the exit status that makes it start a stopped run again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run folder; created if missing")
    parser.add_argument(
        "--profile", metavar="steps:A-B",
        help="trace these steps into DIR/profile, with a page about where device time went; changes no result",
    )  # fmt: skip
    options.add_processes(parser)


def run(args: argparse.Namespace) -> int:
    """Trains to the end, from the last checkpoint of the folder if it has one."""
    from mmjax.runs.timing import ActivityTimer

    stop_with_parent()
    timer = ActivityTimer()  # imports and the wait for other processes belong to the time that a start takes
    profile, workdir = parse_profile(args.profile), options.local_workdir(args)
    from mmjax.commands.common.jax_setup import keep_compiled_programs

    keep_compiled_programs()
    from mmjax.checkpoints.orbax_errors import CheckpointNotSaved
    from mmjax.config_file import load_config
    from mmjax.core.printable import printable
    from mmjax.data.sample import DataError
    from mmjax.experiment import Experiment
    from mmjax.parallel import collectives, distributed
    from mmjax.runs.unreadable_examples import TooManyUnreadable
    from mmjax.train import loop
    from mmjax.train.guard import Diverged

    try:
        with distributed.join(**options.processes(args), shared_errors=(Diverged, TooManyUnreadable)):
            if collectives.is_main_process():
                print(f"mmjax {__version__}: {args.config} in {args.workdir}", flush=True)
            outcome = loop.train(
                Experiment.from_dict(load_config(args.config, args.overrides)),
                workdir=workdir,
                overrides=[f"{key}={value}" for key, value in args.overrides],
                profile=profile,
                timer=timer,
            )
    except (Diverged, DataError, CheckpointNotSaved) as error:
        print(f"mmjax train: {printable(str(error), lines=True)}", file=sys.stderr)
        return 1
    return 0 if outcome.finished else _stopped_status()


def parse_profile(text: str | None) -> tuple[int, int] | None:
    """``steps:10-15`` as its first and last step; None stays."""
    if text is None:
        return None
    match = re.fullmatch(r"steps:([0-9]{1,18})(?:-([0-9]{1,18}))?", text)
    if match is None:
        raise ConfigError(f"--profile={text}: expected steps:FIRST-LAST, as steps:10-15")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last:
        raise ConfigError(f"--profile={text}: steps count from 1, the first before the last; as steps:10-15")
    return first, last


def _stopped_status() -> int:
    text = os.environ.get(STOPPED_STATUS, "0")
    if not (text.isascii() and text.isdigit() and int(text) < 128):
        raise ConfigError(f"{STOPPED_STATUS}={text}: must be from 0 to 127")
    return int(text)
