"""An experiment as typed values: what a config file and the command line's overrides add up to."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import traceback
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from mmjax.core import config, plugins
from mmjax.core.config import Between, ConfigError, Ge, Gt, Le
from mmjax.core.neighbors import importable_neighbors
from mmjax.models import presets
from mmjax.models.config import ClipConfig
from mmjax.parallel.mesh import MeshConfig

PositiveInt = Annotated[int, Ge(1)]
Int32 = Annotated[PositiveInt, Le(2**31 - 1)]
Count = Annotated[int, Between(0, 1024)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Between(0, 1)]
Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how rows are made of them.

    ``source`` names a module of ``mmjax.data.sources`` and its options; ``train`` are further options of the
    training split alone, ``evaluation`` of all others (either with a ``name``: another source). An image has
    ``captions_per_image`` rows of text, and ``negatives_per_image`` more that are nobody's positive. ``distinct``:
    no example twice in a batch.

    ``transforms`` are what training does to examples and rows (``mmjax.data.transforms``), ``preprocess`` how
    evaluation brings a picture to the model's size: ``resize_crop`` by the model's own convention, if left out.
    ``background`` is the color that transparent pictures are put on, a name or ``#rrggbb``; ``keep`` keeps their alpha
    as a fourth channel, which the models here refuse.

    ``workers`` processes with ``threads`` each read ahead (None: a thread a core where pictures must be decoded);
    ``autotune`` measures which numbers are best here, at every start. Training stops when more than ``max_unreadable``
    of the examples cannot be used.
    """

    source: Section
    train: Section = dataclasses.field(default_factory=dict)
    evaluation: Section = dataclasses.field(default_factory=dict)
    transforms: tuple[tuple[str, Section], ...] = ()
    preprocess: Section | None = None
    background: str = "white"
    tokenizer: Section = dataclasses.field(default_factory=lambda: {"name": "word"})
    modalities: tuple[str, ...] = ("image",)
    captions: Literal["random", "first"] = "random"
    captions_per_image: PositiveInt = 1
    negatives_per_image: Annotated[int, Ge(0)] = 0
    distinct: bool = False
    max_unreadable: Fraction = 0.01
    workers: Count = 0
    threads: Count | None = None
    prefetch: Annotated[int, Between(1, 1024)] = 8
    autotune: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) with warm-up; defaults are those of open_clip for CLIP.

    ``learning_rate_multipliers`` are pairs of a regular expression over parameter paths
    (``visual/blocks/attn/query/kernel``) and a factor on the learning rate; the first that matches from the start
    counts, and a factor of 0 freezes. ``weight_decay_pattern`` is the expression of the paths that weight decay applies
    to: as in open_clip all matrices and tables of embeddings, those of positions among them; ``.*kernel`` are the
    matrices alone, as in big_vision. With ``ema_decay`` a moving average of the parameters is kept, and measured in
    their place.
    """

    learning_rate: NonNegative = 5e-4
    b1: Fraction = 0.9
    b2: Fraction = 0.98
    eps: NonNegative = 1e-6
    weight_decay: NonNegative = 0.2
    weight_decay_pattern: str = r".*(kernel|embedding|_embed|registers|probe)"
    warmup_steps: Annotated[int, Ge(0)] = 0
    schedule: Literal["cosine", "constant", "rsqrt"] = "cosine"
    final_fraction: Fraction = 0.0
    clip_norm: Annotated[float, Gt(0, "None turns clipping off")] | None = 1.0
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()
    ema_decay: Fraction = 0.0

    def __post_init__(self) -> None:
        patterns = [("learning_rate_multipliers", pattern) for pattern, _ in self.learning_rate_multipliers]
        for key, pattern in [("weight_decay_pattern", self.weight_decay_pattern), *patterns]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"optimizer.{key}={pattern!r}: not a regular expression ({error})") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often the metrics of a step are written, and where to besides ``metrics.jsonl``.

    ``trackers`` name modules of ``mmjax.runs.trackers``.
    """

    every_steps: PositiveInt = 50
    trackers: tuple[str, ...] = ("tensorboard",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What is measured during training (``tasks`` on ``split``) and after it (``final_tasks`` on each of
    ``final_splits``; tasks with a split of their own once).

    ``weights`` are those of the final measurement: the last step's, or those of the best checkpoint. With
    ``optimizer.ema_decay`` both are the moving average's.
    """

    every_steps: PositiveInt = 500
    batch_size: PositiveInt = 256
    split: str = "val"
    tasks: tuple[str, ...] = ("retrieval",)
    final_splits: tuple[str, ...] = ("test",)
    final_tasks: tuple[str, ...] = ("retrieval", "zeroshot", "pairwise", "winoground")
    weights: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        if self.final_tasks and not self.final_splits:
            raise ConfigError(
                "eval.final_splits=(): names no split; name one, or set eval.final_tasks=() to measure nothing"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep: the ``keep`` latest, and the best by the metric ``best`` if one is named.

    ``directory`` (a path, or ``gs://BUCKET/…``) is where they lie, if not in the run folder. Then no machine but the
    first needs to see the run folder, and a new, empty one goes on from what lies there.
    """

    every_steps: PositiveInt = 500
    keep: PositiveInt = 2
    best: str | None = None
    directory: str | None = None

    def __post_init__(self) -> None:
        if self.directory == "":
            raise ConfigError("checkpoint.directory='': names no folder; set it to None for the run folder")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What happens where the loss goes wrong.

    A step whose loss or gradient is not finite changes nothing, and ``max_rejected`` of them in a row end the run.

    With ``spike_factor``, a loss above that factor times the median of the last ``spike_window`` ones takes the run
    back to the last checkpoint before it, and past the batches between the two (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5.1); so do ``max_rejected`` in a row. At most ``max_rewinds`` times.
    """

    max_rejected: PositiveInt = 10
    spike_factor: Annotated[float, Gt(1, "e.g. 2.0; None turns it off")] | None = None
    spike_window: PositiveInt = 100
    max_rewinds: PositiveInt = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run's results, and how it is logged and saved.

    The towers take a batch in ``micro_batches`` parts, one after another; the loss compares all of it.
    """

    steps: Int32
    batch_size: Int32  # global
    micro_batches: PositiveInt = 1
    model: ClipConfig
    data: DataConfig
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: tuple[tuple[str, Section], ...] = ()
    objective: Section = dataclasses.field(default_factory=lambda: {"name": "contrastive"})
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        for name, tasks in (("eval.tasks", self.eval.tasks), ("eval.final_tasks", self.eval.final_tasks)):
            for task in tasks:
                plugins.check("mmjax.evals", task, path=name)
        for tracker in self.log.trackers:
            plugins.check("mmjax.runs.trackers", tracker, path="log.trackers")
        for name, _ in self.data.transforms:
            plugins.check("mmjax.data.transforms", name, path="data.transforms")
        for name, _ in self.augment:
            plugins.check("mmjax.augment", name, path="augment")
        if self.eval.weights == "best" and self.checkpoint.best is None:
            raise ConfigError("eval.weights='best': needs a metric to go by; set checkpoint.best, e.g. 'val/rsum'")

    @classmethod
    def from_dict(cls, section: Section) -> Experiment:
        """From nested mappings; a model may be given by its preset's name alone."""
        if not hasattr(section, "items"):
            raise ConfigError(
                f"the configuration is {config.short_repr(section)}; expected sections, as of the shipped configs"
            )
        values = dict(section.items())
        config.check_plain(values, path="")
        values["model"] = expand_model(values.get("model", {}))
        return config.build(cls, values, path="")

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries with every key explicit, as the run folder keeps them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def expand_model(model: Any) -> Any:
    """A preset's name, or the path of an open_clip configuration, as a section; a section with ``preset`` likewise."""
    return presets.load(model) if isinstance(model, str) else model


def load_config(spec: str, overrides: Iterable[tuple[str, str]] = ()) -> dict[str, Any]:
    """The sections of a config file with overrides applied in order; not yet checked.

    Args:
        spec: ``PATH[:ARGUMENT]``, or the name of a shipped file in place of its path (``scenes:size=large``). The
            file's ``get_config(argument)`` returns the configuration. It can import other files of its folder.
        overrides: Pairs of a dotted key and a Python literal (``"none"`` and other plain words are strings).
    """
    name, _, argument = spec.partition(":")
    shipped = shipped_configs()
    path = name if Path(name).is_file() else shipped.get(name)
    if path is None:
        raise ConfigError(
            f"--config={name}: neither a file nor a shipped configuration; {config.nearest(Path(name).stem, shipped)}"
        )
    with importable_neighbors(Path(path).resolve().parent):
        try:
            module = runpy.run_path(path)
            if "get_config" not in module:
                raise ConfigError(f"--config={name}: defines no function get_config(argument)")
            result = module["get_config"](argument)
            if not hasattr(result, "items"):
                raise ConfigError(
                    f"--config={name}: get_config returns {type(result).__name__}; return a ConfigDict or a dict"
                )
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"--config={name}: {_where(error, path)}{type(error).__name__}: {error}") from error
    sections = _plain(result)
    for key, text in overrides:
        _override(sections, key, text)
    return sections


