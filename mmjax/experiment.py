"""An experiment as typed values: what a config file and the command line's overrides add up to."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from mmjax.core import config, plugins
from mmjax.core.config import Between, ConfigError, Ge, Gt, Le
from mmjax.data.clusters.config import ClusterConfig
from mmjax.data.negatives.config import NegativesTable, PositivesTable, TeacherConfig
from mmjax.models import presets
from mmjax.models.config import ClipConfig
from mmjax.objectives.common.gate import GateConfig
from mmjax.parallel.mesh import MeshConfig
from mmjax.weights.config import InitConfig

PositiveInt = Annotated[int, Ge(1)]
Int32 = Annotated[PositiveInt, Le(2**31 - 1)]
Count = Annotated[int, Between(0, 1024)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Between(0, 1)]
Section = Mapping[str, Any]

FROM_INIT = "init"
"""As ``model`` or name of the tokenizer: those that belong to the weights that the run starts from."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how rows are made of them.

    ``source`` names a module of ``mmjax.data.sources`` and its options; ``train`` are further options of the
    training split alone, ``evaluation`` of all others (either with a ``name``: another source). An image has
    ``captions_per_image`` rows of text, and ``negatives_per_image`` more that are nobody's positive. ``distinct``:
    no example twice in a batch. ``groups`` are fields of the examples that make up the group of each, for objectives
    that compare groups; an example without a value in one of them is of no known group. ``labels`` is the field with
    the labels of a sequence, for objectives that recognize them. Training sees a ``fraction`` of the training split: of
    n examples the same floor(fraction · n) for every seed; those of a smaller one are among those of a larger one.

    ``negatives`` is a table of hard negatives (``path``, and perhaps ``kinds``) that is joined to the source by the
    examples' keys, in place of negatives of its own: to the training split, or to each if there is ``{split}`` in its
    path. ``positives`` is such a table of further true captions (``path``), such as analogies,
    and ``teacher`` a folder of another model's embeddings.

    ``clusters`` makes batches of similar examples, from a table of nearest neighbors (``path``).

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
    negatives: NegativesTable | None = None
    positives: PositivesTable | None = None
    teacher: TeacherConfig | None = None
    clusters: ClusterConfig | None = None
    transforms: tuple[tuple[str, Section], ...] = ()
    preprocess: Section | None = None
    background: str = "white"
    tokenizer: Section = dataclasses.field(default_factory=lambda: {"name": "word"})
    modalities: tuple[str, ...] = ("image",)
    captions: Literal["random", "first"] = "random"
    captions_per_image: PositiveInt = 1
    negatives_per_image: Annotated[int, Ge(0)] = 0
    distinct: bool = False
    groups: tuple[str, ...] = ()
    labels: str = "gloss"
    fraction: Annotated[float, Gt(0), Le(1)] = 1.0
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
    counts, and 0 freezes. ``weight_decay_pattern`` is the expression of the paths that weight decay applies to: as in
    open_clip all matrices and tables of embeddings, those of positions among them; ``.*kernel`` are the matrices alone,
    as in big_vision. ``mu_dtype`` is that of the first moment. With ``ema_decay`` a moving average of the parameters is
    kept, and measured in their place.

    ``layer_decay`` multiplies a tower's learning rates once for each layer between a parameter and the tower's end, as
    in BEiT (Bao et al. 2022, arXiv:2106.08254): the last norm, pooling and projection have factor 1, block k of L has
    ``layer_decay^(L-k)`` with k from 0, and what lies before the blocks ``layer_decay^(L+1)``. All factors are
    multiplied. ``unlocked_image_groups`` and ``unlocked_text_groups`` are how many groups of a tower train, from its
    end: pooling and projection; the last block and norm; each further block; what lies before. 0 freezes it.
    """

    learning_rate: NonNegative = 5e-4
    b1: Fraction = 0.9
    b2: Fraction = 0.98
    eps: NonNegative = 1e-6
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    weight_decay: NonNegative = 0.2
    weight_decay_pattern: str = r".*(kernel|embedding|_embed|registers|probe)"
    warmup_steps: Annotated[int, Ge(0)] = 0
    schedule: Literal["cosine", "constant", "rsqrt"] = "cosine"
    final_fraction: Fraction = 0.0
    clip_norm: Annotated[float, Gt(0, "None turns clipping off")] | None = 1.0
    learning_rate_multipliers: tuple[tuple[str, float], ...] = ()
    layer_decay: Annotated[float, Between(1e-3, 1)] = 1.0
    unlocked_image_groups: Annotated[int, Ge(0)] | None = None
    unlocked_text_groups: Annotated[int, Ge(0)] | None = None
    ema_decay: Fraction = 0.0

    def __post_init__(self) -> None:
        multipliers = [pattern for pattern, _ in self.learning_rate_multipliers]
        _check_patterns("optimizer.weight_decay_pattern", [self.weight_decay_pattern])
        _check_patterns("optimizer.learning_rate_multipliers", multipliers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters (LoRA: Hu et al. 2022, arXiv:2106.09685): ``W + alpha/rank · A·B`` in place of a kernel W.

    With a ``rank`` above 0 only A and B train, and the parameters that ``train`` matches; all others keep their bits.
    ``targets`` and ``train`` are regular expressions of paths (``visual/blocks/attn/query/kernel``), matched from the
    start; of what ``targets`` match, the kernels of linear maps get adapters, that of the patch embedding among them.
    ``alpha`` is the rank, if left out.
    """

    rank: Annotated[int, Between(0, 2**16)] = 0
    alpha: Annotated[float, Gt(0)] | None = None
    targets: tuple[str, ...] = (".*/blocks/.*",)
    train: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_patterns("lora.targets", self.targets)
        _check_patterns("lora.train", self.train)

    @property
    def scale(self) -> float:
        """What A·B is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def _check_patterns(key: str, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{key}={pattern!r}: not a regular expression ({error})") from None


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

    ``options`` are those of evaluators, by their names, wherever they run: ``{"retrieval": {"folds": 5}}``.

    ``weights`` are those of the final measurement: the last step's, or those of the best checkpoint. With
    ``optimizer.ema_decay`` both are the moving average's. ``suite`` names benchmarks below ``root``, for the end too.
    """

    every_steps: PositiveInt = 500
    batch_size: PositiveInt = 256
    split: str = "val"
    tasks: tuple[str, ...] = ("retrieval",)
    final_splits: tuple[str, ...] = ("test",)
    final_tasks: tuple[str, ...] = ("retrieval", "zeroshot", "pairwise", "winoground")
    options: Mapping[str, Section] = dataclasses.field(default_factory=dict)
    weights: Literal["last", "best"] = "last"
    suite: tuple[str, ...] = ()
    root: str | None = None

    def __post_init__(self) -> None:
        if self.final_tasks and not self.final_splits:
            raise ConfigError(
                "eval.final_splits=(): names no split; name one, or set eval.final_tasks=() to measure nothing"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When to save and what to keep: the ``keep`` latest, and the best by the metric ``best`` if one is named.

    ``directory`` (a path, or ``gs://BUCKET/…``) stores them outside the run folder. Then only the first
    machine needs access to the run folder, and an empty run folder resumes from the checkpoints there.
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
    """What happens when the loss goes wrong.

    A step whose loss or gradient is not finite changes nothing, and ``max_rejected`` such steps in a row end the run.

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

    The towers run on ``micro_batches`` equal micro-batches, one after another; the loss compares the whole batch.
    """

    steps: Int32
    batch_size: Int32  # global
    micro_batches: PositiveInt = 1
    model: ClipConfig
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    data: DataConfig
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0
    precision: Literal["float32", "bfloat16"] = "float32"
    augment: tuple[tuple[str, Section], ...] = ()
    objective: Section = dataclasses.field(default_factory=lambda: {"name": "contrastive"})
    gate: GateConfig | None = None
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    guard: GuardConfig = dataclasses.field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        for name in ("tasks", "final_tasks", "options"):
            for task in getattr(self.eval, name):
                plugins.check("mmjax.evals", task, path=f"eval.{name}")
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
        if "init" in values:
            values["init"] = expand_init(values["init"])
        values["model"] = expand_model(values.get("model", {}), init=values.get("init"))
        data = values.get("data")
        if isinstance(data, Mapping) and "tokenizer" in data:
            values["data"] = {**data, "tokenizer": _expand_tokenizer(data["tokenizer"], init=values.get("init"))}
        return config.build(cls, values, path="")

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries with every key explicit, as the run folder keeps them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def expand_init(init: Any) -> Any:
    """Weights given by their name alone, as a section."""
    return {"source": init} if isinstance(init, str) or init is None else init


def expand_model(model: Any, *, init: Any = None) -> Any:
    """As a section: a preset's name, the path of an open_clip configuration, or ``init``: the model of the weights."""
    if model == FROM_INIT:
        from mmjax.weights.open_pretrained import read_model  # imports jax, which no config file without weights needs

        specs = _init_specs(init)
        towers = {
            f"{name}_cfg": getattr(read_model(specs[name]).config, f"{name}_cfg")
            for name in ("vision", "text")
            if name in specs
        }
        both = len(towers) == 2 and "source" not in specs
        rest = ClipConfig() if both else read_model(_first_spec(specs, ("source",), key="model")).config
        return dataclasses.asdict(dataclasses.replace(rest, **towers))
    return presets.load(model) if isinstance(model, str) else model


def _expand_tokenizer(tokenizer: Any, *, init: Any) -> Any:
    """``name="init"`` is the tokenizer of the weights that the run starts from."""
    if not isinstance(tokenizer, Mapping) or tokenizer.get("name") != FROM_INIT:
        return tokenizer
    from mmjax.data.tokenizer import published_options
    from mmjax.weights.open_pretrained import read_model

    source = _first_spec(_init_specs(init), ("text", "source"), key="data.tokenizer.name")
    model = read_model(source)
    if model.tokenizer is None:
        raise ConfigError(
            f"data.tokenizer.name='init': {source!r} has no tokenizer beside its weights; name a folder or a hub name"
        )
    text = model.config.text_cfg
    options = published_options(model.tokenizer, clean=text.tokenizer_clean, strip_sep=text.tokenizer_strip_sep)
    return {**options, **tokenizer, "name": model.tokenizer}


def _init_specs(init: Any) -> dict[str, str]:
    """The keys of ``init`` that name weights."""
    section = init if isinstance(init, Mapping) else {}
    return {key: section[key] for key in ("source", "vision", "text") if isinstance(section.get(key), str)}


def _first_spec(specs: Mapping[str, str], keys: Sequence[str], *, key: str) -> str:
    spec = next((specs[k] for k in keys if k in specs), None)
    if spec is None:
        raise ConfigError(
            f"{key}='init': there are no weights to take it from; set init.source, or both init.vision and init.text, "
            "to a folder or a hub name"
        )
    return spec
