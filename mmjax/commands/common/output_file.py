"""A file that a command writes at once when its shards are complete, and what says that it is there already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.core.config import ConfigError


def parse_ending(out: Path) -> str:
    """The ending of a table's file: parquet, csv or jsonl."""
    ending = out.suffix.lstrip(".").lower()
    if ending not in ("parquet", "csv", "jsonl"):
        raise ConfigError(f"--output={out}: expected a file that ends in .parquet, .csv or .jsonl")
    return ending


def finished(
    out: Path, record: Path, plan: Mapping[str, Any], *, informative: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The summary of the file if it is there already; raises ConfigError if it is of something else."""
    from mmjax.core.files import read_json_object
    from mmjax.inference.shards import check_plan

    if not out.exists():
        return None
    try:
        written = read_json_object(record)
        begun, summary = dict(written["plan"]), dict(written["summary"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output={out}: is there already, without a {record.name} of what it is; use another name"
        ) from None
    check_plan(begun, json.loads(json.dumps(plan)), informative=informative, where=f"--output={out}")
    return summary
