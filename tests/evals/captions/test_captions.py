"""Metrics of captions: by hand, against plain float64 loops, and the conventions of the COCO evaluation."""

import collections
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.evals.captions.clip_score import clip_scores, ref_clip_scores
from mmjax.evals.captions.diversity import measure_diversity
from mmjax.evals.captions.metrics import score_captions
from mmjax.evals.captions.overlap import bleu, cider, rouge_l
from mmjax.evals.captions.ptb_tokens import tokenize


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A man riding a horse.", "a man riding a horse"),
        ("A man's dog isn't in the (red) car; it can't!", "a man 's dog is n't in the -lrb- red -rrb- car it ca n't"),
        ("Cannot, gonna, won't, I'd, they've, dogs'", "can not gon na wo n't i 'd they 've dogs"),
        ("black-and-white photo -- two-tone - of a T-shirt", "black-and-white photo two-tone of a t-shirt"),
        ('a "stop" sign, \'quoted\' and “curly” … here', "a stop sign quoted and curly here"),
        ("U.S. flag by Dr. Who at 10:30 a.m., etc.", "u.s. flag by dr. who at 10:30 a.m. etc."),
        ("$5.50 & 20% off #1 w/ men/women", "$ 5.50 & 20 % off # 1 w / men/women"),
        ("AT&T 1/2, 1,000 dogs", "at&t 1/2 1,000 dogs"),
        ("[UNK] {x} café naïve 日本語 5 o'clock", "-lsb- unk -rsb- -lcb- x -rcb- café naïve 日本語 5 o'clock"),
        ("", ""),
        (" ... !", ""),
    ],
)  # fmt: skip
def test_words_are_those_of_stanfords_tokenizer(caption, words):
    """The right column is what PTBTokenizer of CoreNLP 3.4.1 prints, without punctuation."""
    assert " ".join(tokenize(caption)) == words


@settings(max_examples=50)
@given(st.text(max_size=40))
def test_any_text_has_words_without_spaces_or_capitals(text):
    words = tokenize(text)
    assert all(word and not word.isspace() and len(word.split()) == 1 for word in words)
    assert tokenize(text.upper().lower()) == tokenize(text.upper())


def lists(*captions):
    return [caption.split() for caption in captions]


class TestByHand:
    def test_bleu(self):
        """Clipped counts 2/3 and 1/2 of 'the the cat', against the nearer reference of two."""
        whole, each = bleu(lists("the the cat"), [lists("the the dog", "a cat on the mat today")])
        assert each.shape == (1, 4)
        np.testing.assert_allclose(each[0, :2], [1.0, math.sqrt(1.0 * 0.5)], rtol=1e-6)
        np.testing.assert_allclose(whole, each[0])
        short = bleu(lists("a b"), [lists("a b c d")])[0]
        np.testing.assert_allclose(short[:2], math.exp(1 - 4 / 2), rtol=1e-6)
        # Of two lengths that are equally near the shorter counts, so that there is no penalty.
        np.testing.assert_allclose(bleu(lists("a b c"), [lists("a b c d", "a b")])[0][0], 1.0, rtol=1e-6)
        # A word counts as often as the one reference that has it most often.
        np.testing.assert_allclose(bleu(lists("the the"), [lists("the cat", "the dog")])[0][0], 0.5, rtol=1e-6)
        # The whole sums matches and lengths: 3 of 4 words, and not the mean of 1 and 1/2.
        np.testing.assert_allclose(bleu(lists("a b", "c x"), [lists("a b"), lists("c d")])[0][0], 0.75, rtol=1e-6)

    def test_rouge(self):
        """The best precision (2/3 of the second) and the best recall (2/2 of the first) of different references."""
        [score] = rouge_l(lists("a b c"), [lists("a c", "x a b y")])
        precision, recall = 2 / 3, 1.0
        assert score == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision), rel=1e-12)
        assert rouge_l(lists("a"), [lists("b")])[0] == 0

    def test_cider(self):
        """Of two images with nothing in common every n-gram weighs log 2, and an own reference is all there is."""
        same = cider(lists("a b c d e", "f g h i j"), [lists("a b c d e"), lists("f g h i j")])
        np.testing.assert_allclose(same, 10, rtol=1e-12)
        # One word less: cosines sqrt(4/5), sqrt(3/4), sqrt(2/3), sqrt(1/2); lengths differ by one.
        shorter, _ = cider(lists("a b c d", "f"), [lists("a b c d e"), lists("f g h i j")])
        cosines = np.sqrt([4 / 5, 3 / 4, 2 / 3, 1 / 2])
        assert shorter == pytest.approx(10 * cosines.mean() * math.exp(-1 / 72), rel=1e-12)
        # A word of all images weighs nothing, and one image knows no rare words.
        assert cider(lists("the", "the"), [lists("the cat"), lists("the dog")]).tolist() == [0, 0]
        assert cider(lists("a b"), [lists("a b")]).tolist() == [0]

    def test_diversity(self):
        found = measure_diversity(lists("a cat", "a dog", "a cat"))
        assert found["vocabulary"] == 3 and found["tokens"] == 6 and found["unique_2"] == 2
        assert found["distinct_2"] == pytest.approx(2 / 3) and found["unique_captions"] == pytest.approx(2 / 3)
        assert found["distinct_4"] == 0 and measure_diversity([])["distinct_1"] == 0


