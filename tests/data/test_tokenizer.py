import gzip
import json
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from mmjax.core.config import ConfigError
from mmjax.data import tokenizer
from mmjax.data.tokenizer import load

CAPTIONS = [
    "a red circle above a blue square",
    "A large GREEN star, in front of a small ring",
    "there is a big red diamond and a striped cyan cross",
    "naïve café 日本 ☃",
    "the cat's 2 hats",
]
ODD = [
    "",
    " ",
    "🙂🙃",
    "<eos> <bos><pad>",
    "<|endoftext|> dog",
    "xylophone quartz",
    "日本語",
    "red " * 200,
    "a\nb\tc\x00",
]
TRAINED = ["word", "bpe"]


def trained(name, *, context_length=16, captions=CAPTIONS, vocab_size=400):
    return load(name, context_length=context_length, captions=captions, vocab_size=vocab_size)


def assert_framed(ids, tok):
    """BOS? body EOS pad*, with nothing special inside the body."""
    assert ids.dtype == np.int32 and ids.shape[1:] == (tok.context_length,)
    assert (ids >= 0).all() and (ids < tok.vocab_size).all()
    for row in ids.tolist():
        end = row.index(tok.eos_id)
        assert set(row[end + 1 :]) <= {tok.pad_id}
        body = row[:end]
        if tok.bos_id is not None:
            assert row[0] == tok.bos_id
            body = body[1:]
        assert not {tok.bos_id, tok.eos_id, tok.pad_id} & set(body)


