"""``report.html``: one self-contained page about a run, made from the files of its folder."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from mmjax.core.atomic import write_atomically
from mmjax.core.files import read_json_object
from mmjax.core.printable import printable
from mmjax.report import tables
from mmjax.report.chart import Series, line_chart, number
from mmjax.report.panels import caption_cards, grounding_cards, image_cards
from mmjax.report.tables import Record
from mmjax.runs.console import duration
from mmjax.runs.jsonl import read_jsonl
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

STYLE = Path(__file__).parent / "style.css"
"""The colors and forms of all pages of this package."""

Points = list[tuple[float, float]]


def write(
    workdir: str | os.PathLike[str],
    *,
    panel: Sequence[Mapping[str, Any]] = (),
    caption_panel: Sequence[Mapping[str, Any]] = (),
    grounding_panel: Sequence[Mapping[str, Any]] = (),
    summary: Mapping[str, Any] | None = None,
) -> Path:
    """Writes ``workdir/report.html``.

    Reads ``metrics.jsonl``, ``config.json`` and the last start in ``starts.jsonl``. Each may be missing or damaged;
    the page then says so.

    Args:
        workdir: The run folder.
        panel: Images with retrieved captions, from ``mmjax.evals.retrieval.Evaluator.panel``.
        caption_panel: Captions with retrieved images, from ``Evaluator.caption_panel``.
        grounding_panel: Where the model looks for what texts name, from ``mmjax.evals.refcoco.Evaluator.panel``.
        summary: Further names and values, e.g. ``{"parameters": 279_937}``.

    Returns:
        The path of the page.
    """
    workdir = Path(workdir)
    records = read_metrics(workdir)
    config = _read_config(workdir)
    warnings = []
    if config is None:
        warnings.append("No readable config.json in this run folder.")
    if not records:
        warnings.append("No readable metrics.jsonl in this run folder: nothing was measured yet.")
    page = load_template("page.html.j2").render(
        run_name=workdir.resolve().name,
        warnings=warnings,
        highlights=_highlights(config or {}),
        results=_results(records),
        charts=_charts(records),
        retrieval=tables.retrieval(records),
        tasks=tables.tasks(records),
        image_cards=image_cards(panel),
        first_correct=sum(bool(e["retrieved"]) and bool(e["retrieved"][0][2]) for e in panel),
        caption_cards=caption_cards(caption_panel),
        grounding_cards=grounding_cards(grounding_panel),
        goodput=tables.goodput(records),
        details=[
            *_flatten(_last_start(workdir) | dict(summary or {})),
            ("report written", time.strftime("%Y-%m-%d %H:%M:%S %z")),
        ],
        config=list(_flatten(config)) if config else [],
        metrics=_last_values(records),
    )
    path = workdir / "report.html"
    write_atomically(path, printable(page, lines=True).encode())
    return path


def load_template(name: str, *folders: Path) -> jinja2.Template:
    """A page's template in one of ``folders``, which may include the report's ``style.css``; all values are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, STYLE.parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "percent": tables.percent, "bar_width": tables.bar_width}
    return environment.get_template(name)


