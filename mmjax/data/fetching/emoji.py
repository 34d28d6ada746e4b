"""Emoji as image-text data: several open styles of the same pictures, with names that people wrote.

Emoji of one family are in one partition, and one style is held out of training:

    train      train emoji in the seen styles
    val, test  unseen emoji, a row each, in one of the seen styles
    style_val  train emoji in an unseen style that is close to a seen one (fluent_3d)
    style      train emoji in the style that is held out
    both       test emoji in that style

Written to the output folder, the summary last:

    images/STYLE/CODE.png   on white
    SPLIT.csv               a row a picture
    aligned_PARTITION.csv   a row an emoji, with a column a style (the first is image; of train, the seen ones)
    concepts/LOCALE.csv     English names and those of another language
    classes_group.txt, classes_subgroup.txt, LICENSES.md, licenses/, summary.json
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

from mmjax.core.atomic import write_atomically
from mmjax.core.config import ConfigError, choose
from mmjax.data.fetching import emoji_names, emoji_styles, packages
from mmjax.data.fetching.emoji_names import Emoji
from mmjax.data.fetching.emoji_styles import NAMES, STYLES, Origin, Style
from mmjax.data.preparing import progress

STYLE_VAL = "fluent_3d"
LOCALES = ("de", "zh", "fr", "ja")

_PLAN, _SUMMARY, _PACKAGES = ".plan.json", "summary.json", ".packages"
_LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md")

logger = logging.getLogger(__name__)

Row = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is built; a folder that was begun is only continued with the same plan."""

    styles: Sequence[str]
    held_out: str
    size: int
    locales: Sequence[str]
    packages: Sequence[str] = ()  # with their checksums

    @property
    def seen(self) -> list[str]:
        """The styles of training."""
        return [style for style in self.styles if style not in (self.held_out, STYLE_VAL)]

    @property
    def unseen(self) -> list[str]:
        """The other styles."""
        return [style for style in self.styles if style not in self.seen]


def fetch(
    output: Path,
    *,
    held_out: str = "openmoji",
    styles: Sequence[str] = tuple(STYLES),
    size: int = 64,
    locales: Sequence[str] = LOCALES,
    package_folder: Path | None = None,
    workers: int = 1,
) -> dict[str, Any]:
    """Builds the data set in ``output``, or what is missing of it; the same packages give the same bytes.

    Args:
      output: a new folder, or one that a killed process has begun.
      held_out: the style that training does not see.
      styles: those to use; emoji that one of them lacks are left out.
      size: pixels of a side.
      locales: further languages of names.
      package_folder: where the packages are, or go to and stay; by default they are removed at the end.
      workers: threads.

    Returns:
      The summary, as ``summary.json`` has it.
    """
    plan = _make_plan(styles, held_out, size, locales)
    emoji_styles.check_renderer(_chosen(plan))
    _check_folder(output)
    with packages.locked(output, option="output"):
        _begin(output, plan)
        if not (output / _SUMMARY).exists():
            _build(plan, output, package_folder or output / _PACKAGES, workers=workers)
        shutil.rmtree(output / _PACKAGES, ignore_errors=True)
        return json.loads((output / _SUMMARY).read_text(encoding="utf-8"))


def _build(plan: Plan, output: Path, archives: Path, *, workers: int) -> None:
    chosen = _chosen(plan)
    for origin in (NAMES, *chosen.values()):
        logger.info(f"{origin.package.spec}: {origin.author}, {origin.license}")
    packages.fetch([NAMES.package, *(style.package for style in chosen.values())], archives)
    pictures = {name: style.read(archives / style.package.file) for name, style in chosen.items()}
    everything = emoji_names.load(archives / NAMES.package.file, plan.locales)
    emoji = [one for one in everything if all(one.hexcode in pictures[name] for name in chosen)]
    try:
        _draw_all(emoji, chosen, pictures, output / "images", size=plan.size, workers=workers)
        counts = _write_tables(emoji, plan, output)
        _write_licenses({"names": NAMES} | chosen, archives, output, size=plan.size)
        summary = _summarize(emoji, plan, counts) | {"sha256": _digest(output)}
        write_atomically(output / _SUMMARY, json.dumps(summary, indent=2, ensure_ascii=False) + "\n", sync=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {output} cannot be written ({error.strerror or error}); make room there, then the same "
            "command continues"
        ) from error


