"""Blocks that filter, mix and rewrite captions."""

import decimal
import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.generate import block
from mmjax.generate.backend import Failure
from mmjax.generate.backends.scenes import Writer
from mmjax.generate.blocks import (
    caption_mix,
    dedup,
    length,
    objects,
    repeat,
    rewrite,
    tool_instructions,
    uniform_caption,
)  # fmt: skip
from mmjax.generate.prompt import load_prompt
from mmjax.generate.quantiles import top_threshold
from support import generating
from support.generating import record

SCORES = st.lists(st.sampled_from([0.1, 0.2, 0.3, math.nan]) | st.floats(-1, 1), min_size=1, max_size=12)


def captions(*texts, source="caption", **fields):
    return [{"text": text, "source": source, "weight": 1.0, **fields} for text in texts]


def weights(made):
    return [caption["weight"] for caption in made.captions]


class Listener(Writer):
    """An oracle that notes what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def write(self, requests, *options):
        self.asked += requests
        return super().write(requests, *options)


class WriterAlone:
    """Tools with one model."""

    def __init__(self):
        self.writer = Listener()

    def model(self, name):
        return self.writer

    def seed(self, record, *draw):
        return int(record.id)

    def origin(self, record, model, **params):
        return 0


# The top of scores.


def at_top(scores, fraction, compat="exact"):
    values = [(str(n), s) for n, s in enumerate(scores)]
    decision = top_threshold(values, fraction, compat=compat)
    if decision["threshold"] is None:
        return set()
    return {n for n, s in values if s >= decision["threshold"] and n not in decision["left_out"]}


@example([0.1], 0.9999999999999999, 1.0)
@given(SCORES, st.floats(0, 1), st.floats(0, 1))
def test_the_top_is_exact_monotone_and_without_nan(scores, first, second):
    low, high = sorted((first, second))
    usable = sum(not math.isnan(s) for s in scores)
    assert len(at_top(scores, low)) == min(int(decimal.Decimal(str(low)) * len(scores)), usable)  # exact in decimals
    assert at_top(scores, low) <= at_top(scores, high)
    assert len(at_top(scores, 1)) == usable and at_top(scores, 0) == set()


def test_the_top_by_datacomp_has_one_more_and_ties():
    scores = [0.1, 0.5, 0.4, 0.3, 0.3, 0.3]
    assert len(at_top(scores, 0.5)) == 3 and at_top(scores, 0.5) == {"1", "2", "3"}
    assert at_top(scores, 0.5, "datacomp") == {"1", "2", "3", "4", "5"}
    assert len(at_top([1, 2, 3, 4], 0.5, "datacomp")) == 3
    assert len(at_top([1, 2, 3, 4], 1, "datacomp")) == 4  # where the released code's index is outside
    # What DataComp computes: -sort(-s)[int(n f)], all that are as high.
    s = np.random.default_rng(0).normal(size=50)
    assert len(at_top(s.tolist(), 0.3, "datacomp")) == (s >= -np.sort(-s)[int(50 * 0.3)]).sum()


# CaptionMix.


def mixed(raw, synthetic, **options):
    """The kind that each of these records is left with."""
    made = []
    for number, (r, s) in enumerate(zip(raw, synthetic, strict=True)):
        texts = [] if r is None else captions("raw text", source="raw", scores={"clip": r})
        texts += [] if s is None else captions("made text", scores={"clip": s})
        made.append(record(id=str(number), captions=texts))
    block = caption_mix.Block(**options)
    decision = block.decide([block.collect(r) for r in made], None)
    left = []
    for one in block.apply(made, decision, None):
        kinds = [c["source"] for c in one.captions if c["weight"] > 0]
        left.append("dropped" if not one.keep else kinds[0])
        assert len(kinds) == 1 or not one.keep
    return left


def test_caption_mix_is_the_papers_rule():
    raw, synthetic = [0.9, 0.8, 0.1, 0.2, 0.3], [0.1, 0.9, 0.85, 0.2, None]
    half = {"fraction": 0.4}  # the first two; τ = 0.8
    assert mixed(raw, synthetic, **half) == ["raw", "raw", "caption", "dropped", "dropped"]
    assert mixed(raw, synthetic, filtered=False, **half) == ["raw", "raw", "caption", "caption", "dropped"]
    assert mixed(raw, synthetic, fraction=1) == ["raw"] * 5
    assert mixed(raw, synthetic, fraction=0) == ["caption"] * 4 + ["dropped"]
    assert mixed([0.5, 0.5, 0.5, 0.5], [None] * 4, fraction=0.5) == ["raw", "raw", "dropped", "dropped"]
    assert mixed([math.nan, 0.1], [0.2, math.nan], fraction=0.5) == ["caption", "raw"]


def test_caption_mix_keeps_the_best_of_several():
    texts = captions("a", "b", "c", source="raw")
    for caption, score in zip(texts, (0.1, 0.3, 0.3), strict=True):
        caption["scores"] = {"clip": score}
    for best, expected in ((True, [0, 0, 1]), (False, [1, 1, 1])):
        block = caption_mix.Block(fraction=1, best=best)
        (made,) = block.apply([record(captions=[dict(c) for c in texts])], block.decide([["1", 0.3]], None), None)
        assert weights(made) == expected


# Weights of rewrites.


def test_uniform_choice_is_uniform_and_short_rewrites_leave_their_weight_to_the_raw_caption():
    made = record(captions=captions("raw one", source="raw") + captions("two words", "one", "", "three of them"))
    assert uniform_caption.Block().judge(made) is None
    assert weights(made) == [3.0, 1.0, 0.0, 0.0, 1.0]
    (two,) = [record(captions=captions("a", "b", source="raw") + captions("c d"))]
    assert uniform_caption.Block().judge(two) is None and weights(two) == [0.5, 0.5, 1.0]
    assert "no raw" in uniform_caption.Block().judge(record(captions=captions("made only")))


# Filters of captions.


def judged(block, *texts, source="caption"):
    made = record(captions=captions(*texts, source=source))
    reason = block.judge(made)
    return weights(made), reason


def test_repeat_and_length_are_idempotent_and_drop_a_record_without_other_captions():
    stuck = " ".join(["the"] * 6)
    assert judged(repeat.Block(most=5), stuck, "The the the the the cat") == ([0, 1], None)
    assert judged(repeat.Block(most=5), stuck)[1] == "repeat: a word is repeated"
    assert judged(repeat.Block(most=5), stuck, source="raw") == ([1], None)  # nothing was made here
    block = length.Block(min_words=2, max_words=3)
    assert judged(block, "one", "two words", "three words here", "and four words here") == ([0, 1, 1, 0], None)
    assert judged(length.Block(min_characters=6), " short ", "long enough") == ([0, 1], None)
    made = record(captions=captions("one", "two words"))
    for _ in range(2):
        assert block.judge(made) is None and weights(made) == [0, 1]
    with pytest.raises(ConfigError, match="max_words=1: is less than min_words=2"):
        length.Block(min_words=2, max_words=1)


def test_dedup_keeps_the_first_of_texts_that_are_equal_but_for_case_spaces_and_unicode():
    block = dedup.Block()
    texts = ["A  Cat", "a cat", "ａ cat", "a dog", "Straße", "strasse"]
    made = [record(id=str(n), captions=captions(text)) for n, text in enumerate(texts)]
    for _ in range(2):
        block.apply(made, block.decide([v for r in made if r.keep and (v := block.collect(r))], None), None)
        assert [r.id for r in made if r.keep] == ["0", "3", "4"]
    own = record(captions=captions("x y", "X y"))
    block.apply([own], block.decide([block.collect(own)], None), None)
    assert weights(own) == [1, 0] and own.keep


# LaCLIP.


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=300), st.integers(0, 2**32 - 1))
def test_the_request_has_the_whole_caption_however_long(caption, seed):
    block = rewrite.Block(max_characters=200)
    request = block.request(caption, "plain", seed)
    (system, user) = request.messages
    assert system.role == "system" and user.text.rstrip().endswith("=>") and caption.strip() in user.text
    pairs = [line for line in user.text.splitlines() if line.count(" => ") == 1 and line in _lines("plain")]
    assert len(pairs) <= 3 and (len(caption) > 200) <= (not pairs)


def _lines(name):
    return {f"{a} => {b}" for a, b in rewrite.load_demos(name)}


def test_a_rewrite_for_each_set_of_examples():
    made = generating.make_records((("rewrite", {"n": 2}), ("uniform_caption", {})), {"writer": {"name": "scenes"}})
    assert all(record.keep for record in made)
    for one in made:
        assert [c["source"] for c in one.captions] == ["raw"] * 5 + ["rewrite"] * 8
        entries = [one.provenance[c["by"]] for c in one.captions[5:]]
        assert {entry["params"]["demos"] for entry in entries} == {"plain", "detailed", "short", "spoken"}
        assert all(entry["prompt_sha"] == load_prompt("laclip_rewrite").sha for entry in entries)
        assert math.isclose(sum(weights(one)), 9)


def test_captions_that_filters_took_out_are_not_rewritten_and_records_without_any_say_so():
    german = {"text": "ein Hund", "source": "raw", "weight": 0.0}
    english = {"text": "a dog", "source": "raw", "weight": 1.0}
    assert block.first_caption(record(captions=[german, english])) == "a dog"
    assert block.first_caption(record(captions=[german])) == "" == block.first_caption(record(captions=[]))
    assert block.first_caption(record(captions=[english]), ("caption",)) == ""
    bare, whole = record(id="1", captions=[german]), record(id="2", captions=[english])
    for one in (rewrite.Block(), objects.Block(), tool_instructions.Block(tools=1)):
        tools = WriterAlone()
        first, second = one([bare, whole], tools)
        assert isinstance(first, Failure) and first.reason == "no caption" and not isinstance(second, Failure)
        asked = tools.writer.asked
        assert asked and all("a dog" in request.messages[-1].text for request in asked)


def test_replies_that_are_no_rewrites_leave_the_others():
    made = generating.make_records((("rewrite", {}),), {"writer": {"name": "scenes", "corrupt": 0.5}})
    counts = [sum(c["source"] == "rewrite" for c in one.captions) for one in made]
    assert len(set(counts)) > 1 and all((count > 0) == one.keep for one, count in zip(made, counts, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"demos": ()}, r"demos=\(\)"),
        ({"demos": ("plane",)}, "demos='plane': neither a set nor a file; did you mean 'plain'"),
        ({"prompt": "laclip_rewirte"}, "prompt='laclip_rewirte': neither a prompt nor a file; did you mean"),
    ],
)
def test_a_wrong_option_is_one_line(options, message):
    with pytest.raises(ConfigError, match=message):
        rewrite.Block(**options)


def test_own_prompts_and_demos_are_files(tmp_path):
    (tmp_path / "mine.txt").write_text("## user\n$pairs\nSay $caption, for $$5\n")
    (tmp_path / "mine.tsv").write_text("a cat\ta kitty\n")
    block = rewrite.Block(prompt=str(tmp_path / "mine.txt"), demos=(str(tmp_path / "mine.tsv"),))
    (message,) = block.request("$caption {}", str(tmp_path / "mine.tsv"), 0).messages
    assert message.text == "a cat => a kitty\nSay $caption {}, for $5"
    for text in ("no turns", "## system\nx", "## user\n$unknown $caption $pairs"):
        (tmp_path / "bad.txt").write_text(text)
        load_prompt.cache_clear()
        with pytest.raises(ConfigError, match="prompt="):
            rewrite.Block(prompt=str(tmp_path / "bad.txt")).request("x", "plain", 0)
    (tmp_path / "bad.tsv").write_text("only one column\n")
    with pytest.raises(ConfigError, match="separated by one tab"):
        rewrite.Block(demos=(str(tmp_path / "bad.tsv"),))


def test_no_pair_of_the_sets_is_in_two_of_them():
    sets = [set(rewrite.load_demos(name)) for name in ("plain", "detailed", "short", "spoken")]
    assert all(len(s) == 8 for s in sets) and not any(a & b for a, b in itertools.combinations(sets, 2))


def test_options_of_decoding_reach_the_captioner_and_each_picture_gets_n_texts():
    from mmjax.generate.blocks import caption

    class Recorder:
        model, revision = "m", "r"

        def caption(self, pictures, prompts, decoding, seeds):
            self.asked = prompts, decoding, seeds
            return [[f"{p} {k} {n}" for k in range(decoding.n)] for n, p in enumerate(pictures)]

    class Tools:
        model = lambda self, name: recorder  # noqa: E731
        picture = lambda self, one: f"picture {one.id}"  # noqa: E731
        seed = lambda self, one, *draw: int(one.id)  # noqa: E731
        origin = lambda self, one, model, **values: 0  # noqa: E731

    recorder = Recorder()
    block = caption.Block(n=3, prompt="a photo of", top_k=50, temperature=0.75, min_tokens=5, max_tokens=40)
    made = block([record(id="1"), record(id="2")], Tools())
    assert [one.texts[1:] for one in made] == [[f"picture {i} {k} {i - 1}" for k in range(3)] for i in (1, 2)]
    prompts, decoding, seeds = recorder.asked
    assert list(prompts) == ["a photo of"] * 2 and seeds == [1, 2]
    assert (decoding.n, decoding.top_k, decoding.temperature, decoding.min_tokens, decoding.max_tokens) == (
        3,
        50,
        0.75,
        5,
        40,
    )