@pytest.mark.parametrize("name", TRAINED)
class TestTrained:
    def test_texts_are_framed(self, name):
        tok = trained(name)
        ids = tok(CAPTIONS + ODD)
        assert ids.shape == (len(CAPTIONS + ODD), 16)
        assert_framed(ids, tok)
        assert len({tok.pad_id, tok.bos_id, tok.eos_id}) == 3
        np.testing.assert_array_equal(tok([""])[0], [tok.bos_id, tok.eos_id] + [tok.pad_id] * 14)

    @settings(max_examples=150)
    @given(text=st.text(max_size=60))
    def test_any_text_is_framed(self, name, text):
        tok = _shared(name)
        assert_framed(tok([text]), tok)

    def test_a_text_does_not_depend_on_its_neighbours(self, name):
        tok = trained(name)
        texts = CAPTIONS + ODD
        np.testing.assert_array_equal(tok(texts), np.concatenate([tok([t]) for t in texts]))
        assert tok([]).shape == (0, 16)

    def test_cutting_keeps_the_end_and_the_first_words(self, name):
        long, short = trained(name, context_length=64), trained(name, context_length=8)
        texts = [" ".join(CAPTIONS), "red " * 200]
        full, cut = long(texts), short(texts)
        np.testing.assert_array_equal(cut[:, :7], full[:, :7])
        np.testing.assert_array_equal(cut[:, 7], short.eos_id)

    def test_which_texts_are_truncated(self, name):
        tok = trained(name, context_length=12)
        texts = ["a red circle", "red " * 10, "red " * 11, "red " * 100]
        assert tok.is_truncated(texts).tolist() == [False, False, True, True]
        assert tok.is_truncated([]).tolist() == []

    def test_decoding_gives_the_text_back(self, name):
        tok = trained(name, context_length=64)
        texts = ["a red circle above a blue square", "naïve café 日本 ☃", ""]
        shown = [text.replace("日本", "日 本") if name == "word" else text for text in texts]
        assert tok.decode(tok(texts)) == shown
        cut = trained(name, context_length=5)
        assert cut.decode(cut(texts[:1])) == ["a red circle"]

    def test_the_vocabulary_depends_on_neither_order_nor_process(self, name, tmp_path):
        expected = trained(name, captions=CAPTIONS * 3)(CAPTIONS)
        for seed in range(5):
            shuffled = np.random.default_rng(seed).permutation(CAPTIONS * 3).tolist()
            np.testing.assert_array_equal(trained(name, captions=iter(shuffled))(CAPTIONS), expected)
        code = (
            "import json, sys; from mmjax.data.tokenizer import load; name, captions = json.load(sys.stdin);"
            "t = load(name, context_length=16, captions=captions * 3, vocab_size=400);"
            "print(t(captions).tolist(), 'transformers' in sys.modules, 'jax' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps([name, CAPTIONS]), env=os.environ | {"PYTHONHASHSEED": "7"},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == f"{expected.tolist()} False False"

    def test_saving_and_loading(self, name, tmp_path):
        tok = trained(name)
        tok.save(tmp_path / "run" / "tokenizer")
        again = load(str(tmp_path / "run" / "tokenizer"), context_length=16)
        assert_same(again, tok, CAPTIONS + ODD)
        shorter = load(str(tmp_path / "run" / "tokenizer"), context_length=6)
        np.testing.assert_array_equal(shorter(["a"]), tok(["a"])[:, :6])

    def test_transformers_reads_what_was_saved(self, name, tmp_path):
        from transformers import AutoTokenizer

        tok = trained(name)
        tok.save(tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        texts = [*CAPTIONS, "", "🙂🙃", "red " * 200]
        np.testing.assert_array_equal(padded(theirs, texts, 16), tok(texts))
        assert (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id) == (tok.pad_id, tok.bos_id, tok.eos_id)
        assert theirs.model_max_length == 16 and len(theirs) == tok.vocab_size

    def test_pickling_changes_nothing(self, name):
        tok = trained(name)
        assert_same(pickle.loads(pickle.dumps(tok)), tok, CAPTIONS + ODD)

    def test_errors(self, name):
        with pytest.raises(ConfigError, match=f"tokenizer='{name}' is trained and needs captions"):
            load(name, context_length=8)
        for empty in ([], [""], ["   "]):
            with pytest.raises(ConfigError, match="no words"):
                trained(name, captions=empty)
        with pytest.raises(ConfigError, match=r"vocab_size=4: .* at least"):
            trained(name, vocab_size=4)
        for length in (0, 2):
            with pytest.raises(ConfigError, match=f"context_length={length}: .* at least 3"):
                trained(name, context_length=length)
        assert trained(name, context_length=3)(["red red"]).shape == (1, 3)
        with pytest.raises(TypeError, match="one string"):
            trained(name)("a red circle")


_TOKENIZERS: dict = {}


def _shared(name):
    return _TOKENIZERS.setdefault(name, trained(name))


def assert_same(a, b, texts):
    np.testing.assert_array_equal(a(texts), b(texts))
    assert a.decode(a(texts)) == b.decode(b(texts))
    for field in ("vocab_size", "context_length", "pad_id", "bos_id", "eos_id"):
        assert getattr(a, field) == getattr(b, field), field


def padded(theirs, texts, length):
    return np.array(theirs(texts, padding="max_length", truncation=True, max_length=length)["input_ids"])


class TestWord:
    def test_frequent_words_come_first_and_case_does_not_matter(self):
        tok = trained("word")
        assert tok(["a red"])[0, 1:3].tolist() == [4, 5]
        np.testing.assert_array_equal(tok(["A Red, STAR"]), tok(["a red , star"]))

    def test_unknown_words_share_one_id(self):
        tok = trained("word")
        ids = tok(["xylophone red quartz"])[0]
        assert ids[1] == ids[3] != ids[2]
        assert tok.decode(ids[None]) == ["<unk> red <unk>"]

    def test_the_vocabulary_holds_the_most_frequent_words(self):
        tok = load("word", context_length=8, captions=["a a a b b c"], vocab_size=6)
        assert tok.vocab_size == 6
        assert tok.decode(tok(["a b c"])) == ["a b <unk>"]


class TestBpe:
    def test_nothing_is_unknown(self):
        tok = trained("bpe", context_length=80)
        texts = ["xylophone quartz", "🙂🙃", "<eos> <bos><pad>", "日本語"]
        assert tok.decode(tok(texts)) == texts

    def test_frequent_words_become_one_token(self):
        tok = trained("bpe", captions=["red circle"] * 50, vocab_size=300)
        assert (tok(["red circle"])[0] == tok.eos_id).argmax() == 3

    def test_the_size_is_kept(self):
        assert trained("bpe", vocab_size=280).vocab_size == 280


def write_hf_folder(folder, *, specials, template, eos="</s>", **settings):
    """A Hugging Face tokenizer folder of a given frame, with words for tokens."""
    words = [*specials, "a", "dog", "cat", "<unk>"]
    backend = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.normalizer = normalizers.Lowercase()
    backend.add_special_tokens(list(specials))
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(s, i) for i, s in enumerate(specials)]
        )
    backend.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": eos} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in named.items() if v is not None}))


