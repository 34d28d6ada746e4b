"""What a recipe will do, and what came of it."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from mmjax.generate.job import Job, phases
from mmjax.generate.recipe import Recipe
from mmjax.generate.stages import model_line

_REASONS = 12  # that are listed


def forecast(recipe: Recipe, examples: int) -> dict[str, Any]:
    """The stages with the requests that each model gets at most, if no record is dropped."""
    requests: collections.Counter[str] = collections.Counter()
    stages = []
    records = examples
    for name, block in recipe.blocks:
        estimate = block.estimate(records)
        requests.update(estimate.requests)
        stages.append({"stage": name, "records": records, "requests": dict(estimate.requests)})
        records = estimate.records
    content, deciding = phases(recipe)
    return {
        "examples": examples,
        "records": records,
        "phases": len(content) + bool(deciding),
        "shards": -(-examples // recipe.config.shard),
        "stages": stages,
        "models": {name: dict(section) for name, (_, section) in recipe.models.items()},
        "requests": dict(requests),
    }


def forecast_text(result: Mapping[str, Any]) -> str:
    """The forecast as text."""
    lines = [
        f"{result['examples']:,} examples, {result['shards']} shard(s), {result['phases']} phase(s); at most "
        f"{result['records']:,} records, {sum(result['requests'].values()):,} requests"
    ]
    for stage in result["stages"]:
        asked = ", ".join(f"{count:,} to {model}" for model, count in stage["requests"].items()) or "no requests"
        lines.append(f"  stage {stage['stage']}: {stage['records']:,} records, {asked}")
    lines += [
        f"  model {model_line(name, section)}: {result['requests'].get(name, 0):,} requests"
        for name, section in result["models"].items()
    ]
    return "\n".join(lines)


def summarize(job: Job) -> dict[str, Any]:
    """Counts of a complete output."""
    reasons: collections.Counter[str] = collections.Counter()
    captions: collections.Counter[str] = collections.Counter()
    counts: collections.Counter[str] = collections.Counter(records=0, kept=0, negatives=0)
    for row in job.rows():
        counts["records"] += 1
        if not row["keep"]:
            reasons[row["reason"]] += 1
            continue
        counts["kept"] += 1
        counts["negatives"] += row["negatives"]
        captions.update(name for name, weight in zip(row["sources"], row["weights"], strict=True) if weight > 0)
    return {
        "output": str(job.output),
        **counts,
        "captions": dict(sorted(captions.items())),
        "reasons": dict(reasons.most_common()),
    }


def text(result: Mapping[str, Any]) -> str:
    """The summary as text."""
    captions = ", ".join(f"{count:,} {source}" for source, count in result["captions"].items()) or "none"
    lines = [
        f"{result['output']}: {result['kept']:,} of {result['records']:,} records kept",
        f"  captions  {captions}; {result['negatives']:,} negatives",
    ]
    reasons = list(result["reasons"].items())
    lines += [f"  dropped   {count:,}: {reason}" for reason, count in reasons[:_REASONS]]
    if len(reasons) > _REASONS:
        lines.append(f"  dropped   {sum(count for _, count in reasons[_REASONS:]):,}: other reasons, in the tables")
    return "\n".join(lines)