def ngrams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def plain_cider(candidates, references):
    """The equation as loops over dense vectors of all n-grams."""
    scores = np.zeros(len(candidates))
    for n in range(1, 5):
        every = sorted(
            {g for each in references for ref in each for g in ngrams(ref, n)}
            | {g for c in candidates for g in ngrams(c, n)}
        )
        rare = [
            math.log(len(references) / max(1, sum(any(g in ngrams(r, n) for r in each) for each in references)))
            for g in every
        ]

        def vector(words, n=n, every=every, rare=rare):
            counts = collections.Counter(ngrams(words, n))
            return np.array([counts[g] * weight for g, weight in zip(every, rare, strict=True)])

        for i, (words, each) in enumerate(zip(candidates, references, strict=True)):
            for ref in each:
                a, b = vector(words), vector(ref)
                norm = np.linalg.norm(a) * np.linalg.norm(b)
                apart = max(len(words) - 1, 0) - max(len(ref) - 1, 0)
                cosine = (np.minimum(a, b) * b).sum() / norm if norm else 0.0
                scores[i] += 10 / 4 * cosine * math.exp(-(apart**2) / 72) / len(each)
    return scores


def plain_common(a, b):
    return max((n for n in range(len(a) + 1) for pick in itertools.combinations(a, n) if is_inside(pick, b)), default=0)


def is_inside(pick, words):
    words = iter(words)
    return all(word in words for word in pick)


def test_random_captions_equal_plain_loops():
    rng = np.random.default_rng(0)

    def caption(longest=7):
        return [str(word) for word in rng.integers(0, 6, rng.integers(0, longest))]

    candidates = [caption() for _ in range(12)]
    references = [[caption() for _ in range(rng.integers(1, 4))] for _ in candidates]
    np.testing.assert_allclose(cider(candidates, references), plain_cider(candidates, references), atol=1e-12)
    for words, each, score in zip(candidates, references, rouge_l(candidates, references), strict=True):
        a, refs = words or [""], [ref or [""] for ref in each]
        precision, recall = (max(plain_common(a, ref) / len(x or ref) for ref in refs) for x in (a, None))
        wanted = 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0
        assert score == pytest.approx(wanted, rel=1e-12)
    matches, totals = np.zeros(4), np.zeros(4)
    for words, each in zip(candidates, references, strict=True):
        for n in range(1, 5):
            for gram in set(ngrams(words, n)):
                matches[n - 1] += min(ngrams(words, n).count(gram), max(ngrams(ref, n).count(gram) for ref in each))
            totals[n - 1] += len(ngrams(words, n))
    lengths = [
        min((abs(len(r) - len(w)), len(r)) for r in each)[1] for w, each in zip(candidates, references, strict=True)
    ]
    penalty = math.exp(min(0, 1 - sum(lengths) / sum(map(len, candidates))))
    expected = [penalty * np.prod(matches[:n] / totals[:n]) ** (1 / n) for n in range(1, 5)]
    np.testing.assert_allclose(bleu(candidates, references)[0], expected, rtol=1e-6, atol=1e-4)


def test_all_in_one_call_and_what_is_refused():
    whole, each = score_captions(["A dog.", "two cats"], [["a dog"], ["Two cats!", "cats"]])
    assert whole["bleu_1"] == pytest.approx(1) and whole["rouge_l"] == pytest.approx(1) and whole["vocabulary"] == 4
    assert whole["cider"] == pytest.approx(each["cider"].mean()) and each["bleu_4"].shape == (2,)
    assert score_captions([], [])[0]["cider"] == 0
    with pytest.raises(ValueError, match="2 candidates and references for 1"):
        score_captions(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"references\[1\]=\[\]"):
        score_captions(["a", "b"], [["a"], []])


def test_clip_scores():
    image = np.eye(3)
    caption = np.array([[0.6, 0.8, 0], [0, -1, 0], [0, 0, 1]])
    np.testing.assert_allclose(clip_scores(image, caption), [1.5, 0, 2.5])
    references = [np.array([[0, 1.0, 0], [1, 0, 0]]), np.array([[0, 1.0, 0]]), np.array([[0, 0, 1.0]])]
    expected = [2 * 1.5 * 0.8 / (1.5 + 0.8), 0, 2 * 2.5 / 3.5]
    np.testing.assert_allclose(ref_clip_scores(image, caption, references), expected)
    assert ref_clip_scores(image[:1], caption[:1], [np.array([[-1.0, 0, 0]])]).tolist() == [0]
