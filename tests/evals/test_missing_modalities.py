"""Retrieval with each subset of the modalities, against retrieval of data that has no others."""

import itertools

import numpy as np
import pytest

from mmjax.core.config import ConfigError
from mmjax.evals import retrieval
from mmjax.evals.missing_modalities import Evaluator
from mmjax.experiment import EvalConfig
from mmjax.train.evaluation import Evaluation
from support.towers import Source, Towers, image, retrieval_source

NAMES = ("image", "depth", "thermal")


class Summing(Towers):
    """The mean of a linear map of each modality that is there, each with a map of its own."""

    def images(self, params, images):
        self.traces["image"] += 1
        rows = [
            (x.reshape(len(x), -1).astype("float32") - 128.0) @ (params["image"] * (1 + NAMES.index(m)))
            for m, x in images.items()
        ]
        return sum(rows) / len(rows)


@pytest.fixture(scope="module")
def measured():
    random = np.random.default_rng(5)
    source = Source(example | {m: image(random) for m in NAMES[1:]} for example in retrieval_source(11))
    towers = Summing()
    bound = towers.embedder(modalities=NAMES, takes_some=True).bind(towers.params)
    return source, towers, bound, Evaluator(lambda split: source)(bound)


def test_each_subset_is_retrieval_of_data_that_has_no_more(measured):
    source, towers, _, got = measured
    wanted = {}
    for size in (1, 2, 3):
        for subset in itertools.combinations(NAMES, size):
            bound = towers.embedder(modalities=subset).bind(towers.params)
            wanted[f"rsum_{'+'.join(subset)}"] = retrieval.Evaluator(lambda split: source)(bound)["rsum"]
    assert len(set(wanted.values())) > 3
    summary = {"rsum_mean": np.mean(list(wanted.values())), "rsum_worst": min(wanted.values())}
    assert got == pytest.approx(wanted | summary)


def test_all_modalities_share_the_work_of_retrieval(measured):
    source, towers, bound, _ = measured
    before = dict(towers.traces)
    plain = retrieval.Evaluator(lambda split: source)
    key = plain.split.key
    assert bound.read(source, key=key) is bound.read(source, key=key, modalities=NAMES)
    assert bound.read(source, key=key) is not bound.read(source, key=key, modalities=("depth",))
    assert towers.traces == before


def test_a_model_that_needs_all_its_modalities_is_refused():
    towers = Towers()
    evaluation = Evaluation(EvalConfig(), towers.embedder(), lambda *_: retrieval_source())
    with pytest.raises(ConfigError, match=r"'missing_modalities' needs model\.vision_cfg\.fusion='gated' or 'tokens'"):
        evaluation.evaluator("missing_modalities", "val")