def _highlights(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    values = ((name, _get_path(config, key)) for name, key in HIGHLIGHTS)
    return [(name, _format_value(value)) for name, value in values if value not in (None, [], {}, "")]


def _results(records: list[Record]) -> list[tuple[str, str]]:
    if not records:
        return []
    results = [("last step", f"{max(int(record['step']) for record in records):,}")]
    for prefix, steps in tables.by_prefix(records, "rsum").items():
        results.append((f"{prefix} rsum", f"{steps[-1][1]['rsum']:.1f}"))
    for name, points in _fractions(records):
        results.append((name, tables.percent(points[-1][1])))
    speeds = [y for _, y in _curve(records, "train/examples_per_second")]
    if speeds:
        results.append(("examples/s", number(statistics.median_high(speeds))))
    goodput = [record["goodput"] for record in records if "goodput" in record]
    if goodput:
        results.append(("goodput", f"{goodput[-1]:.0%}" if math.isfinite(goodput[-1]) else "–"))
    return results


def _charts(records: list[Record]) -> list[Markup]:
    def recalls(direction: str) -> list[Series]:
        return [Series(f"R@{k}", _percent(_curve(records, f"val/{direction}_R@{k}"))) for k in (1, 5, 10)]

    embeddings = ("uniformity_image", "uniformity_text", "modality_gap")
    charts = [
        line_chart("Training loss", [Series("loss", _curve(records, "train/loss"))]),
        line_chart("Sum of recalls, val", [Series("rsum", _curve(records, "val/rsum"))]),
        line_chart("Image to text, val", recalls("image_to_text"), unit="%"),
        line_chart("Text to image, val", recalls("text_to_image"), unit="%"),
        line_chart(
            "Uniformity and modality gap, val",
            [Series(name.replace("_", " "), _curve(records, f"val/{name}")) for name in embeddings],
        ),
        *(
            line_chart(name, [Series(name, _percent(points))], unit="%")
            for name, points in _fractions(records)
            if len(points) > 1
        ),
        *_view_charts(records),
        line_chart("Learning rate", [Series("learning rate", _curve(records, "train/learning_rate"))]),
        line_chart("Examples a second", [Series("examples/s", _curve(records, "train/examples_per_second"))]),
        _speed_chart(records),
    ]
    return [chart for chart in charts if chart]


def _fractions(records: list[Record]) -> list[tuple[str, Points]]:
    """The first metric of each evaluator but retrieval, over steps."""
    return [
        (f"{prefix} {metric.replace('_', ' ')}", [(step, metrics[metric]) for step, metrics in steps])
        for metric in ("acc@1", "accuracy", "attribute_accuracy", "mass_in_box", "label_error_rate")
        for prefix, steps in tables.by_prefix(records, metric).items()
    ]


def _speed_chart(records: list[Record]) -> Markup:
    """MFU if the device has a published peak, else model FLOP/s per device."""
    mfu = _percent(_curve(records, "train/mfu"))
    if mfu:
        return line_chart("Model FLOPs, of the published peak", [Series("MFU", mfu)], unit="%")
    speed = [(x, y / 1e9) for x, y in _curve(records, "train/flops_per_second_per_device")]
    return line_chart("Model GFLOP/s of a device", [Series("GFLOP/s", speed)])


def _view_charts(records: list[Record]) -> list[Markup]:
    """For each augmented view that has a loss, that loss beside the clean one at the same steps."""
    charts = []
    for key in dict.fromkeys(key for record in records for key in record):
        _, _, rest = key.partition("augment/")
        name, _, metric = rest.partition("/")
        view = metric.removesuffix("_gap")
        if not rest or metric == view or metric.endswith("modality_gap"):
            continue
        loss = _curve(records, f"augment/{name}/{view}")
        steps = {x for x, _ in loss}
        clean = [point for point in _curve(records, "train/loss") if point[0] in steps]
        charts.append(line_chart(f"Loss of {name}'s view {view!r}", [Series("view", loss), Series("clean", clean)]))
    return charts


def _curve(records: list[Record], key: str) -> Points:
    return sorted({record["step"]: record[key] for record in records if key in record}.items())


def _percent(points: Points) -> Points:
    return [(x, 100 * y) for x, y in points]


def _last_values(records: list[Record]) -> list[tuple[str, float, int]]:
    last: dict[str, tuple[float, int]] = {}
    for record in records:
        last |= {key: (value, int(record["step"])) for key, value in record.items() if key != "step"}
    return [(key, *last[key]) for key in sorted(last)]


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and path.endswith("seconds"):
        yield path, duration(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, f"{value:,}" if path == "parameters" else str(value)
    elif isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
        yield path, ", ".join(map(str, value)) or "none"
    elif value in (None, {}):
        yield path, "none"
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def _get_path(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _format_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):  # [[name, options], ...]
        return ", ".join(str(v[0]) if isinstance(v, (list, tuple)) and v else str(v) for v in value)
    return number(value) if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)


def _read_config(workdir: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(workdir / "config.json")
    except (OSError, ValueError):
        return None


def _last_start(workdir: Path) -> dict[str, Any]:
    starts = [start for _, start in read_jsonl(workdir / "starts.jsonl")]
    return {key: value for key, value in starts[-1].items() if key != "config"} if starts else {}
