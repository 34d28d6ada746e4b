"""The result tables of a report: retrieval over time, and the other tasks beside what chance would give."""

from __future__ import annotations

import math
import re
from html import escape

from mmjax.report.chart import number

RECALLS = [f"{direction}_R@{k}" for direction in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
MAX_ROWS = 12

Line = dict[str, float]


def by_prefix(lines: list[Line], metric: str) -> dict[str, list[tuple[int, Line]]]:
    """For each prefix P that has ``P/metric``: its steps and their metrics without the prefix, in order."""
    found: dict[str, dict[int, Line]] = {}
    for line in lines:
        for prefix in sorted({key[: -len(metric) - 1] for key in line if key.endswith(f"/{metric}")}):
            start = prefix + "/"
            inner = {k[len(start) :]: v for k, v in line.items() if k.startswith(start) and "/" not in k[len(start) :]}
            found.setdefault(prefix, {})[int(line["step"])] = inner
    return {prefix: sorted(steps.items()) for prefix, steps in found.items()}


def percent(value: float) -> str:
    """0.1234 as 12.3, without the sign; what is not finite by name."""
    return f"{100 * value:.1f}" if math.isfinite(value) else number(value)


def retrieval(lines: list[Line]) -> str:
    """Recalls in both directions by split and step, the best step of each split marked, and chance below."""
    body = []
    groups = by_prefix(lines, "rsum")
    for prefix, rows in groups.items():
        # A step that is not a number beats nothing.
        best = max(rows, key=lambda row: row[1]["rsum"] if math.isfinite(row[1]["rsum"]) else -math.inf)[0]
        for step, metrics in _some(rows, best):
            mark = ' class="best"' if step == best and len(rows) > 1 else ""
            cells = "".join(f"<td>{percent(metrics[name]) if name in metrics else '–'}</td>" for name in RECALLS)
            body.append(
                f'<tr{mark}><th scope="row">{escape(prefix)}</th><td>{step:,}</td>{cells}'
                f"<td><b>{metrics['rsum']:.1f}</b></td></tr>"
            )
        chance = _chance(rows[-1][1])
        if chance:
            cells = "".join(f"<td>{percent(value)}</td>" for value in chance)
            body.append(
                f'<tr class="chance"><th scope="row">chance</th><td></td>{cells}<td>{100 * sum(chance):.1f}</td></tr>'
            )
    if not body:
        return ""
    sizes = "; ".join(
        f"{escape(prefix)}: {rows[-1][1]['num_images']:,.0f} images, {rows[-1][1]['num_captions']:,.0f} captions"
        for prefix, rows in groups.items()
        if {"num_images", "num_captions"} <= rows[-1][1].keys()
    )
    return (
        '<section><h2>Retrieval</h2><div class="scroll"><table class="numbers"><thead>'
        '<tr><th rowspan="2">split</th><th rowspan="2">step</th><th colspan="3">image to text, %</th>'
        '<th colspan="3">text to image, %</th><th rowspan="2">rsum</th></tr>'
        f"<tr>{'<th>R@1</th><th>R@5</th><th>R@10</th>' * 2}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">{sizes}{". " if sizes else ""}Ties count as lost. rsum adds the six recalls, 600 at most.</p>'
        "</section>"
    )


def tasks(lines: list[Line]) -> str:
    """Zero-shot, pairwise and Winoground scores, each with chance and, for pairs, what a blind model gets."""
    parts = []
    for prefix, rows in by_prefix(lines, "acc@1").items():
        parts.append(_task("Zero-shot classification", prefix, *_zeroshot(rows[-1][1]), step=rows[-1][0]))
    for prefix, rows in by_prefix(lines, "macro_blind").items():
        parts.append(_task("True or false caption", prefix, *_pairwise(rows[-1][1]), step=rows[-1][0]))
    for prefix, rows in by_prefix(lines, "group_score").items():
        parts.append(_task("Winoground", prefix, *_winoground(rows[-1][1]), step=rows[-1][0]))
    return f'<section><h2>Beyond retrieval</h2><div class="tasks">{"".join(parts)}</div></section>' if parts else ""


Row = tuple[str, float, float | None, float | None]  # name, value, chance, blind


def _zeroshot(metrics: Line) -> tuple[list[Row], str]:
    classes = metrics.get("num_classes")
    order = ["acc@1", "acc@5", "mean_per_class", "acc@1_seen", "acc@1_held_out", "acc@1_harmonic"]
    rows: list[Row] = []
    for name in order:
        if name in metrics:
            chance = (5 if name == "acc@5" else 1) / classes if classes else None
            rows.append((name.replace("_", " "), metrics[name], chance, None))
    return rows, f"{classes:,.0f} classes" if classes else ""


def _pairwise(metrics: Line) -> tuple[list[Row], str]:
    kinds = sorted(k for k in metrics if f"{k}_blind" in metrics and k != "macro")
    rows: list[Row] = [(k.replace("_", " "), metrics[k], 0.5, metrics[f"{k}_blind"]) for k in kinds]
    if "macro" in metrics:
        rows.append(("mean of kinds", metrics["macro"], 0.5, metrics["macro_blind"]))
    words = f"{metrics['num_pairs']:,.0f} pairs. " if "num_pairs" in metrics else ""
    if "tie_rate" in metrics:
        words += f"{percent(metrics['tie_rate'])} % ties, which count as lost. "
    return rows, words + "Blind: the same captions scored without looking at the image."


def _winoground(metrics: Line) -> tuple[list[Row], str]:
    rows: list[Row] = []
    chances = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}
    found = [m for m in (re.fullmatch(r"(text|image|group)_score(?:_(.+))?", key) for key in metrics) if m]
    order = list(chances)
    for match in sorted(found, key=lambda m: (m[2] or "", order.index(m[1]))):
        kind = f", {match[2].replace('_', ' ')}" if match[2] else ""
        rows.append((f"{match[1]} score{kind}", metrics[match[0]], chances[match[1]], None))
    return rows, f"{metrics['num_pairs']:,.0f} pairs" if "num_pairs" in metrics else ""


