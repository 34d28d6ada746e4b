"""The published files of questions and statements about pictures."""

import json

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.open_source import open_source
from mmjax.data.sample import Unreadable
from mmjax.data.sources.questions import Source
from mmjax.evals.common.host_batches import Embedded
from mmjax.evals.vqa import Evaluator
from support import tables

COCO = ["COCO_val2014_000000000042.jpg", "COCO_val2014_000000000007.jpg"]


@pytest.fixture
def folder(tmp_path):
    tables.write_images(tmp_path, [(f"val2014/{name}", tables.png(i), []) for i, name in enumerate(COCO)])
    tables.write_images(tmp_path, [(f"{name}.jpg", tables.png(i), []) for i, name in enumerate(("36979", "111"))])
    return tmp_path


def write_vqa(folder, **changes):
    asked = [(42, 420, "Is it red?"), (7, 70, "How many?"), (42, 421, "What is this?")]
    said = {420: ["yes"] * 6 + ["No "] * 4, 70: ["2"] * 10, 421: ["a dog"] + ["dog"] * 9}
    questions = [{"image_id": image, "question_id": number, "question": text} for image, number, text in asked]
    answers = []
    for (number, own), kind in zip(said.items(), ("yes/no", "number", "other"), strict=True):
        people = [{"answer": answer, "answer_id": i, "answer_confidence": "yes"} for i, answer in enumerate(own, 1)]
        most = max(set(own), key=own.count)
        entry = {"question_id": number, "multiple_choice_answer": most, "answers": people, "answer_type": kind}
        answers.append({"image_id": 0, "question_type": "is it", **entry})
    content = {"data_type": "mscoco", "data_subtype": "val2014", "questions": questions} | changes
    (folder / "questions.json").write_text(json.dumps(content))
    (folder / "annotations.json").write_text(json.dumps({"annotations": answers[::-1]}))
    return {"path": str(folder / "questions.json"), "image_root": str(folder / "val2014")}


def test_vqa_joins_questions_and_answers(folder):
    options = write_vqa(folder)
    source = Source("val", **options, annotations=str(folder / "annotations.json"))
    first, second, third = source
    assert first["captions"] == ["Is it red?"] and first["answer"] == "yes" and first["kind"] == "yes/no"
    assert first["answers"] == ["yes"] * 6 + ["no"] * 4 and second["answers"] == ["2"] * 10
    assert third["answer"] == "dog" and third["image"] == first["image"] == tables.png(0) != second["image"]
    assert first["id"] == third["id"] != second["id"] and source.rows_share_images
    assert source.column("answer").tolist() == ["yes", "2", "dog"]
    both = Source("val", **options, annotations=str(folder / "annotations.json"), answered=True)
    assert both[0]["captions"] == ["Question: Is it red? Answer: yes."] and both[0]["answer"] == "yes"
    with pytest.raises(Unreadable, match="no answer"):
        Source("test", **options, answered=True)[0]
    unanswered = Source("test", **options)[0]
    assert unanswered["captions"] == ["Is it red?"] and not {"answer", "answers", "kind"} & unanswered.keys()


def test_snli_ve_and_albefs_lists(folder):
    lines = [
        {"Flickr30K_ID": "36979", "sentence1": "…", "sentence2": "It is new.", "gold_label": "entailment"},
        {"Flickr30K_ID": 111, "sentence2": "It is not.", "gold_label": "neutral"},
        {"Flickr30K_ID": "36979", "gold_label": "neutral"},
    ]
    (folder / "snli_ve_dev.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nnot JSON\n")
    source = Source("val", path=str(folder / "snli_ve_dev.jsonl"))
    assert [(x["captions"], x["answer"]) for x in source] == [
        (["It is new."], "entailment"),
        (["It is not."], "neutral"),
    ]
    assert [reason for _, reason, _ in source.unreadable] == ["bad row", "bad row"]
    older = [{"Flikr30kID": "36979.jpg", **lines[0]}, {"Flikr30kID": "111.jpg", **lines[1]}, {"sentence2": "It is."}]
    for line in older:
        line.pop("Flickr30K_ID", None)
    (folder / "snli_ve_dev.jsonl").write_text("\n".join(map(json.dumps, older)))
    published = Source("val", path=str(folder / "snli_ve_dev.jsonl"))
    assert [example["image"] for example in published] == [example["image"] for example in source]
    assert "no Flickr30K_ID" in published.unreadable[0][2]
    entries = [
        {
            "image": "36979.jpg",
            "question": "Why?",
            "answer": ["so", "so", "why not"],
            "question_id": 1,
            "dataset": "vqa",
        },
        {"image": "111.jpg", "question": "Where?", "answer": "here"},
        {"image": "111.jpg", "sentence": "All is well.", "label": "contradiction"},
    ]
    (folder / "list.json").write_text(json.dumps(entries))
    source = open_source({"name": "questions", "path": str(folder / "list.json")}, split="train")
    assert [x["answer"] for x in source] == ["so", "here", "contradiction"]
    assert source[0]["answers"] == ["so", "so", "why not"] and "answers" not in source[2]


def test_what_is_no_such_file_is_named(folder):
    options = write_vqa(folder, questions=3)
    with pytest.raises(ConfigError, match=r"path='.*questions.json': no file of questions that is known"):
        Source("val", **options)
    (folder / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"annotations='.*broken.json': no JSON"):
        Source("val", **write_vqa(folder), annotations=str(folder / "broken.json"))
    with pytest.raises(ConfigError, match=r"annotations='.*questions.json': no file of VQA's answers"):
        Source("val", **write_vqa(folder), annotations=str(folder / "questions.json"))


def test_its_examples_are_what_the_evaluator_reads(folder):
    source = Source("val", **write_vqa(folder), annotations=str(folder / "annotations.json"))

    class Embedder:
        def read(self, source, *, key):
            return Embedded(None, list(source), np.arange(len(source)), [])

        def match(self, source, images, texts, numbers, *, head):
            return np.eye(3)[[0, 1, 2]] if images[0] == 0 else np.eye(3)[[1, 1, 1]]

    got = Evaluator(lambda split: source, answers=("yes", "2", "dog"))(Embedder())
    assert got["accuracy"] == 1 and got["accuracy_other"] == 1 and got["accuracy_other_image"] == pytest.approx(1 / 3)
