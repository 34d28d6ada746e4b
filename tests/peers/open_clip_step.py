"""Step time of open_clip with torch.compile, to set beside ``mmjax bench step`` on the same card or cores.

Not part of the test suite: it wants torch and open_clip, which mmjax does not. ``launch/accelerator_report.sh`` runs
it where they are installed:

    pip install open_clip_torch
    python tests/peers/open_clip_step.py --model=ViT-B-16 --batch=512 --json

One step is what open_clip's own training does: both towers in bfloat16 (autocast; float32 on a CPU), its loss, AdamW,
and the clamp of the scale, on one batch of random pixels and tokens that stays on the device.
"""

import argparse
import contextlib
import json
import math
import statistics
import time

import open_clip
import torch


def make_model(name, *, layers, device):
    """The model with random weights; ``layers`` (0: its own) of each tower, for a rehearsal."""
    config = open_clip.get_model_config(name)
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = layers or config[tower]["layers"]
    return open_clip.CLIP(**config).to(device).train(), config


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--layers", type=int, default=0, help="of each tower (default: the model's)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    model, config = make_model(args.model, layers=args.layers, device=device)
    size, length = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    images = torch.randn(args.batch, 3, size, size, device=device)
    tokens = torch.randint(1, config["text_cfg"]["vocab_size"], (args.batch, length), device=device)
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=device.type == "cuda"
    )
    forward = model if args.no_compile else torch.compile(model)
    half = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()

    def step():
        optimizer.zero_grad(set_to_none=True)
        with half:
            image_features, text_features, scale = forward(images, tokens)[:3]
            loss = loss_of(image_features, text_features, scale)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    before = time.perf_counter()
    for _ in range(3):
        step()
    wait()
    compile_seconds = time.perf_counter() - before
    seconds = []
    for _ in range(args.repeats):
        before = time.perf_counter()
        step()
        wait()
        seconds.append(time.perf_counter() - before)
    median = statistics.median(seconds)
    result = {
        "model": args.model,
        "batch_size": args.batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "compiled": not args.no_compile,
        "seconds": median,
        "examples_per_second": args.batch / median,
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "compile_seconds": compile_seconds,
    }
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{1e3 * median:.1f} ms a step, {args.batch / median:.1f} examples/s")


if __name__ == "__main__":
    main()
