"""Token ids are exchanged in a tokenizer's files and in the embeddings at once: texts keep their embeddings."""

import json

import numpy as np
import pytest
import tokenizers
import transformers

import mmjax
from mmjax.core.config import ConfigError
from mmjax.data import tokenizer as tokens
from mmjax.weights.export.folders import write_hugging_face
from mmjax.weights.export.token_ids import exchange_rows, exchange_tokens
from support import models_in_use

TEXTS = ["a red circle", "", "two dogs, <eos> and an unknown word", "a blue square left of a green ring " * 3]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_the_same_rows_of_the_table_are_looked_up(kind, tmp_path):
    own = tokens.load(kind, context_length=12, captions=["a red circle", "a blue square left of a green ring"])
    own.save(tmp_path / "own")
    last = own.vocab_size - 1
    exchange_tokens(tmp_path / "own", tmp_path / "other", own.eos_id, last)
    table = np.random.default_rng(0).normal(size=(own.vocab_size, 4))
    other = exchange_rows(table, own.eos_id, last)
    before = own(TEXTS)
    # Of the literal "<eos>" in a text only our own loader makes plain text.
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "other")
    texts = [text for text in TEXTS if "<eos>" not in text]
    after = np.array(theirs(texts, padding="max_length", truncation=True, max_length=12)["input_ids"])
    np.testing.assert_array_equal(other[after], table[own(texts)])
    ours = tokens.load(str(tmp_path / "other"), context_length=12)
    assert (ours.eos_id, ours.pad_id, ours.bos_id) == (last, own.pad_id, own.bos_id)
    np.testing.assert_array_equal(other[ours(TEXTS)], table[before])
    assert (before == own.eos_id).any() and not (ours(TEXTS) == own.eos_id)[:, 0].any()


def test_a_tokenizer_of_a_list_keeps_its_ids(tmp_path):
    """As SentencePiece's, whose vocabulary is a list in the order of the ids."""
    entries = [("<pad>", 0.0), ("<unk>", 0.0), ("</s>", 0.0), ("▁a", -1.0), ("▁dog", -2.0)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(entries, unk_id=1))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    backend.add_special_tokens(["</s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    (tmp_path / "own").mkdir()
    backend.save(str(tmp_path / "own/tokenizer.json"))
    exchange_tokens(tmp_path / "own", tmp_path / "other", 2, 4)
    changed = tokenizers.Tokenizer.from_file(str(tmp_path / "other/tokenizer.json"))
    assert changed.encode("a dog").ids == [3, 2, 4] and changed.encode("x").ids[-1] == 4


@pytest.mark.parametrize("damage", ["{", '{"model": {"vocab": 3}, "added_tokens": []}', "{}"])
def test_a_file_that_is_no_tokenizer_is_one_line(damage, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/tokenizer.json").write_text(damage)
    with pytest.raises(ConfigError, match=r"tokenizer\.json: its ids cannot be exchanged"):
        exchange_tokens(tmp_path / "own", tmp_path / "other", 2, 4)


def test_ids_that_a_part_unknown_here_names_are_refused(tmp_path):
    own = tokens.load("word", context_length=12, captions=["a red circle"])
    own.save(tmp_path / "own")
    path = tmp_path / "own/tokenizer.json"
    section = json.loads(path.read_text())
    section["post_processor"] = {
        "type": "BertProcessing",
        "sep": ["<eos>", 2],
        "cls": ["<bos>", 1],
        "special_tokens": {},
    }
    path.write_text(json.dumps(section))
    with pytest.raises(ConfigError, match="a kind unknown here"):
        exchange_tokens(tmp_path / "own", tmp_path / "other", 2, own.vocab_size - 1)


def test_an_end_token_of_id_2_gets_another_id_for_transformers(tmp_path):
    (tmp_path / "hf").mkdir()
    plain = models_in_use.write(tmp_path / "plain", pool_type="eos")
    folder = models_in_use.write(tmp_path / "hf", pool_type="eos", writer=write_hugging_face)
    config = json.loads((folder / "config.json").read_text())["text_config"]
    assert config["eos_token_id"] == config["vocab_size"] - 1
    own, exported = (mmjax.load(f, batch_size=4).encode_text(models_in_use.CAPTIONS) for f in (plain, folder))
    np.testing.assert_array_equal(exported, own)
