"""The ``mmjax`` command: finds the subcommands in ``mmjax/commands`` and runs one."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mmjax import __version__, commands
from mmjax.commands.common.options import name_flags, parse_overrides
from mmjax.core import plugins
from mmjax.core.config import ConfigError, nearest, shorten
from mmjax.core.printable import printable
from mmjax.runs.console import log_to_stderr

FIRST_RUN = "First run: mmjax train --config=quickstart --workdir=runs/quickstart. Flags: mmjax COMMAND --help."
LONGEST_WORD = 400  # of an error; longer ones are cut


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Returns:
        The exit status. 0: success, 1: the command failed, 2: a flag or config key cannot be used, 130: Ctrl-C.
    """
    parser = make_parser()
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        check_arguments(parser, arguments)
    except ConfigError as error:
        message = " ".join(shorten(word, LONGEST_WORD) for word in str(error).split())
        print(f"mmjax {printable(message)}", file=sys.stderr)
        return 2
    args, unknown = parser.parse_known_args(arguments)
    if "run" not in args:
        parser.print_help()
        return 2
    log_to_stderr()
    try:
        args.overrides = parse_overrides(unknown, args)
        return args.run(args)
    except ConfigError as error:
        line = " ".join(shorten(word, LONGEST_WORD) for word in name_flags(str(error), args).split())
        print(f"mmjax {args.command}: {printable(line)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"mmjax {args.command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout has gone, as with "| head"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def check_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raises ConfigError for a command or option that there is not, and names the nearest one.

    argparse would list all commands, and say of a mistyped option that a required one is missing.

    Args:
        parser: Of all subcommands.
        arguments: The command line without its first word.
    """
    command = ""
    for word in arguments:
        flag = word.partition("=")[0]
        subcommands = _subcommands(parser)
        if word == "--":
            return
        if subcommands and not word.startswith("-"):
            if word not in subcommands:
                # A command of a group may be looked for without its group.
                inner = [f"{group} {name}" for group, each in subcommands.items() for name in _subcommands(each)]
                raise ConfigError(f"{command}{word}: no such command; {nearest(word, [*subcommands, *inner])}")
            parser, command = subcommands[word], f"{command}{word} "
        elif not subcommands and word.startswith("--") and " " not in flag:  # with a space it is a value to argparse
            options = [option for action in parser._actions for option in action.option_strings]
            is_override = flag.startswith("--config.") and "--config" in options
            if not is_override and not any(option.startswith(flag) for option in options):
                raise ConfigError(f"{command.strip()}: {word}: no such option; {nearest(flag, options)}")


def _subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


def make_parser() -> argparse.ArgumentParser:
    """A parser of all subcommands, each with its flags and help."""
    parser = argparse.ArgumentParser(
        prog="mmjax", description="Trains and evaluates CLIP-like image-text models.", epilog=FIRST_RUN
    )
    parser.add_argument("--version", action="version", version=f"mmjax {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND")
    groups: dict[str, Any] = {}
    for name in plugins.names(commands.__name__):
        try:
            module = plugins.load(commands.__name__, name, path="command")
        except ConfigError as error:  # another package's; all other commands still work
            print(f"mmjax: {error}", file=sys.stderr)
            continue
        group, _, rest = name.partition("_")
        if group not in commands.GROUPS:
            _add_command(subparsers, name, name, module)
            continue
        if group not in groups:
            summary = commands.GROUPS[group]
            group_parser = subparsers.add_parser(group, help=summary, description=f"{summary.capitalize()}.")
            groups[group] = group_parser.add_subparsers(metavar="WHAT", required=True)
        _add_command(groups[group], rest, f"{group} {rest}", module)
    return parser


def _add_command(subparsers: Any, word: str, name: str, module: ModuleType) -> None:
    summary, _, description = (inspect.getdoc(module) or "").partition("\n\n")
    help_text = summary[:1].lower() + summary[1:].rstrip(".")
    parser = subparsers.add_parser(word, help=help_text, description=description or summary)
    module.add_arguments(parser)
    parser.set_defaults(command=name, run=module.run)
