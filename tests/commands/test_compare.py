"""Comparisons: the statistics against numbers worked out apart, and a whole one with two seeds."""

import json

import numpy as np
import pytest

from mmjax.commands import compare
from mmjax.core.config import ConfigError
from support import command


def test_spread_against_a_worked_example():
    # Ten values with mean 5, sd 3.0277; t(0.975, 9) = 2.26216: half-width 2.26216 * 3.0277 / sqrt(10) = 2.1659.
    got = compare.mean_interval(np.arange(10) + 0.5)
    assert got["mean"] == 5 and got["n"] == 10
    np.testing.assert_allclose([got["sd"], got["half_width"]], [3.02765, 2.16585], rtol=1e-5)
    assert np.isnan(compare.mean_interval(np.array([1.0]))["half_width"])


def test_variants_from_words():
    made = compare.make_variants(
        "configs/scenes.py:size=small", [("steps", "50")], augment=["none"], variants=["long:steps=60;seed=1"]
    )
    assert [v.name for v in made] == ["none", "long"]
    assert made[1].spec == "configs/scenes.py:size=small,augment=none"
    assert made[1].overrides == (("steps", "50"), ("steps", "60"), ("seed", "1"))
    for wrong in (["long"], ["long:"], ["long:steps"], ["none:steps=60"]):
        with pytest.raises(ConfigError, match="--variant"):
            compare.make_variants("configs/scenes.py", [], augment=["none"], variants=wrong)
    with pytest.raises(ConfigError, match="stepz"):
        compare.make_variants("configs/scenes.py", [], augment=[], variants=["wrong:stepz=60"])


@pytest.mark.slow
def test_paired_differences_of_a_whole_comparison(tmp_path):
    words = (
        "compare", f"--config={command.config_file(tmp_path)}", f"--workdir={tmp_path / 'runs'}", "--seeds=2",
        "--variant=slow:optimizer.learning_rate=1e-9", "--metrics=test/rsum", "--json",
    )  # fmt: skip
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    output = command.run(*words, **cache)
    rows = json.loads(output[output.index("[\n") :])
    base, slow = (np.array(row["values"]) for row in rows)
    np.testing.assert_allclose(rows[1]["difference"]["mean"], (slow - base).mean())
    assert "| slow | test/rsum | 2 |" in compare.format_markdown(rows)
    again = command.run(*words, **cache)  # finished runs stay
    assert json.loads(again[again.index("[\n") :]) == rows
