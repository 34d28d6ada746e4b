"""Write a run's model for transformers, open_clip or big_vision, as ONNX or StableHLO, or its adapters for PEFT.

The folder has the weights, the configuration and the preprocessing of the other library, the tokenizer, a model card
and the run's own configuration. What the other library cannot express is refused by name. Adapters (lora.rank) are
merged into their kernels; --format=peft writes them alone, for the model that the run started from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmjax.commands.common import options
from mmjax.core.config import Between, ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's flags."""
    options.add_checkpoint(parser)
    parser.add_argument(
        "--format", required=True, choices=("hf", "open_clip", "big_vision", "peft", "onnx", "stablehlo"),
        help="the library, or the kind of program",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="DIR", help="the folder to write")
    parser.add_argument(
        "--ema", action=argparse.BooleanOptionalAction, default=None,
        help="the moving average of the parameters (default: if the run keeps one)",
    )  # fmt: skip
    parser.add_argument("--average", metavar="STEPS", help="the mean of the weights at these steps, as 100,200,300")
    parser.add_argument(
        "--interpolate", metavar="SPEC:FRACTION",
        help="the mean of the run's weights (FRACTION of them) and others; 'init:0.5' for what the run started from",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of the weights in files"
    )
    parser.add_argument("--license", metavar="NAME", help="of the weights, for the model card")
    parser.add_argument("--push", metavar="OWNER/NAME", help="also upload the folder to the Hugging Face hub")


def run(args: argparse.Namespace) -> int:
    """Writes the folder."""
    workdir, step, out = options.local_workdir(args), options.checkpoint_step(args), Path(args.output)
    average = _steps(args.average)
    if average and args.step != "last":
        raise ConfigError(f"--step={args.step}: --average={args.average} names the steps; leave one of the two out")
    interpolate = _interpolation(args.interpolate)
    if args.push is not None and args.push.count("/") != 1:
        raise ConfigError(f"--push={args.push}: expected OWNER/NAME, as on the Hugging Face hub")
    from mmjax.commands.common.jax_setup import use_cpu
    from mmjax.runs.exporting import export_run

    use_cpu()
    export_run(
        workdir, out, format=args.format, step=step, ema=args.ema, average=average, interpolate=interpolate,
        dtype=args.dtype, license=args.license,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in out.iterdir()) / 2**20
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))} ({size:,.1f} MiB)")
    if args.push:
        print(_push(out, args.push))
    return 0


def _steps(text: str | None) -> tuple[int, ...]:
    steps = options.split_csv(text)
    if not all(step.isdecimal() for step in steps):
        raise ConfigError(f"--average={text}: expected steps of checkpoints, as 100,200,300")
    return tuple(int(step) for step in steps)


def _interpolation(text: str | None) -> tuple[str, float] | None:
    if text is None:
        return None
    spec, _, number = text.rpartition(":")
    try:
        fraction = float(number)
    except ValueError:
        spec = ""
    if not spec:
        raise ConfigError(f"--interpolate={text}: expected SPEC:FRACTION, as init:0.5")
    Between(0, 1, "the fraction of the run's own weights").check(fraction, path="--interpolate")
    return spec, fraction


def _push(folder: Path, name: str) -> str:
    import huggingface_hub

    try:
        huggingface_hub.create_repo(name, exist_ok=True)
        return str(huggingface_hub.upload_folder(repo_id=name, folder_path=folder))
    except Exception as error:  # whichever HTTP library the hub client uses this year
        line = " ".join(str(error).split())[:200]
        raise ConfigError(f"--push={name}: the hub refused it ({line}); the folder {folder} is complete") from error
