import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from mmjax.core.config import ConfigError
from mmjax.data.sample import Crop, Sample, Unreadable
from mmjax.data.transforms.culture_mixup import Transform
from support.samples import configured

CONCEPTS = """Source Concept,Target Concept,Distance
dog,anjing,1
dog,mbwa,3
Fruit_Cake,lapis legit,2
fruit,buah,1
cake,kue ,1
 pan cake,serabi,2
house,House,1
"""


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def encoded(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def sample(*captions, image=None, crop=None, key="k", number=3):
    image = np.zeros((40, 60, 3), np.uint8) if image is None else image
    image.flags.writeable = False
    return Sample(id=number, key=key, captions=list(captions), images={"image": image}, crop=crop)


@pytest.fixture
def concepts(tmp_path):
    return write(tmp_path, "concepts.csv", CONCEPTS)


def always(concepts, **options):
    return Transform(**{"concepts": concepts, "sentence": 1.0, "phrase": 1.0, "word": 1.0, "paste": 1.0} | options)


def texts(transform, caption, draws=40):
    return {transform.switch_caption(caption, np.random.default_rng(k)) for k in range(draws)}


class TestTexts:
    def test_p_one_switches_all_matches_and_p_zero_none(self, concepts):
        caption = "A Dog, two dogs; a dog's fruit!"
        assert texts(always(concepts, max_distance=1), caption) == {"A anjing, two dogs; a anjing's buah!"}
        assert texts(Transform(concepts=concepts, sentence=0.0, phrase=0.0, word=0.0), caption) == {caption}

    def test_the_longest_concept_wins_and_is_one_match(self, concepts):
        transform = always(concepts)
        assert texts(transform, "a fruit cake and fruit, cake") == {"a lapis legit and buah, kue"}
        assert texts(transform, "fruit-cake") == texts(transform, "FRUIT_CAKE") == {"lapis legit"}
        # Where phrases are off, their words are matches of their own; a phrase kept is passed over as a whole.
        assert texts(always(concepts, phrase=0.0), "fruit cake") == {"buah kue"}
        assert texts(always(concepts, phrase=0.001, word=1.0), "fruit cake") == {"fruit cake"}
        # What only begins like a phrase.
        assert texts(transform, "pan fruit pan") == {"pan buah pan"}

    def test_concepts_do_not_match_inside_words_nor_over_commas(self, concepts):
        transform = always(concepts)
        for caption in ("hotdog dogma", "pan, cakes", "", "   ", "Hause"):
            assert texts(transform, caption) == {caption}
        assert texts(transform, "fruit. cake") == {"buah. kue"}

    def test_a_concept_that_stands_for_itself_changes_nothing(self, concepts):
        assert texts(always(concepts), "a HOUSE  here") == {"a HOUSE  here"}

    def test_targets_are_as_likely_and_distance_leaves_out(self, concepts):
        transform = always(concepts)
        drawn = [transform.switch_caption("dog", np.random.default_rng(k)) for k in range(600)]
        assert set(drawn) == {"anjing", "mbwa"} and abs(drawn.count("mbwa") / 600 - 0.5) < 0.07
        assert texts(always(concepts, max_distance=2), "dog") == {"anjing"}

    def test_the_probability_is_that_of_each_match(self, concepts):
        transform = Transform(concepts=concepts, max_distance=1)
        drawn = [
            transform.switch_caption("dog dog dog dog", np.random.default_rng(k)).count("anjing") for k in range(600)
        ]
        np.testing.assert_allclose(
            np.bincount(drawn, minlength=5) / 600, [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], atol=0.07
        )

    def test_sentences_go_first(self, concepts, tmp_path):
        rows = [{"caption": "A dog runs", "switched": s} for s in ("Anjing berlari", "Mbwa anakimbia")]
        path = write(tmp_path, "sentences.jsonl", rows)
        assert texts(always(concepts, sentences=path), "a  DOG runs") == {"Anjing berlari", "Mbwa anakimbia"}
        assert texts(always(concepts, sentences=path, sentence=0.0, max_distance=1), "a dog runs") == {"a anjing runs"}
        assert texts(always(concepts, sentences=path, max_distance=1), "a dog sits") == {"a anjing sits"}

    def test_several_tables_are_several_languages(self, concepts, tmp_path):
        more = write(tmp_path, "zh.jsonl", [{"source": "dog", "target": "狗"}, {"source": "dog", "target": "anjing"}])
        assert texts(always((concepts, more)), "dog") == {"anjing", "mbwa", "狗"}

    def test_captions_of_a_sample_and_nothing_else_change(self, concepts):
        s = sample("a dog", "cake")
        out = pickle.loads(pickle.dumps(always(concepts, max_distance=1)))(s, np.random.default_rng(0))
        assert out.captions == ["a anjing", "kue"] and s.captions == ["a dog", "cake"]
        assert (out.id, out.key) == (s.id, s.key) and out.images["image"] is s.images["image"]


G = np.random.default_rng(0)
DONOR = G.integers(1, 256, (30, 50, 3), dtype=np.uint8)
BOX = [10, 5, 30, 25]  # of the donor: 20 x 20
ROW = {"concept": "Anjing", "image": "pictures/donor.png", "box": BOX}


@pytest.fixture
def tables(tmp_path, concepts):
    def make(box, *, donors=(ROW,), key="key", value="k", picture=None):
        write(tmp_path, "pictures/donor.png", encoded(DONOR) if picture is None else picture)
        return always(
            concepts,
            boxes=write(tmp_path, "boxes.jsonl", [{key: value, "concept": "DOG", "box": box}]),
            donors=write(tmp_path, "donors.jsonl", list(donors)),
            by=key,
        )

    return make


class TestPictures:
    def resized(self, size):
        return np.asarray(Image.fromarray(DONOR).resize(size, Image.Resampling.BICUBIC, box=BOX))

    @pytest.mark.parametrize("size", [(20, 20), (10, 30), (41, 7), (1, 1)])
    def test_inside_the_box_is_the_resized_donor_and_outside_nothing_changes(self, tables, size):
        box = [4, 2, 4 + size[0], 2 + size[1]]
        image = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        s = sample("no concept", image=image)
        out = tables(box)(s, np.random.default_rng(0)).images["image"]
        expected = image.copy()
        expected[2 : 2 + size[1], 4 : 4 + size[0]] = self.resized(size)
        np.testing.assert_array_equal(out, expected)

    def test_boxes_follow_the_crop(self, tables):
        crop = Crop(top=10, left=20, height=20, width=20, size=(40, 40), inner=(40, 40))
        s = sample("x", image=np.zeros((40, 40, 3), np.uint8), crop=crop)
        out = tables([22, 12, 32, 27])(s, np.random.default_rng(0)).images["image"]
        expected = np.zeros((40, 40, 3), np.uint8)
        expected[4:34, 4:24] = self.resized((20, 30))
        np.testing.assert_array_equal(out, expected)

    def test_of_a_box_that_leaves_the_view_its_part_inside_is_pasted(self, tables):
        crop = Crop(top=10, left=20, height=20, width=20, size=(20, 20), inner=(20, 20))
        s = sample("x", image=np.zeros((20, 20, 3), np.uint8), crop=crop)
        out = tables([10, 0, 30, 20])(s, np.random.default_rng(0)).images["image"]
        np.testing.assert_array_equal(out[:10, :10], DONOR[15:25, 20:30])
        out = out.copy()
        out[:10, :10] = 0
        assert not out.any()
        assert tables([0, 0, 20, 40])(s, np.random.default_rng(0)).images["image"] is s.images["image"]

    def test_padding_stays(self, tables):
        crop = Crop(top=0, left=0, height=20, width=20, size=(40, 40), inner=(20, 20), offset=(10, 10), fill=9)
        s = sample("x", image=np.full((40, 40, 3), 9, np.uint8), crop=crop)
        out = tables([-10, -10, 10, 10])(s, np.random.default_rng(0)).images["image"]
        mask = np.zeros((40, 40), bool)
        mask[10:20, 10:20] = True
        assert (out[~mask] == 9).all()
        np.testing.assert_array_equal(out[10:20, 10:20], DONOR[15:25, 20:30])
        out = tables([10, 10, 30, 30])(s, np.random.default_rng(0)).images["image"]
        mask = np.roll(mask, (10, 10), (0, 1))
        assert (out[~mask] == 9).all()
        np.testing.assert_array_equal(out[20:30, 20:30], DONOR[5:15, 10:20])

    def test_only_the_examples_and_probability_asked_for(self, tables, concepts):
        transform = tables([0, 0, 20, 20], key="id", value=3)
        assert transform(sample("x", number=3), np.random.default_rng(0)).images["image"].any()
        assert not transform(sample("x", number=4, key="3"), np.random.default_rng(0)).images["image"].any()

    def test_targets_without_donors_are_not_drawn_and_donors_are_as_likely(self, tables):
        rows = [ROW | {"box": [x, 0, x + 1, 1]} for x in (0, 1)]
        transform = tables([0, 0, 1, 1], donors=[*rows, ROW | {"concept": "cat"}])
        drawn = [tuple(transform(sample("x"), np.random.default_rng(k)).images["image"][0, 0]) for k in range(300)]
        assert set(drawn) == {tuple(DONOR[0, 0]), tuple(DONOR[0, 1])}
        assert abs(drawn.count(tuple(DONOR[0, 0])) / 300 - 0.5) < 0.1

    def test_a_damaged_donor_is_told_by_its_path(self, tables, tmp_path):
        transform = tables([0, 0, 20, 20], picture=encoded(DONOR)[:200])
        with pytest.raises(Unreadable) as caught:
            transform(sample("x"), np.random.default_rng(0))
        assert caught.value.key.endswith("pictures/donor.png") and caught.value.reason == "truncated image"
        (tmp_path / "pictures/donor.png").unlink()
        with pytest.raises(Unreadable, match="missing file"):
            transform(sample("x"), np.random.default_rng(0))
        with pytest.raises(Unreadable, match="bad row"):
            tables([0, 0, 20, 20], donors=[ROW | {"box": [0, 0, 51, 30]}])(sample("x"), np.random.default_rng(0))


def test_what_cannot_be_is_refused(concepts, tmp_path, tables):
    boxes = write(tmp_path, "b.jsonl", [{"key": "k", "concept": "cat", "box": [0, 0, 1, 1]}])
    donors = write(tmp_path, "d.jsonl", [ROW])
    for options, says in [
        ({"concepts": ()}, r"concepts=\(\)"),
        ({"concepts": concepts, "boxes": boxes}, "boxes=.*donors=None"),
        ({"concepts": concepts, "boxes": boxes, "donors": donors}, "no box is of a concept with donors"),
        (
            {"concepts": concepts, "boxes": boxes, "donors": donors, "data_modalities": ("image", "depth")},
            "have no depth",
        ),
        ({"concepts": concepts, "word": 1.5}, r"word=1\.5"),
        ({"concepts": concepts, "by": "name"}, "by='name'"),
        ({"concepts": concepts, "max_distance": 0.5}, "hold no concepts"),
        (
            {"concepts": write(tmp_path, "c.csv", "source,target\na,b\n"), "max_distance": 1.0},
            "line 2: has no 'distance'",
        ),
        ({"concepts": write(tmp_path, "d.csv", "source,goal\na,b\n")}, "line 2: has no 'target'"),
        ({"concepts": write(tmp_path, "e.csv", "source,target\n_,b\n")}, "line 2: an empty concept"),
    ]:
        with pytest.raises(ConfigError, match=says):
            configured(Transform, **options)
    for box in ([0, 0, 0, 1], [0, 0, 1], "abcd", None, [0, 0, "x", 1], [0, 0, float("nan"), 1]):
        with pytest.raises(ConfigError, match="line 1: box="):
            tables(box)
    for image in ("../x.png", "/etc/x.png", 3, None):
        with pytest.raises(ConfigError, match="line 1: image="):
            tables([0, 0, 1, 1], donors=[ROW | {"image": image}])
