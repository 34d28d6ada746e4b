"""What recipes do in a world whose truth is known: criteria that were set before, over three seeds."""

import numpy as np
import pytest

from mmjax.data.scenes import graph
from mmjax.generate.blocks import caption_mix
from mmjax.generate.inputs import Inputs
from mmjax.generate.recipe import make_recipe
from mmjax.generate.stages import StageRunner
from support import generating


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_caption_mix_takes_true_captions(seed):
    """60 % of raw captions are of other pictures, and the captioner is wrong for 5 %: 95 % of those kept are true."""
    models = {"captioner": {"name": "scenes", "error": 0.05}, "scorer": {"name": "scenes"}}
    recipe = make_recipe({"stages": (("caption", {}), ("score", {})), "models": models, "seed": seed})
    source = {"size": 200, "image_size": 8, "caption_noise": 0.6, "seed": seed}
    inputs = Inputs(generating.SCENES | source, splits=("train",))
    records = [inputs.record(number) for number in range(len(inputs))]
    for one in records:
        one.captions = one.captions[:1]

    def is_true(one, caption):
        return graph.is_true(graph.from_json(one.fields["scene"])[0], caption["text"])

    assert 0.25 < np.mean([is_true(one, one.captions[0]) for one in records]) < 0.55
    records = StageRunner(recipe, inputs).run(records, [(0, None), (1, None)])
    for filtered in (True, False):
        block = caption_mix.Block(fraction=0.3, filtered=filtered)
        decision = block.decide([block.collect(one) for one in records], None)
        mixed = block.apply([type(one).from_bytes(one.to_bytes()) for one in records], decision, None)
        chosen = [(one, c) for one in mixed if one.keep for c in one.captions if c["weight"] > 0]
        assert len(chosen) == sum(one.keep for one in mixed) and len(chosen) >= (90 if filtered else 200)
        assert np.mean([is_true(*pair) for pair in chosen]) >= 0.95
