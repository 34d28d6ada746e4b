"""Hard negatives that other models make, with models that need no weights."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmjax import cli
from mmjax.data.negatives import swaps
from mmjax.data.sample import Unreadable
from mmjax.generate.backend import Entity, Picture
from mmjax.generate.negatives.edits import EditMaker
from mmjax.generate.negatives.entities import EntityMaker, mask_spans
from mmjax.generate.negatives.fills import FillMaker
from mmjax.generate.negatives.makers import CaptionedExample
from support import fake_models
from support.model_service import reply, serve
from support.pictures import encoded, photograph

FAKE = "support.fake_models:x"
TAGS = {"a": "DT", "the": "DT", "red": "JJ", "runs": "VBZ", "is": "VBZ", "on": "IN", ".": "."}


def find_tags(tokens):
    return [(token, TAGS.get(token, "NN")) for token in tokens]


def examples(*captions):
    return [CaptionedExample(place, f"k{place}", [caption]) for place, caption in enumerate(captions)]


def pairs(rows):
    return [(row["kind"], row["caption"], row["negative"]) for row in rows]


class TestFills:
    def maker(self, **options):
        return FillMaker(fake_models.MaskFiller(), find_tags, seed=0, **options)

    def test_one_word_of_a_kind_is_another(self):
        rows = self.maker().rows(examples("a red cat runs on the mat", "a cat is", ""))
        kinds = [(row["key"], row["kind"]) for row in rows]
        assert kinds == [("k0", f"fill_{k}") for k in ("noun", "adjective", "verb", "preposition")] + [
            ("k1", "fill_noun")
        ]
        for row in rows:
            true, false = row["caption"].split(), row["negative"].split()
            assert len(true) == len(false) and sum(a != b for a, b in zip(true, false, strict=True)) == 1
            assert row["method"] == "mlm" and row["valid"] is True

    def test_it_is_tried_until_the_word_is_another_and_goes_with_its_article(self):
        owls = examples(*["a owl"] * 40)
        owls = [example._replace(key=f"other{i}") for i, example in enumerate(owls)]
        one = self.maker(tries=1, kinds=("noun",)).rows(owls)
        many = self.maker(tries=40, kinds=("noun",)).rows(owls)
        assert len(one) < len(many) == 40 and all(
            row["negative"] == "a owl" or "owl" not in row["negative"] for row in many
        )

    def test_an_example_does_not_depend_on_its_batch_and_failures_are_counted(self):
        several = examples("a red cat", "a cat that will fail", "the mat")
        maker = self.maker()
        together = maker.rows(several)
        assert pairs(together) == pairs([row for one in several for row in self.maker().rows([one])])
        assert maker.failures["out of memory"] > 0 and {row["key"] for row in together} == {"k0", "k2"}
        assert self.maker().rows(examples("a [MASK] cat")) == []


class TestEntities:
    def maker(self, **options):
        return EntityMaker(fake_models.EntityTagger(), fake_models.MaskFiller(), seed=0, **options)

    def test_names_become_one_word_and_all_else_stays(self):
        (row,) = self.maker().rows(examples("a talk of Ada Lovelace in Paris at noon"))
        assert row["kind"] == "entity_person" and row["method"] == "entity"
        new = row["negative"].removeprefix("a talk of ").removesuffix(" in Paris at noon")
        assert new in fake_models.WORDS
        (row,) = self.maker(kinds=("GPE", "PERSON"), budget=1).rows(examples("of Ada in Paris"))
        assert row["kind"] == "entity_gpe+person" and row["negative"].startswith("of ")

    def test_the_budget_limits_what_is_replaced(self):
        caption = "so Maximilian and Bob meet"
        for budget, count in ((1.0, 2), (0.3, 1), (0.0, 0)):
            models = fake_models.EntityTagger(), fake_models.MaskFiller()
            makers = [EntityMaker(*models, seed=seed, budget=budget) for seed in range(12)]
            rows = [row for maker in makers for row in maker.rows(examples(caption))]
            assert bool(rows) == (count > 0)
            if count == 1:  # the long name is ten of 26 characters
                assert all("Maximilian" in row["negative"] and "Bob" not in row["negative"] for row in rows)

    def test_the_score_must_fall(self):
        several = [example._replace(key=f"{i}") for i, example in enumerate(examples(*["a talk by Eve"] * 60))]
        options = {"picture": lambda place: Picture(np.zeros((2, 2, 3), np.uint8)), "scorer": fake_models.Scorer()}
        assert any("owl" in row["negative"] for row in self.maker().rows(several))
        judged = self.maker(**options).rows(several)
        assert judged and not any("owl" in row["negative"] for row in judged)

        def broken(place):
            raise Unreadable("truncated image")

        maker = self.maker(**options | {"picture": broken})
        assert maker.rows(several) == [] and maker.failures == {"the picture is unreadable: truncated image": 60}

    def test_failures_and_spans(self):
        maker = self.maker()
        assert maker.rows(examples("a broken Bob")) == [] and maker.failures == {"no text": 1}
        assert mask_spans("A and Bo", [Entity(0, 1, "X"), Entity(6, 8, "X")]) == "[MASK] and [MASK]"


class TestEdits:
    def test_every_kind_is_a_row_and_what_is_empty_is_none(self):
        maker = EditMaker(fake_models.Writer(), seed=0)
        rows = maker.rows(examples("a red cat", "a broken cat"))
        assert pairs(rows) == [(f"edit_{k}", "a red cat", f"{k} of red cat") for k in ("object", "attribute", "action")]
        assert maker.failures == {"the reply is no JSON": 1}

    def test_the_prompt_says_what_is_wanted(self):
        asked = []

        class Writer(fake_models.Writer):
            def write(self, requests, *rest):
                asked.extend(requests)
                return super().write(requests, *rest)

        EditMaker(Writer(), ("color",), seed=0).rows(examples("a red cat"))
        text = asked[0].messages[-1].text
        assert "a red cat" in text and "color" in text and asked[0].messages[0].role == "system"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "pairs.csv").write_text(
        "filepath,title\n" + "".join(f"{i}.jpg,a talk by Eve on the mat {i}\n" for i in range(20))
    )
    for i in range(20):
        (folder / f"{i}.jpg").write_bytes(encoded(photograph(8, 8, seed=i)))
    return folder


def run(data, output, *flags):
    return cli.main(["data", "negatives", f"--path={data / 'pairs.csv'}", f"--output={output}", *flags])


@pytest.mark.parametrize(
    "flags",
    [
        ("--method=mlm", f"--filler={FAKE}", "--kinds=noun", "--tries=9"),
        ("--method=entity", f"--filler={FAKE}", f"--tagger={FAKE}", f"--scorer={FAKE}"),
        ("--method=llm", f"--writer={FAKE}", "--kinds=object,relation", "--model-option=writer.batch_size=3"),
    ],
)  # fmt: skip
def test_the_command_writes_the_table(data, tmp_path, capsys, monkeypatch, flags):
    monkeypatch.setattr(swaps, "tagger", lambda *_: find_tags)
    output = tmp_path / "n.parquet"
    assert run(data, output, *flags) == 0
    rows = pq.read_table(output).to_pylist()
    assert len(rows) == 20 and "20 negatives of 20 captions" in capsys.readouterr().out
    assert {row["method"] for row in rows} == {flags[0].removeprefix("--method=")}
    plan = json.loads((tmp_path / "n.parquet.json").read_text())["plan"]
    assert plan["models"] and "batch_size" not in json.dumps(plan["models"])
    before = output.read_bytes()
    output.unlink()
    monkeypatch.setattr("mmjax.commands.data_negatives._BATCH", 3)
    assert run(data, output, *flags) == 0 and output.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--method=mlm",), "--filler is missing: --method=mlm asks a model; name it as BACKEND:MODEL"),
        (("--method=rules", "--writer=openai:x"), "--writer=openai:x: --method=rules asks no such model; leave it out"),
        (("--method=swap", "--tries=3"), "--tries=3: --method=swap does not use it; leave it out"),
        (("--method=llm", "--writer=openai"), "--writer=openai: expected BACKEND:MODEL"),
        (("--method=llm", "--writer=nothing:x"), "--writer.name='nothing'"),
        (
            ("--method=llm", f"--writer={FAKE}", "--prompt=none.txt"),
            "prompt='none.txt': neither a prompt",
        ),
        (("--method=llm", f"--writer={FAKE}", "--model-option=writer=3"), "expected ROLE.KEY=VALUE"),
        (("--method=llm", f"--writer={FAKE}", "--model-option=writer.speed=3"), "--writer.speed"),
    ],
)
def test_a_mistake_is_one_line(data, tmp_path, flags, message, capsys):
    assert run(data, tmp_path / "n.parquet", *flags) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_unknown_kinds_of_fills_are_refused(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(swaps, "tagger", lambda *_: find_tags)
    assert run(data, tmp_path / "n.csv", "--method=mlm", f"--filler={FAKE}", "--kinds=color") != 0
    assert "--kinds='color'" in capsys.readouterr().err


def test_a_service_writes_them(data, tmp_path, capsys):
    def answer(path, asked, number):
        text = asked["messages"][-1]["content"]
        caption = text.partition("True caption: ")[2].partition("\n")[0]
        assert path.endswith("/chat/completions") and asked["response_format"]["json_schema"]["schema"]["required"]
        if caption.endswith(" 3"):
            return reply('{"object": 3}')
        return reply(json.dumps({"object": caption.replace("mat", "roof"), "relation": caption}))

    output = tmp_path / "n.jsonl"
    with serve(answer) as server:
        flags = [
            "--writer=openai:m",
            f"--url={server.url}",
            "--kinds=object,relation",
            "--model-option=writer.cache=None",
        ]
        assert run(data, output, "--method=llm", *flags) == 0
        assert len(server.requests) == 20
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 19 and {row["kind"] for row in rows} == {"edit_object"}  # what repeats the caption is none
    assert all(row["negative"] == row["caption"].replace("mat", "roof") for row in rows)
    assert "failed: 1 (the reply does not follow the schema" in capsys.readouterr().out