class TestFrames:
    def check(self, folder, expected, *, bos, eos, pad):
        tok = load(str(folder), context_length=6)
        assert (tok.bos_id, tok.eos_id, tok.pad_id) == (bos, eos, pad)
        np.testing.assert_array_equal(tok(["a DOG", "a a a a a a a"]), expected)
        assert tok.decode(tok(["a dog"])) == ["a dog"]
        assert_framed(tok([*CAPTIONS, *ODD]), tok)
        tok.save(folder / "saved")
        again = load(str(folder / "saved"), context_length=6)
        assert_same(again, tok, CAPTIONS + ODD)

    def test_no_start_token_and_padding_with_the_end(self, tmp_path):
        write_hf_folder(tmp_path, specials=["<p>", "</s>"], template="$A </s>", pad_token="</s>")
        self.check(tmp_path, [[2, 3, 1, 1, 1, 1], [2, 2, 2, 2, 2, 1]], bos=None, eos=1, pad=1)

    def test_cls_and_sep(self, tmp_path):
        write_hf_folder(
            tmp_path, specials=["[PAD]", "[CLS]", "[SEP]"], template="[CLS] $A [SEP]", eos=None, pad_token="[PAD]",
            cls_token="[CLS]", sep_token="[SEP]",
        )  # fmt: skip
        self.check(tmp_path, [[1, 3, 4, 2, 0, 0], [1, 3, 3, 3, 3, 2]], bos=1, eos=2, pad=0)

    def test_a_frame_without_end_gets_one(self, tmp_path):
        write_hf_folder(tmp_path, specials=["<s>", "</s>"], template="<s> $A", bos_token="<s>")
        self.check(tmp_path, [[0, 2, 3, 1, 1, 1], [0, 2, 2, 2, 2, 1]], bos=0, eos=1, pad=1)

    def test_no_frame_at_all(self, tmp_path):
        write_hf_folder(tmp_path, specials=["<p>", "</s>"], template=None, pad_token="<p>")
        self.check(tmp_path, [[2, 3, 1, 0, 0, 0], [2, 2, 2, 2, 2, 1]], bos=None, eos=1, pad=0)

    def test_one_token_that_both_starts_and_ends(self, tmp_path):
        write_hf_folder(tmp_path, specials=["</s>"], template="</s> $A </s>", bos_token="</s>")
        tok = load(str(tmp_path), context_length=6)
        assert (tok.bos_id, tok.eos_id, tok.pad_id) == (0, 0, 0)
        assert tok(["a dog"]).tolist() == [[0, 1, 2, 0, 0, 0]]

    def test_no_end_token(self, tmp_path):
        write_hf_folder(tmp_path, specials=["<p>"], template=None, eos=None, pad_token="<p>")
        with pytest.raises(ConfigError, match="no end-of-text token"):
            load(str(tmp_path), context_length=6)

    def test_a_longer_frame(self, tmp_path):
        write_hf_folder(tmp_path, specials=["<s>", "<en>", "</s>"], template="<s> <en> $A </s>", bos_token="<s>")
        with pytest.raises(ConfigError, match="3 special tokens"):
            load(str(tmp_path), context_length=6)


class TestNames:
    @pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "clip", "./nothing", "/nothing/here", "a/b/c"])
    def test_what_is_not_there_is_one_line(self, name):
        with pytest.raises(ConfigError, match="no such folder") as caught:
            load(name, context_length=77)
        assert "\n" not in str(caught.value) and caught.value.__suppress_context__ | (caught.value.__context__ is None)

    def test_without_a_network_the_answer_is_quick(self, monkeypatch):
        import huggingface_hub

        def unreachable(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
        with pytest.raises(ConfigError, match=r"hub cannot be reached.*save it to a folder"):
            load("owner/name", context_length=8)

    def test_a_hub_name_in_the_cache_needs_no_network(self, tmp_path):
        snapshot = tmp_path / "hub" / "models--owner--name" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("abc")
        write_hf_folder(snapshot, specials=["<p>", "</s>"], template="$A </s>", pad_token="<p>")
        code = "from mmjax.data.tokenizer import load; print(load('owner/name', context_length=4)(['a dog']).tolist())"
        environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30, check=True
        )
        assert done.stdout.strip() == "[[2, 3, 1, 0]]" and "PyTorch" not in done.stderr

    def test_damaged_folders(self, tmp_path):
        with pytest.raises(ConfigError, match="cannot be loaded"):
            load(str(tmp_path), context_length=8)
        trained("word").save(tmp_path)
        (tmp_path / "tokenizer_config.json").write_text("{")
        with pytest.raises(ConfigError, match="not JSON"):
            load(str(tmp_path), context_length=8)
        trained("word").save(tmp_path)
        (tmp_path / "tokenizer.json").write_text('{"model": ')
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            load(str(tmp_path), context_length=8)
        (tmp_path / "tokenizer.json").unlink()
        with pytest.raises(ConfigError, match=r"tokenizer\.json"):
            load(str(tmp_path), context_length=8)


