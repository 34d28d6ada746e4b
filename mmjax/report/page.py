"""``report.html``: one self-contained page about a run, made from what its folder holds."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mmjax.report import tables, times
from mmjax.report.chart import Series, line_chart, number
from mmjax.report.panels import caption_cards, image_cards
from mmjax.report.style import STYLE
from mmjax.runs.console import duration
from mmjax.runs.metrics_file import read_metrics

HIGHLIGHTS = (
    ("model", "model.name"),
    ("data", "data.source.name"),
    ("steps", "steps"),
    ("batch size", "batch_size"),
    ("objective", "objective.name"),
    ("augmentations", "augment"),
    ("learning rate", "optimizer.learning_rate"),
    ("precision", "precision"),
    ("seed", "seed"),
)
"""What a reader looks for first in ``config.json``; keys that a run does not have are left out."""

Points = list[tuple[float, float]]


def write(
    workdir: str | os.PathLike[str],
    *,
    panel: Sequence[Mapping[str, Any]] = (),
    caption_panel: Sequence[Mapping[str, Any]] = (),
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``workdir/report.html`` and returns its path.

    Reads ``metrics.jsonl``, ``config.json`` and the last start in ``starts.jsonl``; each may be missing or damaged,
    and the page then says so. ``panel`` and ``caption_panel`` are what ``mmjax.evals.retrieval.Evaluator`` gives
    under these names; ``facts`` are further names and values, e.g. ``{"parameters": 279_937}``.
    """
    workdir = Path(workdir)
    lines = read_metrics(workdir)
    config = _read_config(workdir)
    body = [
        _head(workdir, lines, config),
        _curves(lines),
        tables.retrieval(lines),
        tables.tasks(lines),
        image_cards(panel),
        caption_cards(caption_panel),
        times.section(lines),
        _about(config, _last_start(workdir) | dict(facts or {})),
        _latest(lines),
    ]
    title = f"{workdir.resolve().name} · mmjax"
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + "\n</main></body></html>\n"
    )
    path = workdir / "report.html"
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(page, encoding="utf-8", errors="replace")
    os.replace(temporary, path)
    return path