def shipped_configs() -> dict[str, str]:
    """Paths of the configuration files that come with mmjax, by name."""
    package = Path(__file__).parent
    # In an installed package they are inside it, in a checkout beside it (pyproject.toml).
    inside = package / "configs"
    folder = inside if inside.is_dir() else package.parent / "configs"
    return {path.stem: str(path) for path in sorted(folder.glob("*.py")) if path.stem != "common"}


def _override(sections: dict[str, Any], key: str, text: str) -> None:
    for listed in ("augment", "data.transforms"):
        if key.startswith(f"{listed}.") and key.count(".") > listed.count(".") + 1:
            _override_listed(sections, listed, key, text)
            return
    *parents, last = key.split(".")
    place = sections
    for depth, parent in enumerate(parents):
        inner = place[parent] if parent in place else _default_section(parents[: depth + 1])
        if depth == 0 and parent == "model":
            inner = expand_model(inner)
        place[parent] = place = _section(inner, parent, key=key, text=text)
    _set(place, last, key=key, text=text)


def _set(place: dict[str, Any], last: str, *, key: str, text: str) -> None:
    value = config.literal(text)
    if isinstance(place.get(last), dict) and not (isinstance(value, dict) or key == "model"):
        raise ConfigError(
            f"{key}={config.shorten(text)}: {last!r} is a section; set one of its keys, e.g. --config.{key}.KEY "
            f"({', '.join(place[last])})"
        )
    place[last] = value


