"""CLIP_benchmark, run on an exported folder, measures what the run itself measured."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from mmjax.commands.common.trained_model import open_model
from mmjax.data.sources.scenes import Source as Scenes
from mmjax.experiment import Experiment
from mmjax.runs.exporting import export_run
from mmjax.runs.metrics_file import read_metrics
from mmjax.train.loop import train
from support import tiny

for name in ("open_clip", "clip_benchmark", "webdataset"):
    pytest.importorskip(name, reason="pip install -e '.[parity]'", exc_type=Exception)

MODEL = {
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": 22, "vocab_size": None, "width": 32, "heads": 4, "layers": 2, "pool_type": "eos"},
    "embed_dim": 16,
}


def write_benchmark(folder, split, samples, *, classes=()):
    """Samples (picture, the lines of a text or a class) as CLIP_benchmark's shards."""
    (folder / split).mkdir(parents=True)
    (folder / split / "nshards.txt").write_text("1")
    (folder / "dataset_type.txt").write_text("classification" if classes else "retrieval")
    if classes:
        (folder / "classnames.txt").write_text("\n".join(classes))
        (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthere is a {c} here")
    with tarfile.open(folder / split / "0.tar", "w") as archive:
        for number, (picture, text) in enumerate(samples):
            encoded = io.BytesIO()
            Image.fromarray(picture).save(encoded, "png")
            for end, data in (("png", encoded.getvalue()), ("cls" if classes else "txt", text.encode())):
                member = tarfile.TarInfo(f"{number:06}.{end}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def scenes(split, size):
    """Pictures that are not square, each with its captions: no caption of another one."""
    seen, samples = set(), []
    for example in Scenes(split, world="easy", image_size=48, size=3 * size):
        captions = [text for text in example["captions"] if text not in seen]
        if captions and len(samples) < size:
            seen.update(captions)
            samples.append((np.ascontiguousarray(example["image"][:40]), "\n".join(captions)))
    assert len(samples) == size
    return samples


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark")
    for split, size in (("train", 512), ("test", 256)):
        write_benchmark(root / "retrieval", split, scenes(split, size))
    names = [f"{color} {shape}" for color in ("red", "green", "blue", "yellow") for shape in ("circle", "square")]
    labeled = [(picture, str(k % len(names))) for k, (picture, _) in enumerate(scenes("test", 128))]
    write_benchmark(root / "classes", "test", labeled, classes=names)
    sections = tiny.sections(
        model=MODEL, steps=150, batch_size=32, optimizer__learning_rate=2e-3, log__every_steps=50,
        data__train={}, data__modalities=("image",),
        data__source={"name": "webdataset", "path": str(root / "retrieval"), "caption_lines": True},
        data__tokenizer={"name": "word", "clean": "lower"},
        eval={"every_steps": 150, "split": "test", "final_splits": ("test",), "final_tasks": ("retrieval",)},
        checkpoint__every_steps=150,
    )  # fmt: skip
    train(Experiment.from_dict(sections), workdir=root / "run")
    export_run(root / "run", root / "exported", format="open_clip")
    return root


def measure(root, data, task):
    """The metrics that the command line of CLIP_benchmark writes."""
    out = root / f"{task}.json"
    flags = {
        "dataset": f"wds/{data}", "dataset_root": root / data, "split": "test", "task": task, "num_workers": 0,
        "pretrained_model": f"local-dir:{root / 'exported'},", "output": out,
    }  # fmt: skip
    command = [sys.executable, "-c", "from clip_benchmark.cli import main; main()", "eval", "--no_amp"]
    command += [f"--{key}={value}" for key, value in flags.items()]
    if task == "zeroshot_retrieval":
        command += ["--recall_k", "1", "5", "10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())["metrics"]


def test_retrieval_is_the_same(run):
    theirs, ours = measure(run, "retrieval", "zeroshot_retrieval"), read_metrics(run / "run")[-1]
    assert ours["test/num_repeated_captions"] == ours["test/num_repeated_images"] == 0
    for k in (1, 5, 10):
        for direction, name in (("image_to_text", "text_retrieval"), ("text_to_image", "image_retrieval")):
            assert abs(ours[f"test/{direction}_R@{k}"] - theirs[f"{name}_recall@{k}"]) <= 1e-3
    assert theirs["text_retrieval_recall@10"] > 2 * 10 / 256  # it has learned


def test_zero_shot_classification_is_the_same(run):
    theirs = measure(run, "classes", "zeroshot_classification")
    config = json.loads((run / "run" / "config.json").read_text())
    config["data"]["evaluation"] = {"path": str(run / "classes")}
    (run / "run" / "config.json").write_text(json.dumps(config))
    model = open_model(str(run / "run"), options={})
    ours = model.evaluation.run(model.params, tasks=("zeroshot",), splits=("test",))
    pairs = {"acc@1": "acc1", "acc@5": "acc5", "mean_per_class": "mean_per_class_recall"}
    for mine, other in pairs.items():
        [value] = [v for key, v in ours.items() if key.endswith(f"/{mine}")]
        assert abs(value - theirs[other]) <= 1e-3
