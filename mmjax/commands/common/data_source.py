"""The flags with which ``mmjax data`` commands name a source, and the source and experiment that they stand for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.commands.common import options
from mmjax.core.config import ConfigError, literal


def add_source(parser: argparse.ArgumentParser, *, modalities: bool = True) -> None:
    """``--config``, or ``--source`` with the flags that go with it, and ``--split``; ``--modalities`` if asked for."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--config", metavar="FILE[:ARGS]",
        help="a config file, or the name of a shipped one: the source of its data section; "
        "--config.KEY=VALUE overrides any key",
    )  # fmt: skip
    group.add_argument("--source", metavar="NAME", help="or a source by its name (default: auto, which looks at PATH)")
    parser.add_argument("--path", metavar="PATH", help="the source's path: a file, folder, glob, {0..9} or a::b")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="a further option of the source; repeatable"
    )
    if modalities:
        parser.add_argument("--modalities", metavar="A,B", help="the kinds of pictures to read (default: image)")
    parser.add_argument("--split", default="train", metavar="NAME", help="default: train")


def open_source(args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The source that the flags name, and its section; uses no accelerator."""
    if args.config:
        return open_split(load_experiment(args), args.split)
    from mmjax.data import open_source

    section = source_section(args)
    source = open_source.open_source(section, split=args.split, modalities=_modalities(args), path="--source")
    return source, section


def open_split(experiment: Any, split: str) -> tuple[Any, dict[str, Any]]:
    """The source of one split of an experiment, and its section."""
    from mmjax.train import data

    return data.open_split(experiment, split), data.split_section(experiment.data, split)


def load_experiment(args: argparse.Namespace) -> Any:
    """The experiment of ``--config``, or that of a ViT-B-32 on ``--source``; uses no accelerator."""
    from mmjax.commands.common.jax_setup import use_cpu

    use_cpu()
    from mmjax.config_file import load_config
    from mmjax.experiment import Experiment

    if args.config:
        for name in ("path", "option", "modalities"):
            if getattr(args, name):
                raise ConfigError(f"--{name}: goes with --source; override the config with --config.data.source.KEY")
        return Experiment.from_dict(load_config(args.config, args.overrides))
    section = source_section(args)
    # The path is of the split that stands beside it, whatever its name.
    data = {"source": section, "evaluation": section, "modalities": _modalities(args)}
    base = {"steps": 1, "batch_size": 64, "model": "ViT-B-32"}
    return Experiment.from_dict({**base, "data": data, "eval": {"split": args.split}})


def source_section(args: argparse.Namespace) -> dict[str, Any]:
    """The configuration section that ``--source``, ``--path`` and ``--option`` stand for."""
    if args.overrides:
        key, value = args.overrides[0]
        raise ConfigError(f"--config.{key}={value}: needs --config=FILE; for a source write --option {key}={value}")
    if args.source is None and args.path is None:
        raise ConfigError("no data: give --config=FILE, --path=PATH, or --source=NAME")
    section: dict[str, Any] = {"name": args.source or "auto"}
    if args.path is not None:
        section["path"] = args.path
    from mmjax.data.open_source import OF_ANY_SOURCE

    source_options = _parse_options(args.option)
    # ``auto`` passes the others to the source that it finds at the path.
    section |= {key: source_options.pop(key) for key in OF_ANY_SOURCE if key in source_options}
    return section | ({"options": source_options} if section["name"] == "auto" and source_options else source_options)


def with_absolute_path(section: Mapping[str, Any]) -> dict[str, Any]:
    """``section`` so that it names the same files from any working directory."""

    def absolute(path: Any) -> Any:
        if not isinstance(path, str):
            return [absolute(part) for part in path] if isinstance(path, (list, tuple)) else path
        pieces = path.split("::")
        return "::".join(p if "://" in p else os.path.abspath(os.path.expanduser(p)) for p in pieces)

    return {**section, **({"path": absolute(section["path"])} if "path" in section else {})}


def _parse_options(texts: Sequence[str]) -> dict[str, Any]:
    result = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text}: has no value; write KEY=VALUE")
        result[key] = literal(value)
    return result


def _modalities(args: argparse.Namespace) -> tuple[str, ...]:
    return options.split_csv(args.modalities) or ("image",)
