"""Examples a second from tar shards: mmjax beside webdataset with Pillow and torchvision, and the bare decoder.

Not part of the test suite: it wants torch, torchvision and webdataset, which mmjax does not. Run it as

    pip install torch torchvision webdataset
    python tests/peers/loaders.py --size=500x400 --count=2000

All of it runs on the same cores (``--cores``), in turns, several rounds; figures are medians, ratios those of
medians.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image

SHARDS = 4
BATCH = 64
VIEW = 224


def photograph(random, width, height):
    """A picture with about the spectrum of a photograph, so that its JPEG has about the size of one."""
    total = np.zeros((height, width, 3), np.float32)
    for cell in (4, 8, 16, 32, 64, 128, 256):
        for channel in range(3):
            coarse = random.normal(size=(height // cell + 2, width // cell + 2)).astype(np.float32)
            smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            total[..., channel] += np.asarray(smooth) * cell**0.7
    total += random.normal(size=(height, width, 1)) * 4
    return np.clip((total - total.mean()) / total.std() * 50 + 128, 0, 255).astype(np.uint8)


def write(folder, *, count, width, height, different=40):
    """Tar shards of ``count`` pictures, of which ``different`` are different (drawing them is slow)."""
    random = np.random.default_rng(0)
    pictures = []
    for _ in range(different):
        out = io.BytesIO()
        Image.fromarray(photograph(random, width, height)).save(out, "JPEG", quality=90)
        pictures.append(out.getvalue())
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for number in range(shard, count, SHARDS):
                for name, data in (
                    (f"{number:06d}.jpg", pictures[number % different]),
                    (f"{number:06d}.txt", f"a photograph with the number {number}".encode()),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return pictures


def peers(folder, *, count, cores):
    """webdataset, Pillow and torchvision with open_clip's training transform, in as many worker processes."""
    import torch
    import webdataset

    try:
        from torchvision import transforms
    except RuntimeError:
        # Built for another torch, it lacks its compiled operators, on which only boxes, not transforms, depend.
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
        from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                VIEW, scale=(0.9, 1.0), interpolation=transforms.InterpolationMode.BICUBIC, antialias=True
            ),
            lambda image: image.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = (
        webdataset.WebDataset(urls, shardshuffle=False, resampled=True)
        .shuffle(500, initial=100)
        .decode("pil")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, lambda text: text)
        .batched(BATCH)
    )
    torch.set_num_threads(1)
    loader = iter(torch.utils.data.DataLoader(data, batch_size=None, num_workers=cores))
    return rate(lambda: next(loader), count=count)


def ours(folder, *, count, cores):
    """mmjax's random crops in shuffled order, tokenised, as training reads them."""
    from mmjax.data import tokenizer
    from mmjax.data.pipeline import Batches
    from mmjax.data.sources.webdataset import Source
    from mmjax.data.transform_chain import TransformChain

    source = Source("train", path=str(folder / f"{{00000..{SHARDS - 1:05d}}}.tar"))
    words = tokenizer.load("word", context_length=32, captions=(source[i]["captions"][0] for i in range(100)))
    chain = TransformChain((("random_resized_crop", {}),), image_size=VIEW, modalities=("image",))
    batches = Batches(source, words, batch_size=BATCH, seed=0, chain=chain)
    stream = batches.stream(threads=cores, prefetch=2)
    try:
        return rate(lambda: next(stream), count=count)
    finally:
        stream.close()


def decoder(pictures, *, count, cores):
    """The JPEG decoder's own calls on bytes in memory, in as many threads: what no loader can be faster than."""
    return threaded(simplejpeg.decode_jpeg, pictures, count=count, cores=cores)


def decoder_and_resize(pictures, *, count, cores):
    """Decoding, cropping and resizing as training does them, without reading, drawing or batching."""
    from mmjax.data import pictures as module
    from mmjax.data.transforms.random_resized_crop import Transform

    crop = Transform(image_size=VIEW)(*module.size_of(pictures[0]), np.random.default_rng(0))
    return threaded(lambda data: module.decode(data, crop), pictures, count=count, cores=cores)


def threaded(function, pictures, *, count, cores):
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(function, pictures))
        before = time.perf_counter()
        for _ in pool.map(function, [pictures[i % len(pictures)] for i in range(count)]):
            pass
        return count / (time.perf_counter() - before)


def rate(take, *, count):
    for _ in range(4):
        take()
    before = time.perf_counter()
    for _ in range(count // BATCH):
        take()
    return count // BATCH * BATCH / (time.perf_counter() - before)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", default="500x400")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = write(folder, count=options.count, width=width, height=height)
        print(f"{options.size}, {len(pictures[0]) / 1024:.0f} KiB a picture, {options.cores} cores", file=sys.stderr)
        rows = {
            "webdataset + Pillow + torchvision": lambda: peers(folder, count=options.count, cores=options.cores),
            "mmjax": lambda: ours(folder, count=options.count, cores=options.cores),
            "decode + crop + resize alone": lambda: decoder_and_resize(
                pictures, count=options.count, cores=options.cores
            ),
            "decoder calls alone": lambda: decoder(pictures, count=options.count, cores=options.cores),
        }
        rates = {row: [] for row in rows}
        for _ in range(options.rounds):
            for row, measure in rows.items():
                rates[row].append(measure())
    median = {row: statistics.median(values) for row, values in rates.items()}
    for row, value in median.items():
        spread = f"({min(rates[row]):,.0f} to {max(rates[row]):,.0f})"
        print(f"{row:36} {value:8,.0f} examples/s   {value / median['mmjax']:.2f} of mmjax   {spread}")


if __name__ == "__main__":
    main()