def _head(workdir: Path, lines: list[dict[str, float]], config: dict[str, Any] | None) -> str:
    tiles = []
    for name, key in HIGHLIGHTS:
        value = _look_up(config or {}, key)
        if value not in (None, [], {}, ""):
            tiles.append((name, _names(value)))
    results = []
    if lines:
        results.append(("last step", f"{max(int(line['step']) for line in lines):,}"))
    for prefix, kept in tables.by_prefix(lines, "rsum").items():
        results.append((f"{prefix} rsum", f"{kept[-1][1]['rsum']:.1f}"))
    for prefix, kept in tables.by_prefix(lines, "acc@1").items():
        results.append((f"{prefix} acc@1", tables.percent(kept[-1][1]["acc@1"])))
    rate = [y for _, y in _curve(lines, "train", ("examples_per_second",))]
    if rate:
        results.append(("examples/s", number(sorted(rate)[len(rate) // 2])))
    goodput = [line["goodput"] for line in lines if "goodput" in line]
    if goodput:
        results.append(("goodput", f"{goodput[-1]:.0%}" if math.isfinite(goodput[-1]) else "–"))
    note = "" if config is not None else '<p class="note">No readable config.json in this run folder.</p>'
    if not lines:
        note += '<p class="note">No readable metrics.jsonl in this run folder: nothing was measured yet.</p>'
    tile = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b></div>' for name, value in results
    )
    words = " · ".join(f"<span>{escape(name)} <b>{escape(value)}</b></span>" for name, value in tiles)
    return (
        f'<header><h1>{escape(workdir.resolve().name)}</h1><p class="facts">{words}</p>{note}'
        f'<div class="tiles">{tile}</div></header>'
    )


def _curves(lines: list[dict[str, float]]) -> str:
    recalls = {
        "Image to text, val": [f"image_to_text_R@{k}" for k in (1, 5, 10)],
        "Text to image, val": [f"text_to_image_R@{k}" for k in (1, 5, 10)],
    }
    charts = [
        line_chart("Training loss", [Series("loss", _curve(lines, "train", ("loss",)))]),
        line_chart("Sum of recalls, val", [Series("rsum", _curve(lines, "val", ("rsum",)))]),
        *(
            line_chart(
                title, [Series(k.rsplit("_", 1)[1], _percent(_curve(lines, "val", (k,)))) for k in keys], unit="%"
            )
            for title, keys in recalls.items()
        ),
        line_chart(
            "Uniformity and modality gap, val",
            [
                Series(name.replace("_", " "), _curve(lines, "val", (name,)))
                for name in ("uniformity_image", "uniformity_text", "modality_gap")
            ],
        ),
        *_views(lines),
        line_chart("Learning rate", [Series("learning rate", _curve(lines, "train", ("learning_rate", "lr")))]),
        line_chart("Examples a second", [Series("examples/s", _curve(lines, "train", ("examples_per_second",)))]),
        *_speed(lines),
    ]
    charts = [chart for chart in charts if chart]
    return f'<section><h2>Curves</h2><div class="charts">{"".join(charts)}</div></section>' if charts else ""


def _speed(lines: list[dict[str, float]]) -> list[str]:
    """The share of the devices' peak where there is one to compare with, else the model's arithmetic a second."""
    used = _percent(_curve(lines, "train", ("mfu",)))
    if used:
        return [line_chart("Model FLOPs, of the published peak", [Series("MFU", used)], unit="%")]
    speed = _curve(lines, "train", ("flops_per_second_per_device",))
    return [line_chart("Model GFLOP/s of a device", [Series("GFLOP/s", [(x, y / 1e9) for x, y in speed])])]


def _views(lines: list[dict[str, float]]) -> list[str]:
    """For each view of an augmentation that is a task, its loss beside that of the clean rows at the same steps."""
    charts = []
    for key in dict.fromkeys(key for line in lines for key in line):
        _, _, rest = key.partition("augment/")
        name, _, metric = rest.partition("/")
        view = metric.removesuffix("_gap")
        if not rest or metric == view or metric.endswith("modality_gap"):
            continue
        loss = _curve(lines, f"augment/{name}", (view,))
        steps = {x for x, _ in loss}
        clean = [point for point in _curve(lines, "train", ("loss",)) if point[0] in steps]
        charts.append(line_chart(f"Loss of {name}'s view {view!r}", [Series("view", loss), Series("clean", clean)]))
    return charts


def _curve(lines: list[dict[str, float]], prefix: str, names: tuple[str, ...]) -> Points:
    values: dict[float, float] = {}
    for line in lines:
        for name in names:
            if f"{prefix}/{name}" in line:
                values[line["step"]] = line[f"{prefix}/{name}"]
    return sorted(values.items())


def _percent(points: Points) -> Points:
    return [(x, 100 * y) for x, y in points]


def _about(config: dict[str, Any] | None, facts: Mapping[str, Any]) -> str:
    rows = [*_flatten(facts), ("report written", time.strftime("%Y-%m-%d %H:%M:%S %z"))]
    parts = [f"<section><h2>The run</h2>{_table(rows)}"]
    if config:
        settings = list(_flatten(config))
        parts.append(f"<details><summary>Configuration: {len(settings)} settings</summary>{_table(settings)}</details>")
    return "".join(parts) + "</section>"


def _latest(lines: list[dict[str, float]]) -> str:
    latest: dict[str, tuple[int, float]] = {}
    for line in lines:
        latest |= {key: (int(line["step"]), value) for key, value in line.items() if key != "step"}
    if not latest:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{number(value)}</td><td>{step:,}</td></tr>'
        for key, (step, value) in sorted(latest.items())
    )
    return (
        f"<section><details><summary>Every metric, last value: {len(latest)}</summary>"
        '<div class="scroll"><table class="plain"><thead><tr><th>metric</th><th>value</th><th>step</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details></section>"
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(k)}</th><td>{escape(v)}</td></tr>' for k, v in rows)
    return f'<div class="scroll"><table class="plain words"><tbody>{cells}</tbody></table></div>'


def _flatten(value: Any, path: str = ""):
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and path.endswith("seconds"):
        yield path, duration(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, f"{value:,}" if path == "parameters" else str(value)
    elif isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
        yield path, ", ".join(map(str, value)) or "none"
    else:
        yield (
            path,
            "none" if value in (None, {}) else value if isinstance(value, str) else json.dumps(value, default=str),
        )


def _look_up(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _names(value: Any) -> str:
    if isinstance(value, (list, tuple)):  # [[name, options], ...]
        return ", ".join(str(v[0]) if isinstance(v, (list, tuple)) and v else str(v) for v in value)
    return number(value) if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _read_config(workdir: Path) -> dict[str, Any] | None:
    try:
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None


def _last_start(workdir: Path) -> dict[str, Any]:
    try:
        text = (workdir / "starts.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    for line in reversed(text.splitlines()):
        try:
            start = json.loads(line)
        except ValueError:
            continue
        if isinstance(start, dict):
            return {key: value for key, value in start.items() if key != "config"}
    return {}
