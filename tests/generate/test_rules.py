"""The backend without models."""

import pytest

from mmjax.core.config import ConfigError
from mmjax.generate.backend import Decoding, Failure, TextRequest
from mmjax.generate.backends import rules
from support import generating

DECODING = Decoding(n=2)


def written(task, caption, seed=0):
    (replies,) = rules.Writer().write([TextRequest((), task, {"caption": caption})], DECODING, [seed])
    return replies


def test_rewrites_keep_the_words_and_depend_on_the_seed_alone():
    texts = {text for seed in range(20) for text in written("laclip_rewrite", "a cat and a dog.", seed)}
    assert len(texts) > 6 and all({"cat", "dog"} <= set(text.replace(",", "").split()) for text in texts)
    assert written("laclip_rewrite", "a cat", 3) == written("laclip_rewrite", "a cat", 3)


def test_changes_exchange_a_word_of_a_list():
    for text in written("promptmix_modify", "a red car"):
        assert text != "a red car" and text.endswith(" car")
    for task, caption in (("promptmix_modify", "xyzzy"), ("alia_domains", "a cat"), ("laclip_rewrite", " ")):
        assert isinstance(written(task, caption), Failure)


def test_names_are_those_of_a_list_or_capitals_inside_a_sentence(tmp_path):
    def names(tagger, text):
        (entities,) = tagger.entities([text])
        return [(text[e.start : e.end], e.kind) for e in entities]

    assert names(rules.EntityTagger(), "I think that Ada Lovelace met Bob. Then it rained") == [
        ("Ada Lovelace", "PERSON"), ("Bob", "PERSON"),
    ]  # fmt: skip
    assert names(rules.EntityTagger(), "Ada Lovelace slept") == [("Ada Lovelace", "PERSON")]
    (tmp_path / "n.tsv").write_text("name\tkind\nParis\tPLACE\nNew Paris\tPLACE\nada\t\n")
    listed = rules.EntityTagger(path=str(tmp_path / "n.tsv"))
    assert names(listed, "New Paris, ada and Parisians") == [("New Paris", "PLACE"), ("ada", "PERSON")]
    filler = rules.MaskFiller(path=str(tmp_path / "n.tsv"))
    (text,) = filler.fill(["[MASK] met [MASK]"], 2.0, [1])
    assert set(text.split()) <= {"Paris", "ada", "met"}
    (tmp_path / "empty.tsv").write_text("kind\nPLACE\n")
    for make in (lambda: rules.MaskFiller(), lambda: rules.EntityTagger(path=str(tmp_path / "empty.tsv"))):
        with pytest.raises(ConfigError, match=r"names=\(\)|holds no names"):
            make()


def test_a_recipe_runs_without_models():
    made = generating.make_records((("rewrite", {"demos": ("plain",)}),), {"writer": {"name": "rules"}})
    assert all(one.keep and one.captions[-1]["source"] == "rewrite" for one in made)
