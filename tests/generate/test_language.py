"""The filter of languages: real sentences, texts too short to tell, any text, and records as they come out."""

import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmjax.config_file import load_config
from mmjax.core.config import ConfigError
from mmjax.evals.captions.quality import format_quality, measure_quality
from mmjax.generate import languages
from mmjax.generate.blocks import caption_mix, language
from support import generating
from support.generating import record

SENTENCES = {
    "en": "Two children are playing with a red ball on the beach.",
    "de": "Zwei Kinder spielen am Strand mit einem roten Ball.",
    "fr": "Deux enfants jouent avec un ballon rouge sur la plage.",
    "es": "Dos niños juegan con una pelota roja en la playa.",
    "it": "Due bambini giocano con una palla rossa sulla spiaggia.",
    "pt": "Duas crianças brincam com uma bola vermelha na praia.",
    "nl": "Twee kinderen spelen op het strand met een rode bal.",
    "pl": "Dwoje dzieci bawi się czerwoną piłką na plaży.",
    "tr": "İki çocuk kumsalda kırmızı bir topla oynuyor.",
    "ru": "Двое детей играют с красным мячом на пляже.",
    "el": "Δύο παιδιά παίζουν με μια κόκκινη μπάλα στην παραλία.",
    "ar": "طفلان يلعبان بكرة حمراء على الشاطئ.",
    "hi": "दो बच्चे समुद्र तट पर लाल गेंद से खेल रहे हैं।",
    "ja": "二人の子供が浜辺で赤いボールで遊んでいる。",
    "zh": "两个孩子在海滩上玩一个红色的球。",
    "ko": "두 아이가 해변에서 빨간 공을 가지고 놀고 있다.",
}
NOTHING = ("", "   ", "😀", "IMG_2034.jpg", "1234", "\x00")
TEXTS = st.text(max_size=80) | st.sampled_from([*SENTENCES.values(), *NOTHING, "\ud800", "a dog"])


@pytest.fixture(scope="module", autouse=True)
def library():
    pytest.importorskip("py3langid")


def judged(*texts, wanted=("en",), source="raw", **options):
    made = record(captions=[{"text": text, "source": source, "weight": 1.0} for text in texts])
    reason = language.Block(languages=wanted, **options).judge(made)
    return [caption["weight"] for caption in made.captions], reason, made.scores.get("language")


@pytest.mark.parametrize("wanted", SENTENCES)
def test_a_sentence_stays_where_its_language_is_wanted_and_goes_elsewhere(wanted):
    block = language.Block(languages=(wanted,))
    for code, text in SENTENCES.items():
        reason = block.judge(record(captions=[{"text": text, "source": "raw", "weight": 1.0}]))
        assert reason == (None if code == wanted else f"language: {code}, not {wanted}")


def test_what_is_too_short_to_tell():
    for text in NOTHING:
        assert judged(text)[:2] == ([0], "language: unclear, not en")
        assert judged(text, min_probability=0)[:2] == ([1], None)
    kept = {text: judged(text)[1] is None for text in ("dog", "a dog", "red car", "a dog on the grass", "Hund")}
    assert kept == {"dog": False, "a dog": False, "red car": True, "a dog on the grass": True, "Hund": False}
    assert judged("a dog", min_probability=0.02)[1] is None  # of 139 languages it is not the most likely one
    assert languages.identify("a dog") == languages.UNCLEAR and languages.identify(SENTENCES["de"]) == "de"


def test_captions_lose_their_weight_and_a_record_without_others_is_dropped():
    english, german, french = SENTENCES["en"], SENTENCES["de"], SENTENCES["fr"]
    weights, reason, score = judged(german, english)
    assert weights == [0, 1] and reason is None and score > 0.9
    assert judged(german, english, wanted=("de", "en"))[0] == [1, 1]
    assert judged(german, french, wanted=("en", "it"))[:2] == ([0, 0], "language: de, not en or it")
    assert judged(german, source="caption") == ([1], None, None)  # not one of the raw ones
    assert judged(german, source="caption", sources=())[1] == judged(german)[1]
    one = record(captions=[{"text": t, "source": s, "weight": 1.0} for t, s in ((german, "raw"), (english, "caption"))])
    assert language.Block(languages=("en",)).judge(one) is None and one.captions[0]["weight"] == 0
    one.captions[0]["scores"], one.captions[1]["scores"] = {"clip": 0.9}, {"clip": 0.5}
    mix = caption_mix.Block(fraction=0.5, filtered=False)
    (mixed,) = mix.apply([one], mix.decide([["0", 0.7], mix.collect(one)], None), None)
    assert mixed.keep and [caption["weight"] for caption in mixed.captions] == [0, 1]


@settings(max_examples=60)
@example(["\ud800"], 0.5)
@example(["A" * 20000], 0.5)
@given(st.lists(TEXTS, max_size=3), st.floats(0, 1))
def test_no_text_raises_more_languages_keep_more_and_again_nothing_changes(texts, low):
    weights, reason, score = judged(*texts, min_probability=low)
    assert (reason is None) == (any(weights) or not texts) and (score is None) == (not texts)
    wider = judged(*texts, wanted=("en", "de", "ja"), min_probability=low)[0]
    assert all(a <= b for a, b in zip(weights, wider, strict=True))
    again = judged(*[text for text, weight in zip(texts, weights, strict=True) if weight], min_probability=low)
    assert all(again[0]) and again[1] is None


def test_batches_and_kills_change_nothing_and_the_table_has_the_score(tmp_path):
    sections = load_config("nguyen:english=1", folder="generate")
    assert [name for name, _ in sections["stages"]] == ["caption", "language", "length", "score", "caption_mix"]
    source = {"size": 6, "caption_noise": 0.5}
    jobs = [
        generating.make_job(
            tmp_path / str(size), sections["stages"], sections["models"], source=source, batch_size=size
        )
        for size in (1, 4)
    ]
    for job in jobs:
        generating.run(job)
    assert generating.content(tmp_path / "1") == generating.content(tmp_path / "4")
    assert all(row["score_language"] > 0.03 for row in jobs[0].rows())


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((), r"^languages=\(\): no caption could stay; name one or more"),
        (("english",), r"^languages='english': no such name"),
    ],
)
def test_wrong_languages_are_one_line(wanted, message):
    with pytest.raises(ConfigError, match=message):
        language.Block(languages=wanted)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(languages, "_load_identifier", languages._load_identifier.__wrapped__)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(
        ConfigError, match=r"^languages=\('en',\): .*pip install 'mmjax\[languages\]', or leave it out$"
    ):
        language.Block(languages=("en",))


def test_the_report_on_captions_counts_languages():
    texts = [[SENTENCES["en"], SENTENCES["de"]], [SENTENCES["en"]], ["a dog"]]
    groups = measure_quality({"source": texts}, source="source", identify=languages.identify)
    assert groups["source"]["languages"] == [["en", 0.5], ["de", 0.25], ["unclear", 0.25]]
    assert format_quality({"groups": groups}).splitlines()[-1] == (
        "languages of source: en 50.0%, de 25.0%, unclear 25.0%"
    )
    assert "languages" not in measure_quality({"source": texts}, source="source")["source"]
