"""What ``mmjax embed`` and ``mmjax score`` share: the model, the data, and shards that several processes write."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmjax
from mmjax.commands.common import data_source, options
from mmjax.core.atomic import write_atomically
from mmjax.core.config import Between, ConfigError, Ge
from mmjax.data.open_source import open_source
from mmjax.data.sources.auto import recognize
from mmjax.experiment import Experiment
from mmjax.inference.embedding import Embedding, Kind, ShardEmbeddings
from mmjax.inference.model import Model
from mmjax.inference.shards import Content, ShardFolder
from mmjax.parallel import collectives
from mmjax.runs.console import Progress
from mmjax.runs.folder import read_config
from mmjax.runs.start_weights import find_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """A model and the data that it embeds."""

    model: Model
    source: Any
    section: Mapping[str, Any]
    kinds: tuple[Kind, ...]
    plan: Mapping[str, Any]
    """What decides the numbers, as JSON values: model, weights, precision, examples, batch_size, source, split, …"""

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.plan["examples"] // self.plan["shard_rows"])

    def range(self, shard: int) -> range:
        """The examples of one shard."""
        rows = self.plan["shard_rows"]
        return range(shard * rows, min((shard + 1) * rows, self.plan["examples"]))


def open_job(args: argparse.Namespace, kinds: tuple[Kind, ...]) -> Job:
    """Loads the model and opens the data; several processes must have been joined."""
    options.check_ranges(args, batch_size=Ge(1), shard_rows=Ge(1), max_unreadable=Between(0, 1))
    model = mmjax.load(args.model, precision=args.precision, batch_size=args.batch_size)
    for kind in kinds:
        model.require("visual" if kind == "images" else "text")
    source, section = _open_data(args, model, kinds)
    if not len(source):
        raise ConfigError(f"split={args.split!r}: the source is empty; check its path")
    plan = {
        "version": 1,
        "model": args.model,
        "weights": model.fingerprint(),
        "precision": model.precision,
        "dimension": model.config.embed_dim,
        "examples": len(source),
        "shard_rows": args.shard_rows,
        "batch_size": model.batch_sizes[-1],
        "source": section,
        "split": args.split,
        "modality": model.modality,
    }
    return Job(model=model, source=source, section=section, kinds=kinds, plan=plan)


def write_shards(
    job: Job,
    folder: ShardFolder,
    make_files: Callable[[ShardEmbeddings], Mapping[tuple[str, str], Content]],
    *,
    run_images: Callable[[Any, int], Any] | None = None,
) -> None:
    """Writes this process's missing shards with a progress bar; returns when all processes have written theirs.

    ``run_images`` is that of ``Embedding``.
    """
    process, count, main = _process(), _process_count(), collectives.is_main_process()
    if count > 1:  # jax keeps the signal for checkpoints; shards are complete or not there, so it may end us at once
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if not main:
        collectives.barrier("mmjax shards begun")  # the folder is begun by process 0 alone
    with folder.locked(process):
        if main:
            collectives.barrier("mmjax shards begun")
        own = range(process, job.shards, count)
        missing = [number for number in folder.missing() if number in own]
        total = sum(len(job.range(number)) for number in own)
        done = already = total - sum(len(job.range(number)) for number in missing)
        if missing:
            with Progress(total, stream=sys.stderr, primary=main, unit="example") as progress:
                embedding = Embedding(job.model, job.source, kinds=job.kinds, run_images=run_images)
                start = time.monotonic()

                def advance(more: int) -> None:
                    nonlocal done
                    done += more
                    rate = (done - already) / max(time.monotonic() - start, 1e-9)
                    progress.step(done, {"train/examples_per_second": rate})

                for number in missing:
                    folder.write(
                        number, make_files(embedding.run(job.range(number), progress=advance)), process=process
                    )
        collectives.barrier("mmjax shards written")
    if main and (left := folder.missing()):
        raise ConfigError(
            f"--output={folder.path}: {len(left)} shards are missing though all processes are done; all must write to "
            "one folder that they share"
        )


def write_unreadable(path: Path, source: Any, unreadable: Sequence[Sequence[str]]) -> dict[str, int]:
    """Lists the examples that were left out, also by the source itself, and returns their numbers by reason."""
    entries = [*source.unreadable, *unreadable]
    lines = [json.dumps({"key": key, "reason": reason, "detail": detail}) for key, reason, detail in entries]
    if lines:
        write_atomically(path, "".join(f"{line}\n" for line in lines))
    return dict(sorted(collections.Counter(reason for _, reason, _ in entries).items()))


def report(args: argparse.Namespace, summary: Mapping[str, Any], text: str, *, listed: Path) -> int:
    """Prints what was written; status 1 if more was left out than ``--max-unreadable`` allows."""
    count = sum(summary["unreadable"].values())
    if args.json:
        options.print_json(summary, indent=None)
    else:
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in summary["unreadable"].items())
        print(text + (f"; {count:,} unreadable ({reasons}), listed in {listed}" if count else ""))
    fraction = count / max(summary["examples"] + count, 1)
    if fraction > args.max_unreadable:
        print(
            f"mmjax {args.command}: {fraction:.2%} of the examples were left out, more than --max-unreadable="
            f"{args.max_unreadable:g}; see {listed}",
            file=sys.stderr,
        )
        return 1
    return 0


def _open_data(args: argparse.Namespace, model: Model, kinds: Sequence[Kind]) -> tuple[Any, dict[str, Any]]:
    modalities = (model.modality,)
    if args.source is None and args.path is None:
        experiment = _experiment(args)
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, modalities=modalities))
        source, section = data_source.open_split(experiment, args.split)
        return source, data_source.with_absolute_path(section)
    section = data_source.with_absolute_path(data_source.source_section(args))
    if section["name"] == "auto" and kinds == ("images",) and recognize(section["path"], args.split)[0] == "folders":
        # A folder of nothing but pictures: embeddings need no captions.
        section["options"] = {"uncaptioned": True, **section.get("options", {})}
    return open_source(section, split=args.split, modalities=modalities, path="--source"), section


def _experiment(args: argparse.Namespace) -> Experiment:
    """That of ``--config``, or of the run that the model is of."""
    from mmjax.config_file import load_config

    if args.config:
        return Experiment.from_dict(load_config(args.config, args.overrides))
    if (workdir := find_run(args.model)) is None:
        raise ConfigError(
            f"--path: is missing, and --model={args.model} is no run with data of its own; give --path=PATH"
        )
    return Experiment.from_dict(read_config(workdir))


def _process() -> int:
    import jax

    return jax.process_index()


def _process_count() -> int:
    import jax

    return jax.process_count()