def _task(title: str, prefix: str, rows: list[Row], note: str, *, step: int) -> str:
    # Keys are "split/task/metric", or "task/metric" where the task has a split of its own.
    split = prefix.rpartition("/")[0]
    title = f"{title}, {split}" if split else title
    blind = any(row[3] is not None for row in rows)
    body = []
    for name, value, chance, other in rows:
        width = 100 * min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0
        tick = f'<i class="tick" style="left:{100 * chance:.1f}%"></i>' if chance is not None else ""
        body.append(
            f'<tr><th scope="row">{escape(name)}</th><td><b>{percent(value)}</b></td>'
            f'<td class="bar"><div><i style="width:{width:.1f}%"></i>{tick}</div></td>'
            f"<td>{'–' if chance is None else percent(chance)}</td>"
            + (f"<td>{'–' if other is None else percent(other)}</td>" if blind else "")
            + "</tr>"
        )
    return (
        f'<div class="task"><h3>{escape(title)}</h3><div class="scroll"><table class="numbers"><thead><tr><th></th>'
        f"<th>%</th><th></th><th>chance</th>{'<th>blind</th>' if blind else ''}</tr></thead>"
        f'<tbody>{"".join(body)}</tbody></table></div><p class="note">Step {step:,}. {escape(note)}</p></div>'
    )


def _some(rows: list[tuple[int, Line]], best: int) -> list[tuple[int, Line]]:
    every = -(-len(rows) // MAX_ROWS)
    last = len(rows) - 1
    return [row for i, row in enumerate(rows) if (last - i) % every == 0 or row[0] == best]


def _chance(metrics: Line) -> list[float]:
    """Expected recalls of random scores: an image has m / n captions among m, a caption one image among n."""
    n, m = metrics.get("num_images", 0.0), metrics.get("num_captions", 0.0)
    if n < 1 or m < 1:
        return []
    to_text = [1 - (1 - min(1.0, k / m)) ** (m / n) for k in (1, 5, 10)]
    return to_text + [min(1.0, k / n) for k in (1, 5, 10)]
