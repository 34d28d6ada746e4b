"""Every source in the folder keeps the promises that the pipeline builds on, whatever it reads from."""

import pickle

import numpy as np
import pytest

from mmjax.core import plugins
from mmjax.core.config import ConfigError
from mmjax.data import pictures, tokenizer
from mmjax.data.open_source import open_source
from mmjax.data.pipeline import Batches
from mmjax.data.preparing.prepare import prepare
from mmjax.data.preparing.reencoding import Reencoding
from mmjax.data.preparing.split_folder import SplitFolder
from mmjax.data.sample import Unreadable
from mmjax.data.source import Source, Subset
from mmjax.data.transform_chain import TransformChain
from support import formats

NAMES = plugins.names("mmjax.data.sources")
FILES = [name for name in NAMES if name not in ("scenes", "mix", "questions", "nlvr2", "faces", "refcoco")]
MODALITIES = {"nlvr2": ("left", "right")}
TRANSFORMS = (("random_resized_crop", {"scale": (0.4, 1.0)}), ("flip", {}), ("mixgen", {"variant": "d"}))


@pytest.fixture(scope="module")
def sections(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(folder / "cache"))
        made = formats.sections(folder)
        target = SplitFolder(folder / "tfds", name="small", version="1.0.0", split="train")
        prepare(opened("tables", made), target, asked={}, reencoding=Reencoding(), shards=2)
        made["tfds"] = {"path": str(target.path)}
        made["scenes"] = {"size": 16}
        made["questions"] = made["captions"] | {"path": formats.write_questions(folder / "table")}
        made["faces"] = {"path": formats.write_faces(folder / "faces")}
        made["refcoco"] = formats.write_expressions(folder / "table")
        made["nlvr2"] = {"path": formats.write_pairs(folder / "table")}
        made["mix"] = {"sources": tuple({"name": name, **made[name]} for name in FILES)}
        yield made


def opened(name, sections):
    return open_source({"name": name, **sections[name]}, split="train", modalities=MODALITIES.get(name, ("image",)))


def key_of(example):
    """Which of the examples this is, by what its first caption says."""
    return int(example["captions"][0].split()[-1])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_random_access_deterministic_and_picklable(name, sections):
    assert plugins.load("mmjax.data.sources", name, path="data.source.name").Source.__doc__
    source = opened(name, sections)
    twin = pickle.loads(pickle.dumps(source))
    assert len(source) % source.group == 0 and source.modalities == MODALITIES.get(name, ("image",))
    assert list(source.unreadable) == [] and isinstance(source, Source)
    ids = set()
    for index in reversed(range(len(source))):
        example, again = source[index], twin[index]
        ids.add(example["id"])
        assert isinstance(example["id"], int) and 0 <= example["id"] < len(source)
        assert example["captions"] and all(isinstance(c, str) and c for c in example["captions"])
        assert example["captions"] == again["captions"]
        for modality in source.modalities:
            np.testing.assert_array_equal(example[modality], again[modality])
            image = pictures.decode(example[modality])
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert len(ids) == len(source)
    for index in (len(source), -1):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("name", FILES)
def test_the_same_pictures_and_captions_come_out_of_every_format(name, sections):
    source = opened(name, sections)
    expected = {i: (data, captions) for i, (_, data, captions) in enumerate(formats.examples())}
    assert len(source) == len(expected)
    for index in range(len(source)):
        example = source[index]
        data, captions = expected.pop(key_of(example) if name == "tfds" else index)
        assert example["image"] == data and example["captions"] == captions
        assert example.get("key")
    assert not expected


def batches(name, sections, *, fraction=None, **options):
    source = opened(name, sections)
    source = source if fraction is None else Subset(source, fraction)
    words = tokenizer.load("word", context_length=12, captions=["number the of a few , 0 1 2 3 4 5 6 7 8 9"])
    chain = TransformChain(TRANSFORMS, image_size=16, modalities=source.modalities, token_format=words.format, seed=1)
    return Batches(source, words, batch_size=8, seed=1, chain=chain, **options)


