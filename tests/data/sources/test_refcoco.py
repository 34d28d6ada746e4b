"""RefCOCO's files: expressions and boxes, and pickles that are refused."""

import json
import pickle

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.data.eval_view import EvalView, make_eval_chain
from mmjax.data.sources.refcoco import Source
from support import tables

SENTENCES = {
    1: ("val", ["left man", " man in blue "]),
    2: ("testA", ["woman"]),
    3: ("testB", ["red cup", ""]),
    4: ("val", []),
}


@pytest.fixture
def folder(tmp_path):
    tables.write_images(tmp_path, [(f"train2014/{i}.jpg", tables.png(i), []) for i in range(2)])
    refs = [
        {
            "ref_id": i,
            "ann_id": 10 * i,
            "image_id": i % 2,
            "split": split,
            "sentences": [{"sent": text} for text in texts],
        }
        for i, (split, texts) in SENTENCES.items()
    ]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([*refs, {"split": "val"}], protocol=0))
    pictures = [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 20} for i in range(2)]
    boxes = [{"id": 10 * i, "bbox": [10, 5, 20, 10.0]} for i in SENTENCES]
    (tmp_path / "instances.json").write_text(json.dumps({"images": pictures, "annotations": boxes}))
    (tmp_path / "dets.json").write_text(json.dumps({"1": [[0, 0, 40, 10, 0.9]]}))
    return tmp_path


def opened(folder, split, **options):
    return Source(split, path=str(folder / "refs(unc).p"), image_root=str(folder / "train2014"), **options)


def test_each_expression_has_its_box_in_fractions(folder):
    source = opened(folder, "val", proposals=str(folder / "dets.json"))
    assert [(x["captions"], x["box"], x["id"]) for x in source] == [
        (["left man"], (0.25, 0.25, 0.75, 0.75), 0),
        (["man in blue"], (0.25, 0.25, 0.75, 0.75), 0),
    ]
    assert source[0]["proposals"] == [(0.0, 0.0, 1.0, 0.5)] and source[0]["image"] == tables.png(1)
    assert [reason for _, reason, _ in source.unreadable] == ["bad row"]
    both = opened(folder, "test")
    assert both.column("kind").tolist() == ["testA", "testB"] and "proposals" not in both[0]
    with pytest.raises(ConfigError, match=r"split='dev': .* has no expressions of it; use train, val, testA or testB"):
        opened(folder, "dev")


@pytest.mark.parametrize("content", [{"images": []}, {"7": [[0, 0, 1, 1]]}, [{"image_id": 1, "box": [0, 0, 1, 1]}]])
def test_proposals_of_other_pictures_are_refused(folder, content):
    (folder / "dets.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"proposals='.*dets.json': has boxes of none of the pictures; expected"):
        opened(folder, "val", proposals=str(folder / "dets.json"))


class Harmful:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("content", [pickle.dumps([Harmful()]), pickle.dumps({"a": 1}), pickle.dumps([1])[:-3], b"{}"])
def test_what_is_no_pickle_of_plain_values_is_refused_and_nothing_runs(folder, content, capsys):
    (folder / "refs(unc).p").write_bytes(content)
    with pytest.raises(ConfigError, match=r"path='.*refs\(unc\).p': no (pickle of plain values|list of expressions)"):
        opened(folder, "val")
    assert "this must not run" not in capsys.readouterr().out


def test_boxes_move_with_the_crop_of_the_picture(folder):
    class Wide(Source):
        def __getitem__(self, index):
            return super().__getitem__(index) | {"image": np.zeros((20, 40, 3), np.uint8)}

    wide = Wide("val", path=str(folder / "refs(unc).p"), image_root=str(folder / "train2014"))
    chains = {
        mode: make_eval_chain(None, image_size=16, resize=mode, modalities=("image",), background="white")
        for mode in ("squash", "shortest")
    }
    assert EvalView(wide, chains["squash"])[0]["box"] == pytest.approx((0.25, 0.25, 0.75, 0.75))
    assert EvalView(wide, chains["shortest"])[0]["box"] == pytest.approx((0.0, 0.25, 1.0, 0.75))  # the middle square