def clip_merges():
    """The merges of OpenAI's CLIP, where a copy lies: named by MMJAX_CLIP_VOCABULARY or in a shared/data above."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    places = [pathlib.Path(os.environ.get("MMJAX_CLIP_VOCABULARY", name))]
    places += [folder / "shared" / "data" / name for folder in pathlib.Path(tokenizer.__file__).resolve().parents]
    return next((place for place in places if place.is_file()), None)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    with gzip.open(clip_merges(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1:48895]
    # Byte-level BPE writes printable bytes as themselves and the others as the characters from 256 on; the ids
    # go in that order.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    tokens = [*letters, *(c + "</w>" for c in letters), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


@pytest.mark.skipif(clip_merges() is None, reason="needs bpe_simple_vocab_16e6.txt.gz; see clip_merges")
class TestClip:
    def test_the_ids_are_the_published_ones(self, clip_folder):
        tok = load(str(clip_folder), context_length=77)
        assert (tok.vocab_size, tok.bos_id, tok.eos_id, tok.pad_id) == (49408, 49406, 49407, 49407)
        ids = tok(["a diagram", "a dog", "a cat", "hello world!"])
        assert ids.shape == (4, 77)
        assert ids[0, :4].tolist() == [49406, 320, 22697, 49407]
        assert ids[1, :4].tolist() == [49406, 320, 1929, 49407]
        assert ids[2, :4].tolist() == [49406, 320, 2368, 49407]
        assert ids[3, :5].tolist() == [49406, 3306, 1002, 256, 49407]
        assert (ids[:, 5:] == 49407).all()

    def test_it_equals_transformers_and_survives_saving(self, clip_folder, tmp_path):
        from transformers import AutoTokenizer

        tok = load(str(clip_folder), context_length=20)
        texts = [*CAPTIONS, "", "🙂🙃", "red " * 200, "It's  spaced\tout"]
        theirs = padded(AutoTokenizer.from_pretrained(clip_folder), texts, 20)
        np.testing.assert_array_equal(tok(texts), theirs)
        tok.save(tmp_path)
        assert_same(load(str(tmp_path), context_length=20), tok, texts + ODD)
        np.testing.assert_array_equal(padded(AutoTokenizer.from_pretrained(tmp_path), texts, 20), theirs)
        assert_framed(tok(["a <|endoftext|> b <|startoftext|>"]), tok)

    def test_decoding(self, clip_folder):
        tok = load(str(clip_folder), context_length=20)
        texts = ["a red circle above a blue square", "naïve café 日本 🙂"]
        assert tok.decode(tok(texts)) == texts


@pytest.mark.parametrize("name, meant", [("wrod", "word"), ("bep", "bpe"), ("Word", "word")])
def test_a_misspelled_name_is_corrected_before_the_hub_is_asked(name, meant, monkeypatch):
    monkeypatch.setattr(tokenizer, "_is_cached_or_on_hub", lambda name: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match=f"tokenizer='{name}': .*did you mean '{meant}'"):
        load(name, context_length=8, captions=CAPTIONS)


def test_a_separator_is_written_as_id_0(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "cat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    kept, stripped = (load(str(tmp_path), context_length=6, strip_sep=strip) for strip in (False, True))
    texts = ["a red cat", "", "a red cat a red cat"]
    assert kept(texts).tolist() == [[2, 5, 6, 7, 3, 0], [2, 3, 0, 0, 0, 0], [2, 5, 6, 7, 5, 3]]
    assert stripped(texts).tolist() == [[2, 5, 6, 7, 0, 0], [2, 0, 0, 0, 0, 0], [2, 5, 6, 7, 5, 0]]
    assert stripped.decode(stripped(texts)) == kept.decode(kept(texts))
    kept.save(tmp_path / "saved")
    for name in ("word", str(tmp_path / "saved")):
        with pytest.raises(ConfigError, match=r"strip_sep=True: .* writes no separator"):
            load(name, context_length=6, captions=CAPTIONS, strip_sep=True)


def test_words_of_chinese_and_japanese_are_characters_and_unknown_ones_are_counted():
    words = load("word", context_length=12, captions=["a red cat", "红色的猫", "ねこ"])
    assert words.decode(words(["猫的红色"])) == ["猫 的 红 色"]
    assert words.unknown_fraction(["a red dog", "猫狗"]) == pytest.approx(2 / 5)
    assert load("bpe", context_length=12, captions=["a"], vocab_size=300).unknown_fraction(["狗"]) == 0