def _chosen(plan: Plan) -> dict[str, Style]:
    return {name: STYLES[name] for name in plan.styles}


def text(summary: Mapping[str, Any], output: Path) -> str:
    """The summary as text."""
    splits = ", ".join(f"{name} {count:,}" for name, count in summary["splits"].items())
    return (
        f"{output}: {summary['emoji']:,} emoji in {len(summary['plan']['styles'])} styles\n"
        f"  rows     {splits}\n"
        f"  unseen   the style {summary['plan']['held_out']}\n"
        f"  licenses {output / 'LICENSES.md'}\n"
        f"  sha256   {summary['sha256']}"
    )


def _make_plan(styles: Sequence[str], held_out: str, size: int, locales: Sequence[str]) -> Plan:
    for style in styles:
        choose(style, STYLES, path="--styles")
    ordered = [style for style in STYLES if style in styles]
    choose(held_out, ordered, path="--held-out")
    origins = [NAMES, *(STYLES[style] for style in ordered)]
    specs = [f"{origin.package.spec} {origin.package.integrity}" for origin in origins]
    plan = Plan(ordered, held_out, size, list(dict.fromkeys(locales)), specs)
    if not plan.seen:
        others = ", ".join(style for style in STYLES if style not in (held_out, STYLE_VAL))
        raise ConfigError(f"--styles={','.join(styles)}: leave none to train on; add one of {others}")
    return plan


def _check_folder(output: Path) -> None:
    """Raises ConfigError if ``output`` has what this command did not write."""
    if output.is_dir() and not (output / _PLAN).exists():
        foreign = [path.name for path in output.iterdir() if not path.name.startswith(".")]
        if foreign:
            raise ConfigError(f"--output={output}: has {foreign[0]}, which this command did not write; use another")


def _begin(output: Path, plan: Plan) -> None:
    path, new = output / _PLAN, dataclasses.asdict(plan)
    if not path.exists():
        write_atomically(path, json.dumps(new), sync=True)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    if begun.pop("packages", None) != list(new.pop("packages")):
        raise ConfigError(f"--output={output}: was begun with other packages or styles; use another folder")
    for key, value in new.items():
        if begun.get(key) != value:
            raise ConfigError(
                f"--{key.replace('_', '-')}: is {value!r}, but {output} was begun with {begun.get(key)!r}; "
                "use that again, or another --output"
            )


def _draw_all(
    emoji: Sequence[Emoji],
    styles: Mapping[str, Style],
    pictures: Mapping[str, Mapping[str, bytes]],
    folder: Path,
    *,
    size: int,
    workers: int,
) -> None:
    """Draws the pictures that are not in ``folder`` yet."""
    for name in styles:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for stale in (folder / name).glob(".*.tmp"):
            stale.unlink()
    jobs = [(name, one.hexcode) for name in styles for one in emoji]
    waiting = [(name, code) for name, code in jobs if not (folder / name / f"{code}.png").exists()]

    def draw(job: tuple[str, str]) -> None:
        name, code = job
        png = emoji_styles.to_png(pictures[name][code], svg=styles[name].svg, size=size)
        write_atomically(folder / name / f"{code}.png", png)

    already = len(jobs) - len(waiting)
    if already:
        logger.info(f"{already} of {len(jobs)} pictures exist already")
    with ThreadPoolExecutor(workers) as pool, progress.Counter(len(jobs), unit="pictures", already=already) as count:
        try:
            for done, _ in enumerate(pool.map(draw, waiting), already + 1):
                count(done)
        finally:
            pool.shutdown(cancel_futures=True)


