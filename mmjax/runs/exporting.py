"""From a run folder to a folder that others load."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmjax.checkpoints.manager import Checkpoints, StepSelector
from mmjax.core.config import ConfigError, choose
from mmjax.data.tokenizer import load as load_tokenizer
from mmjax.experiment import Experiment
from mmjax.models.config import ClipConfig
from mmjax.models.lora import merge_adapters
from mmjax.runs import folder as run_folder
from mmjax.runs.metrics_file import read_metrics
from mmjax.runs.start_weights import read_arrays
from mmjax.weights.export import folders
from mmjax.weights.export.folders import Adapters, Exported
from mmjax.weights.export.graphs import write_onnx, write_stablehlo
from mmjax.weights.export.peft import write_peft
from mmjax.weights.open_pretrained import read_model

FORMATS = {**folders.FORMATS, "peft": write_peft, "onnx": write_onnx, "stablehlo": write_stablehlo}

FROM_INIT = "init"
"""As what to interpolate with: the weights that the run started from."""


def export_run(
    workdir: Path,
    out: Path,
    *,
    format: str,
    step: StepSelector = "last",
    ema: bool | None = None,
    average: Sequence[int] = (),
    interpolate: tuple[str, float] | None = None,
    dtype: str = "float32",
    license: str | None = None,
) -> None:
    """Writes a run's model for another library; low-rank adapters are merged into their kernels but for ``peft``.

    Args:
        workdir: The run folder.
        out: A folder that is not there yet, or is empty. It appears when it is complete.
        format: One of ``FORMATS``.
        step: A checkpoint.
        ema: The moving average of the parameters; None: if the run keeps one.
        average: Take the mean of the parameters at these steps instead (a "soup", Wortsman et al., arXiv:2203.05482).
        interpolate: Other weights, a SPEC or ``init``, and the fraction of the run's own in the mean of the two
            (WiSE-FT, Wortsman et al., arXiv:2109.01903).
        dtype: Of the numbers in the files.
        license: For the model card.
    """
    choose(format, FORMATS, path="--format")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"--output={out}: exists and is not an empty folder; name a new one")
    experiment = Experiment.from_dict(run_folder.read_config(workdir))
    if ema and not experiment.optimizer.ema_decay:
        raise ConfigError(f"--ema: the run of {workdir} keeps no moving average (optimizer.ema_decay=0); leave it out")
    if ema is None:
        ema = experiment.optimizer.ema_decay > 0
    adapters = _adapters(experiment, average=average, interpolate=interpolate) if format == "peft" else None
    saving = experiment.checkpoint
    checkpoints = Checkpoints(workdir, directory=saving.directory, best=saving.best, read_only=True)
    try:
        steps = list(average) or [checkpoints.resolve(step)]
        versions = [checkpoints.read_params(step=each, ema=ema) for each in steps]
        if experiment.lora.rank and adapters is None:
            versions = [merge_adapters(version, scale=experiment.lora.scale) for version in versions]
        params = _mean(versions)
    finally:
        checkpoints.close()
    if interpolate is not None:
        spec, own = interpolate
        if spec == FROM_INIT and experiment.init.source is None:
            two = any(experiment.init.specs())
            start = "its towers come from init.vision and init.text" if two else "the run started from random numbers"
            raise ConfigError(f"--interpolate=init: {start}; name weights of the whole model in place of 'init'")
        spec = str(experiment.init.source) if spec == FROM_INIT else spec
        interpolate = (spec, own)
        other = read_arrays(spec, experiment.model, params)
        params = {path: own * array + (1 - own) * other[path] for path, array in params.items()}
    model = Exported(
        config=_with_own_tokenizer(experiment.model, workdir),
        params={path: np.asarray(array, np.float32) for path, array in params.items()},
        tokenizer=workdir / run_folder.TOKENIZER_FOLDER,
        card=_card(experiment, workdir, steps=steps, ema=ema, interpolate=interpolate),
        recipe={"steps": steps, "ema": ema, "interpolate": interpolate, "experiment": experiment.to_dict()},
        adapters=adapters,
        license=license,
        dtype=dtype,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        FORMATS[format](model, unfinished)
        unfinished.chmod(0o755)
        os.replace(unfinished, out)
    except OSError as error:
        raise ConfigError(f"--output={out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _with_own_tokenizer(config: ClipConfig, workdir: Path) -> ClipConfig:
    """With how the run's own tokenizer cleans texts; what it does with a separator stands in the tokenizer's files."""
    clean = load_tokenizer(
        str(workdir / run_folder.TOKENIZER_FOLDER), context_length=config.text_cfg.context_length
    ).clean
    text = dataclasses.replace(config.text_cfg, tokenizer_clean=clean, tokenizer_strip_sep=False)
    return dataclasses.replace(config, text_cfg=text)


def _adapters(
    experiment: Experiment, *, average: Sequence[int], interpolate: tuple[str, float] | None
) -> Adapters | None:
    """Of a run whose adapters hold all that it has trained; others are refused."""
    lora, init = experiment.lora, experiment.init
    if not lora.rank:
        return None
    way_out = "use --format=hf, which merges the adapters"
    if average or interpolate:
        flag = "--average" if average else "--interpolate"
        raise ConfigError(f"--format=peft: {flag} makes kernels that no adapter of this rank has; {way_out}")
    if lora.train:
        raise ConfigError(f"--format=peft: adapters do not hold what lora.train={lora.train} has trained; {way_out}")
    if init.source is None or init.vision or init.text or init.drop:
        raise ConfigError(
            f"--format=peft: adapters are for one model that others have, and this run started from "
            f"{init.vision or init.text or init.source or 'random numbers'} with the rest at random; {way_out}"
        )
    sides = [config.vision_cfg.grid for config in (read_model(init.source).config, experiment.model)]
    if sides[0] != sides[1]:
        raise ConfigError(
            f"--format=peft: the run resized the positions of {init.source} from {sides[0]} patches a side to "
            f"{sides[1]}, which adapters do not hold; {way_out}"
        )
    return Adapters(scale=lora.scale, base=init.source)


def _mean(versions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        path: np.mean([version[path].astype(np.float64) for version in versions], axis=0).astype(np.float32)
        if len(versions) > 1
        else array
        for path, array in versions[0].items()
    }


def _card(
    experiment: Experiment,
    workdir: Path,
    *,
    steps: Sequence[int],
    ema: bool,
    interpolate: tuple[str, float] | None,
) -> str:
    """The model card: what was trained on what, how, and how well."""
    data, model = experiment.data, experiment.model
    taken = f"the mean of steps {', '.join(map(str, steps))}" if len(steps) > 1 else f"step {steps[0]}"
    rows = {
        "weights": f"{taken}{', moving average' if ema else ''}"
        + (f", {interpolate[1]:g} of it and {1 - interpolate[1]:g} of {interpolate[0]}" if interpolate else ""),
        "started from": experiment.init.source or experiment.init.vision or experiment.init.text or "random numbers",
        "image tower": f"width {model.vision_cfg.width}, {model.vision_cfg.layers} blocks, "
        + (
            f"sequences of up to {model.vision_cfg.max_frames} frames"
            if model.vision_cfg.stem == "frames"
            else f"{model.vision_cfg.image_size} pixels, patches of {model.vision_cfg.patch_size}"
        ),
        "text tower": f"width {model.text_cfg.width}, {model.text_cfg.layers} blocks, {model.text_cfg.context_length} "
        f"tokens, vocabulary {model.text_cfg.vocab_size}",
        "joint space": str(model.embed_dim),
        "data": str(data.source.get("name")),
        "transforms": ", ".join(name for name, _ in data.transforms) or "none",
        "augmentations": ", ".join(name for name, _ in experiment.augment) or "none",
        "objective": str(experiment.objective.get("name")),
        "adapters": f"LoRA of rank {experiment.lora.rank}" if experiment.lora.rank else "none",
        "batch": f"{experiment.batch_size}, {experiment.steps} steps",
    }
    lines = ["# A CLIP model trained with mmjax", "", *(f"* {key}: {value}" for key, value in rows.items())]
    final = {
        key: value
        for row in read_metrics(workdir)[-1:]
        for key, value in row.items()
        if key != "step" and "/" in key and not key.startswith(("train/", "augment/"))
    }
    if final:
        lines += [
            "",
            "| measured at the end | |",
            "|---|---|",
            *(f"| {k} | {v:.4g} |" for k, v in sorted(final.items())),
        ]
    return "\n".join([*lines, "", "`mmjax_config.json` holds the whole configuration.", ""])
