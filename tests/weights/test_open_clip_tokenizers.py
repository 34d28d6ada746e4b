"""Texts become the same ids as in open_clip, from the folder of a model with its tokenizer."""

import json
import random

import numpy as np
import pytest

from mmjax.data import tokenizer as tokenizers
from mmjax.weights.open_pretrained import open_pretrained

WORDS = [
    "a", "an", "the", "red", "blue", "cat", "dog", "on", "of", "two", "##s", "##ing", "play", "run", "##ning", "&", "<",
    ">", ";", ",", ".", "!", "'", '"', "-", "_", "amp", "2", "3", "é", "##é",
]  # fmt: skip
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
SPECIALS = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = list(dict.fromkeys([*SPECIALS, *LETTERS, *WORDS]))
TEXTS = [
    "", "a red cat", "The DOGS are playing, two of them!", "a_b &amp;amp; c &lt;d&gt;", "cafÃ© cafe\u0301 naïve",
    "日本 🙂", "a\tb\n c\u00a0d", "running " * 40, "x" * 300, "\ufb01ne \u2019quoted\u201d", "'s n't", "[SEP",
    "it's 22.5% - ok?",
]  # fmt: skip
PIECES = [
    "red", "cat", "dogs", "é", "É", "&amp;", "&lt;", "\u2019", "\u201c", ".", ",", "!", "_", "-", "'", "日", "🙂",
    "running", "12", "Ab", "\t", "Ã©", "\ufb01", "#", "##",
]  # fmt: skip
CHOOSE = random.Random(0)
TEXTS += ["".join(CHOOSE.choice(["", " "]) + CHOOSE.choice(PIECES) for _ in range(k % 24)) for k in range(300)]


def folder_of_bert(folder, **text):
    """A model of open_clip without weights, with BERT's tokenizer and a vocabulary of its own."""
    text = {"context_length": 32, "vocab_size": 200, "width": 8, "heads": 2, "layers": 1, **text}
    section = {"embed_dim": 8, "vision_cfg": {"width": 64, "layers": 1}, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": section}))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    np.savez(folder / "open_clip_pytorch_model.bin.npz", x=np.zeros(1))
    (folder / "open_clip_pytorch_model.bin.npz").rename(folder / "open_clip_pytorch_model.bin")
    return folder


def ours(folder):
    """The tokenizer that a run from this folder gets."""
    pretrained = open_pretrained(str(folder))
    text = pretrained.config.text_cfg
    options = tokenizers.published_options(
        pretrained.tokenizer, clean=text.tokenizer_clean, strip_sep=text.tokenizer_strip_sep
    )
    return tokenizers.load(pretrained.tokenizer, context_length=text.context_length, **options)


@pytest.mark.parametrize(
    "options", [{}, {"strip_sep_token": True}, {"clean": "canonicalize"}, {"clean": "lower", "strip_sep_token": True}]
)
def test_berts_tokenizer_in_an_open_clip_folder(tmp_path, options):
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[parity]'", exc_type=Exception)
    folder = folder_of_bert(tmp_path, hf_tokenizer_name="bert-base-uncased", tokenizer_kwargs=options, pool_type="last")
    theirs = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS).numpy()
    mine = ours(folder)
    np.testing.assert_array_equal(mine(TEXTS), theirs)
    assert (VOCABULARY.index("[SEP]") in theirs) == ("strip_sep_token" not in options)
    mine.save(tmp_path / "saved")
    again = tokenizers.load(str(tmp_path / "saved"), context_length=32)
    np.testing.assert_array_equal(again(TEXTS), theirs)


def test_clips_own_tokenizer_cleans_texts_whichever_files_hold_it(tmp_path):
    """open_clip reads its own list of merges where a model names no tokenizer, whatever lies in the folder."""
    open_clip = pytest.importorskip("open_clip", reason="pip install -e '.[parity]'", exc_type=Exception)
    simple = open_clip.get_tokenizer("ViT-B-32")
    folder = folder_of_bert(tmp_path)
    specials = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}  # transformers' names
    ids = {specials.get(token, token): index for token, index in simple.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(ids))
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    theirs = simple(TEXTS, context_length=32).numpy()
    mine = ours(folder)(TEXTS)
    ends = theirs.argmax(axis=1)
    np.testing.assert_array_equal(mine.argmax(axis=1), ends)
    read = np.arange(32) <= ends[:, None]  # they pad with different ids, which no model reads
    np.testing.assert_array_equal(np.where(read, mine, 0), np.where(read, theirs, 0))
