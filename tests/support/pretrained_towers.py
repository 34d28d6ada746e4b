"""Very small towers as others publish them: an image tower of augreg, and DistilBERT with its tokenizer."""

import json

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, normalizers, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "picture", "number", "the", "of", "them", *map(str, range(10)),
         *(f"##{digit}" for digit in range(10))]  # fmt: skip


def write_augreg(path, *, width=32, layers=2, heads=2, patch=8, grid=4, classes=5):
    """The arrays of ``gs://vit_models/augreg``, with random numbers; returns them."""
    hidden, head = 4 * width, width // heads
    shapes = {
        "cls": (1, 1, width), "embedding/kernel": (patch, patch, 3, width), "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, grid**2 + 1, width),
        "Transformer/encoder_norm/scale": (width,), "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, classes), "head/bias": (classes,),
    }  # fmt: skip
    for k in range(layers):
        block = f"Transformer/encoderblock_{k}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        for name in ("query", "key", "value"):
            shapes |= {f"{attention}/{name}/kernel": (width, heads, head), f"{attention}/{name}/bias": (heads, head)}
        shapes |= {f"{attention}/out/kernel": (heads, head, width), f"{attention}/out/bias": (width,)}
        shapes |= {f"{mlp}/Dense_0/kernel": (width, hidden), f"{mlp}/Dense_0/bias": (hidden,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (hidden, width), f"{mlp}/Dense_1/bias": (width,)}
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/scale": (width,), f"{block}/{norm}/bias": (width,)}
    arrays = _random(shapes)
    np.savez(path, **arrays)
    return arrays


def write_distilbert(folder, *, width=32, layers=2, heads=2, positions=40):
    """A folder as ``DistilBertModel.save_pretrained`` and its tokenizer write it; returns the tensors."""
    hidden = 4 * width
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (positions, width),
        "embeddings.LayerNorm.weight": (width,), "embeddings.LayerNorm.bias": (width,),
    }  # fmt: skip
    for k in range(layers):
        layer = f"transformer.layer.{k}"
        sizes = {f"attention.{name}_lin": (width, width) for name in ("q", "k", "v", "out")}
        sizes |= {"ffn.lin1": (hidden, width), "ffn.lin2": (width, hidden)}
        for name, size in sizes.items():
            shapes |= {f"{layer}.{name}.weight": size, f"{layer}.{name}.bias": size[:1]}
        for norm in ("sa_layer_norm", "output_layer_norm"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
    tensors = _random(shapes)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sizes = {"dim": width, "hidden_dim": hidden, "n_layers": layers, "n_heads": heads}
    config = {"model_type": "distilbert", "vocab_size": len(WORDS), "max_position_embeddings": positions, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    specials = [("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))]
    backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    backend.save(str(folder / "tokenizer.json"))
    special = {f"{kind}_token": f"[{kind.upper()}]" for kind in ("pad", "unk", "cls", "sep", "mask")}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": positions, **special})
    )
    return tensors


def _random(shapes):
    numbers = np.random.default_rng(0)
    return {
        name: (numbers.normal(1 if len(shape) == 1 and "bias" not in name else 0, 0.1, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