def _section(value: Any, name: str, *, key: str, text: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}={config.shorten(text)}: {name!r} is not a section but {config.short_repr(value)}")
    return value


def _default_section(path: list[str]) -> dict[str, Any]:
    """What a section that the config file leaves out starts from: its plug-in's name, where it has a default one."""
    kind: Any = Experiment
    for name in path:
        field = next((field for field in dataclasses.fields(kind) if field.name == name), None)
        if field is None:
            return {}
        if field.default_factory is not dataclasses.MISSING and isinstance(start := field.default_factory(), dict):
            return start
        kind = typing.get_type_hints(kind)[name]
        if not dataclasses.is_dataclass(kind):
            return {}
    return {}


def _override_listed(sections: dict[str, Any], listed: str, key: str, text: str) -> None:
    """``augment.NAME.KEY`` (or a key of its schedule), and likewise for transforms: the entries are pairs, in order."""
    *parents, last = listed.split(".")
    place = sections
    for parent in parents:
        place = _section(place.setdefault(parent, {}), parent, key=key, text=text)
    try:
        entries = [(str(entry), dict(options)) for entry, options in place.get(last, ())]
    except (TypeError, ValueError):
        found = config.short_repr(place[last])
        raise ConfigError(f"{listed}={found}: expected pairs of a name and options, as (('flip', {{}}),)") from None
    target = key.removeprefix(f"{listed}.")
    # An entry's name has dots where it is a module of another package.
    name, options = next(((n, o) for n, o in entries if target.startswith(f"{n}.")), (target.partition(".")[0], None))
    if options is None:
        near = config.nearest(name, dict(entries))
        raise ConfigError(f"{key}={config.shorten(text)}: {listed} has no such entry; {near}")
    *inner, option = target.removeprefix(f"{name}.").split(".")
    for section in inner:
        options = _section(options.setdefault(section, {}), section, key=key, text=text)
    _set(options, option, key=key, text=text)
    place[last] = tuple(entries)


def _plain(value: Any) -> Any:
    """ConfigDicts as dictionaries."""
    if hasattr(value, "items"):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _where(error: BaseException, path: str) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    return f"line {lines[-1]}: " if lines else ""
