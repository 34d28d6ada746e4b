"""One trained model has one retrieval: by its run, and from exported folders alone in torch and in ONNX Runtime."""

import numpy as np
import pytest
from PIL import Image

from mmjax.evals.common.ranks import count_ranks
from mmjax.evals.retrieval import metrics
from mmjax.experiment import Experiment
from mmjax.runs.exporting import export_run
from mmjax.runs.metrics_file import read_metrics
from mmjax.train.data import open_split
from mmjax.train.loop import train
from support import tiny

LENGTH = 22
MODEL = {
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 2},
    "text_cfg": {"context_length": LENGTH, "vocab_size": None, "width": 32, "heads": 4, "layers": 2,
                 "pool_type": "eos"},
    "embed_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("retrieval") / "run"
    experiment = Experiment.from_dict(
        tiny.sections(
            model=MODEL, steps=20, optimizer__learning_rate=2e-3, checkpoint__every_steps=20,
            eval={"every_steps": 20, "split": "test", "final_splits": ("test",), "final_tasks": ("retrieval",)},
        )
    )  # fmt: skip
    train(experiment, workdir=workdir)
    return experiment, workdir


def with_transformers(folder, pictures, texts):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures, return_tensors="pt")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        out = model(input_ids=tokens["input_ids"], pixel_values=pixels["pixel_values"])
    return out.image_embeds.numpy(), out.text_embeds.numpy()


def with_open_clip(folder, pictures, texts):
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[parity]'", exc_type=Exception)
    torch = pytest.importorskip("torch")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    with torch.no_grad():
        images = model.eval().encode_image(torch.stack([transform(picture) for picture in pictures]), normalize=True)
        return images.numpy(), model.encode_text(tokens, normalize=True).numpy()


def with_onnx_runtime(folder, pictures, texts):
    onnxruntime, tokenizers = pytest.importorskip("onnxruntime"), pytest.importorskip("tokenizers")
    ids = [encoded.ids for encoded in tokenizers.Tokenizer.from_file(f"{folder}/tokenizer.json").encode_batch(texts)]
    inputs = {"image": {"pixels": np.stack([np.asarray(picture) for picture in pictures])},
              "text": {"tokens": np.array(ids, np.int32)}}  # fmt: skip
    images, texts = (
        onnxruntime.InferenceSession(f"{folder}/{name}.onnx").run(None, x)[0] for name, x in inputs.items()
    )
    return images, texts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "needs", "embed"),
    [
        ("hf", "torch", with_transformers),
        ("open_clip", "open_clip", with_open_clip),
        ("onnx", "jax2onnx", with_onnx_runtime),
    ],
)
def test_the_retrieval_of_a_run_is_that_of_its_folders(request, tmp_path, format, needs, embed):
    pytest.importorskip(needs, exc_type=Exception)
    experiment, workdir = request.getfixturevalue("run")
    export_run(workdir, tmp_path / "out", format=format)
    split = open_split(experiment, "test")
    examples = [split[index] for index in range(len(split))]
    number = {}
    own = [[number.setdefault(text, len(number)) for text in dict.fromkeys(each["captions"])] for each in examples]
    ids = np.array([each + [-1] * (max(map(len, own)) - len(each)) for each in own], np.int32)
    pictures = [Image.fromarray(each["image"]) for each in examples]
    images, texts = embed(str(tmp_path / "out"), pictures, list(number))
    theirs, ours = metrics(*count_ranks(images, ids, texts, np.arange(len(number)))), read_metrics(workdir)[-1]
    for name in ("image_to_text", "text_to_image"):
        for k in (1, 5, 10):
            assert abs(theirs[f"{name}_R@{k}"] - ours[f"test/{name}_R@{k}"]) <= 1e-4
    assert ours["test/rsum"] > 0