def arrays(batch):
    return [*batch["images"].values(), *(batch[k] for k in sorted(batch) if k not in ("images", "unreadable"))]


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", NAMES)
def test_a_fraction_of_it_is_some_of_its_examples(name, sections):
    whole = opened(name, sections)
    half = pickle.loads(pickle.dumps(Subset(whole, 0.5)))
    sizes = [component.size // 2 for component in whole.components] or [len(whole) // 2]
    assert len(half) == sum(sizes)
    everything, kept = ({example["id"]: example["captions"][0] for example in source} for source in (whole, half))
    assert len(kept) == len(half) and kept.items() <= everything.items()
    ids = np.unique(batches(name, sections, fraction=0.5)[1]["image_ids"])
    assert set(ids[ids >= 0].tolist()) <= kept.keys()


@pytest.mark.parametrize("name", NAMES)
def test_going_on_in_the_middle_of_an_epoch_is_exact_with_any_number_of_threads_and_processes(name, sections):
    whole = batches(name, sections)
    expected = [arrays(whole[step]) for step in range(4)]  # 32 rows of 14 examples: over the end of an epoch twice
    stream = batches(name, sections).stream(start_step=1, threads=3, prefetch=2)
    for step in (1, 2, 3):
        assert_same(arrays(next(stream)), expected[step])
    stream.close()
    for count in (2, 4):
        parts = [arrays(batches(name, sections, process_index=p, process_count=count)[3]) for p in range(count)]
        assert_same([np.concatenate(column) for column in zip(*parts, strict=True)], expected[3])


def test_worker_processes_change_nothing(sections):
    """One mixture of all formats, so that every source is read in a process that was handed it."""
    whole = batches("mix", sections)
    stream = batches("mix", sections).stream(start_step=2, workers=2, threads=2)
    for step in range(2, 8):
        assert_same(arrays(next(stream)), arrays(whole[step]))
    stream.close()


def test_a_mixture_takes_prepared_data_whose_ids_have_gaps(sections, tmp_path):
    class Gaps(Source):
        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index < 6:
                raise Unreadable("missing file", key=str(index))
            return {"id": index, "key": str(index), "image": formats.examples()[0][1], "captions": ["a"]}

    target = SplitFolder(tmp_path, name="gaps", version="1.0.0", split="train")
    prepare(Gaps(), target, asked={}, reencoding=Reencoding(), shards=1)
    for name, path in (("tfds", target.path), ("arrayrecord", target.path / "gaps-train.array_record*")):
        part = {"name": name, "path": str(path)}
        mixed = open_source({"name": "mix", "sources": (part, part)}, split="train")
        assert sorted(mixed[i]["id"] for i in range(8)) == [6, 7, 8, 9, 16, 17, 18, 19]


def test_prepared_data_is_selected_by_a_score(sections, tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))

    class Scored(Source):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            example = {"id": index, "key": f"k{index:02d}", "image": formats.examples()[0][1], "captions": ["a"]}
            return example | {"score": (index * 5 % 12) / 4}

    target = SplitFolder(tmp_path, name="scored", version="1.0.0", split="train")
    prepare(Scored(), target, asked={}, reencoding=Reencoding(), shards=2)
    best = sorted(range(12), key=lambda i: -(i * 5 % 12))[:3]
    for name, path in (("tfds", target.path), ("arrayrecord", target.path / "scored-train.array_record*")):
        for _ in range(2):  # built, then from the index
            section = {"name": name, "path": str(path), "selection": {"score": "score", "top": 0.25}}
            source = open_source(section, split="train")
            assert sorted(source[i]["id"] for i in range(len(source))) == sorted(best)
        assert open_source({"name": name, "path": str(path)}, split="train").column("key").tolist() == [
            f"k{i:02d}" for i in range(12)
        ]
    parts = [open_source({"name": "tfds", "path": str(target.path)}, split=f"train[{half}]") for half in (":6", "6:")]
    assert [part.column("id").tolist() for part in parts] == [list(range(6)), list(range(6, 12))]
    with pytest.raises(ConfigError, match=r"'scor'.*score"):
        parts[0].column("scor")
