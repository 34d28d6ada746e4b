import json
import time

import numpy as np
import pytest

from mmjax.data.inspecting import throughput
from mmjax.data.pipeline import Batches
from mmjax.data.sample import Unreadable
from mmjax.data.transform_chain import TransformChain
from support.prepared import Source


class Tokens:
    """A tokenizer that takes its time."""

    def __init__(self, seconds=0.0):
        self.seconds = seconds

    def __call__(self, texts):
        time.sleep(self.seconds * len(texts))
        return np.zeros((len(texts), 4), np.int32)


def measured(source, *, tokens=None, threads=1, seconds=0.1):
    tokens = tokens or Tokens()
    chain = TransformChain((("resize_crop", {}),), image_size=16, modalities=("image",))
    batches = Batches(source, tokens, batch_size=8, seed=0, chain=chain)
    facts = throughput.measure(
        source, batches, evaluation=chain, training=chain, geometry=chain, tokenizer=tokens, batch_size=8, workers=0,
        threads=threads, cores=2, seconds=seconds,
    )  # fmt: skip
    assert json.loads(json.dumps(facts)) == facts
    return facts


def test_rates_are_those_of_a_source_of_known_speed():
    facts = measured(Source(64, slow=0.004))
    rates = facts["examples_per_second"]
    assert list(rates) == ["read", "read and decode", "with training transforms", "whole batches"]
    assert all(10 < rate <= 250 for rate in rates.values()), rates
    assert facts["per_core"]["read"] == rates["read"] / 2
    shares = facts["time_fractions"]
    assert set(shares) == set(throughput.STAGES) and sum(shares.values()) == pytest.approx(1)
    assert shares["read"] > 0.5 and min(shares.values()) >= 0


def test_threads_read_side_by_side():
    one, four = (measured(Source(64, slow=0.004), threads=n)["examples_per_second"]["read"] for n in (1, 4))
    assert four > 1.5 * one


def test_where_the_time_goes():
    shares = measured(Source(512), tokens=Tokens(0.004))["time_fractions"]
    assert shares["tokenize"] > 0.2 and shares["tokenize"] > 3 * (shares["read"] + shares["decode and crop"]), shares


def test_bytes_and_memory():
    source = Source(16)
    facts = measured(source)
    sizes = [len(source[i]["image"]) for i in range(2)]  # all others are like these
    assert min(sizes) < facts["picture_bytes"] < max(sizes)
    assert facts["bytes_per_second"] == pytest.approx(facts["picture_bytes"] * facts["examples_per_second"]["read"])
    assert 10 << 20 < throughput.memory() < 1 << 40 and facts["memory_bytes"] >= 10 << 20


def test_examples_that_cannot_be_used_stop_nothing():
    class Broken(Source):
        def __getitem__(self, index):
            if index % 2:
                raise Unreadable("missing file")
            return super().__getitem__(index)

    facts = measured(Broken(64), seconds=0.05)
    assert facts["examples_per_second"]["read"] > 0 and facts["picture_bytes"] == len(Source(2)[0]["image"])


def test_the_verdict():
    assert throughput.verdict(2100, 64, 40) == "a step of 64 in 40 ms needs 1,600 examples/s: have 2,100, enough"
    starved = throughput.verdict(800, 64, 40)
    assert "have 800" in starved and "50% of the time" in starved and "80 ms" in starved
    assert "takes 80 ms" in throughput.verdict(800, 64, None)


def test_the_text_has_all_of_it():
    shown = throughput.text(measured(Source(16), seconds=0.02), step_ms=10)
    for word in ("whole batches", "tokenize", "memory", "a step of 8 in 10 ms needs 800 examples/s", "2 core(s)"):
        assert word in shown