def divide(emoji: Sequence[Emoji], plan: Plan) -> dict[str, list[tuple[Emoji, str]]]:
    """The rows of every split: an emoji and a style."""
    known = [one for one in emoji if one.partition == "train"]
    splits = {"train": [(one, style) for one in known for style in plan.seen]}
    for name in ("val", "test"):
        unseen = [one for one in emoji if one.partition == name]
        splits[name] = [(one, plan.seen[int(emoji_names.fraction(one.hexcode) * len(plan.seen))]) for one in unseen]
    if STYLE_VAL in plan.styles and plan.held_out != STYLE_VAL:
        splits["style_val"] = [(one, STYLE_VAL) for one in known]
    splits["style"] = [(one, plan.held_out) for one in known]
    splits["both"] = [(one, plan.held_out) for one, _ in splits["test"]]
    return splits


def _write_tables(emoji: Sequence[Emoji], plan: Plan, output: Path) -> dict[str, int]:
    """Writes all tables; returns the rows of each split."""
    splits = divide(emoji, plan)
    for name, pairs in splits.items():
        _write_csv(output / f"{name}.csv", ({"filepath": _path(one, s), "style": s} | _row(one) for one, s in pairs))
    for name in ("train", "val", "test"):
        first, *others = plan.seen if name == "train" else [*plan.seen, *plan.unseen]
        _write_csv(
            output / f"aligned_{name}.csv",
            (
                {"image": _path(one, first)} | {style: _path(one, style) for style in others} | _row(one)
                for one in emoji
                if one.partition == name
            ),
        )
    for locale in plan.locales:
        pairs_of_names = {one.name: one.translations[locale] for one in emoji if one.translations[locale]}
        _write_csv(
            output / "concepts" / f"{locale}.csv",
            ({"source": source, "target": target} for source, target in pairs_of_names.items()),
        )
    for kind in ("group", "subgroup"):
        classes = dict.fromkeys(getattr(one, kind) for one in emoji)
        write_atomically(output / f"classes_{kind}.txt", "".join(f"{name}\n" for name in classes))
    return {name: len(rows) for name, rows in splits.items()}


def _path(emoji: Emoji, style: str) -> str:
    return f"images/{style}/{emoji.hexcode}.png"


def _row(emoji: Emoji) -> Row:
    classes = {name: getattr(emoji, name) for name in ("group", "subgroup", "hexcode", "emoji", "family")}
    return emoji.captions() | classes | {f"name_{locale}": name for locale, name in emoji.translations.items()}


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    table, file = list(rows), io.StringIO()
    writer = csv.DictWriter(file, list(table[0]) if table else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_atomically(path, file.getvalue())


def _write_licenses(origins: Mapping[str, Origin], archives: Path, output: Path, *, size: int) -> None:
    """Writes who made what under which license, as attribution asks for, and the texts that the packages have."""
    (output / "licenses").mkdir(exist_ok=True)
    lines = [
        "# Licenses",
        "",
        f"The pictures were put on white and scaled to {size} x {size} pixels; nothing else was changed.",
        "Whoever passes them on has to pass on these notices, and openmoji's pictures only under their own license.",
        "",
        "| | author | license | source | package |",
        "|---|---|---|---|---|",
    ]
    for name, origin in origins.items():
        lines.append(f"| {name} | {origin.author} | {origin.license} | {origin.url} | {origin.package.spec} |")
        for file, data in packages.members(archives / origin.package.file, _LICENSE_FILES.__contains__):
            write_atomically(output / "licenses" / f"{name}-{PurePath(file).stem}.txt", data)
    write_atomically(output / "LICENSES.md", "\n".join(lines) + "\n")


def _summarize(emoji: Sequence[Emoji], plan: Plan, splits: Mapping[str, int]) -> dict[str, Any]:
    return {
        "emoji": len(emoji),
        "families": len({one.family for one in emoji}),
        "partitions": dict(Counter(one.partition for one in emoji)),
        "splits": splits,
        "groups": dict(Counter(one.group for one in emoji)),
        "subgroups": len({one.subgroup for one in emoji}),
        "plan": dataclasses.asdict(plan),
    }


def _digest(output: Path) -> str:
    """SHA-256 over the names and contents of all visible files."""
    total = hashlib.sha256()
    for path in sorted(path for path in output.rglob("*") if path.is_file()):
        name = path.relative_to(output)
        if not any(piece.startswith(".") for piece in name.parts):
            total.update(f"{name.as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()
