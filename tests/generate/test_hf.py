"""The backend for transformers and diffusers, on tiny random models that users' own code loads."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install -e '.[generate]'")
pytest.importorskip("transformers")

from mmjax.core import plugins  # noqa: E402
from mmjax.core.config import ConfigError  # noqa: E402
from mmjax.generate.backend import Box, Decoding, Entity, Failure, Message, Picture, PictureRequest, TextRequest  # noqa: E402
from mmjax.generate.backends import hf  # noqa: E402
from mmjax.generate.torch_models import encoders  # noqa: E402
from support import torch_models as tiny  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that are not ours

SAMPLE = Decoding(n=2, temperature=0.9, top_k=50, top_p=0.95, min_tokens=4, max_tokens=6)
SEEDS = [5, 6, 2**32 - 1]
CAPTIONERS = {
    "blip": (tiny.blip, {}, (None, "a cat")),
    "blip for questions": (tiny.blip, {"answers_questions": True}, ("what is it?",)),
    "blip-2": (tiny.blip2, {}, (None, "question: what")),
    "instructblip": (tiny.instruct_blip, {}, (None, "what is it?")),
    "llava": (tiny.llava, {}, (None, "what is it?")),
}
PIPELINES = {
    "StableDiffusionPipeline": ("text", "image", "inpaint"),
    "StableDiffusionInpaintPipeline": ("inpaint",),
    "StableDiffusionInstructPix2PixPipeline": ("instruct",),
    "StableDiffusionGLIGENPipeline": ("layout",),
}


def make(role, folder, **options):
    section = {"name": "hf", "model": str(folder), "device": "cpu", **options}
    return plugins.make("mmjax.generate.backends", role, section, path="models.x")


@pytest.mark.parametrize("name", CAPTIONERS)
def test_captions_depend_on_picture_prompt_and_seed_but_not_on_the_batch(name, tmp_path):
    build, options, prompts = CAPTIONERS[name]
    folder = build(tmp_path / "model", **options)
    one, many = make("Captioner", folder, batch_size=1), make("Captioner", folder, batch_size=8)
    pictures = tiny.pictures(3)
    for prompt in prompts:
        for decoding in (SAMPLE, Decoding(max_tokens=4), Decoding(n=2, beams=3, max_tokens=4)):
            texts = many.caption(pictures, [prompt] * 3, decoding, SEEDS)
            assert texts == one.caption(pictures, [prompt] * 3, decoding, SEEDS), decoding
            assert all(isinstance(own, list) and len(own) == decoding.n for own in texts), texts
        sampled = many.caption(pictures, [prompt] * 3, SAMPLE, SEEDS)
        assert sampled[0] != many.caption(pictures[:1], [prompt], SAMPLE, [7])[0]
        assert sampled[::-1] == many.caption(pictures[::-1], [prompt] * 3, SAMPLE, SEEDS[::-1])
        assert len({text for own in sampled for text in own}) == 6
    mixed = many.caption(pictures, [*prompts, *prompts, *prompts][:3], SAMPLE, SEEDS)
    assert mixed[0] == many.caption(pictures[:1], prompts[:1], SAMPLE, SEEDS[:1])[0]
    if name == "blip":
        assert all(text.startswith("a cat") for text in mixed[1])
    if name in ("blip-2", "llava"):
        assert not any("question" in text or "user" in text[:6] for text in mixed[0])


def test_sampling_follows_the_models_distribution(tmp_path):
    model = make("Writer", tiny.llama(tmp_path, chat=False), batch_size=512)
    request = TextRequest([Message("user", "a red cat")])
    decoding = Decoding(n=512, temperature=1.5, top_k=5, max_tokens=1)
    [texts] = model.write([request], decoding, [0])
    loaded = model._language_model
    inputs = loaded._tokenizer("a red cat", return_tensors="pt", return_token_type_ids=False)
    with torch.inference_mode():
        logits = loaded._network(**inputs).logits[0, -1]
    best = logits.topk(5)
    expected = torch.softmax(best.values.double() / 1.5, -1).numpy()
    names = [loaded._tokenizer.decode([token], skip_special_tokens=True).strip() for token in best.indices.tolist()]
    if len(set(names)) == 5 and all(names):
        shares = np.array([texts.count(name) for name in names]) / 512
        assert shares.sum() == 1
        assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / 512)
    else:  # several tokens write the same text
        assert set(texts) <= set(names)


@pytest.mark.parametrize("chat", [True, False])
def test_conversations_of_any_length_share_a_batch(chat, tmp_path):
    folder = tiny.llama(tmp_path, chat=chat)
    one, many = make("Writer", folder, batch_size=1), make("Writer", folder, batch_size=8)
    requests = [TextRequest([Message("system", "a cat"), Message("user", "red " * k + "what")]) for k in (1, 9, 4)]
    for decoding in (SAMPLE, Decoding(max_tokens=5), Decoding(n=2, beams=2, max_tokens=4)):
        assert one.write(requests, decoding, SEEDS) == many.write(requests, decoding, SEEDS)
    long = TextRequest([Message("user", "red " * 200)])
    results = many.write([requests[0], long], SAMPLE, SEEDS[:2])
    assert results[0] == many.write(requests[:1], SAMPLE, SEEDS[:1])[0]
    assert "more than the model's 128" in results[1].reason
    [failed] = many.write(requests[:1], SAMPLE, [0], {"type": "object"})
    assert isinstance(failed, Failure) and "not JSON" in failed.reason
    prompt = many._language_model._text(requests[0].messages)
    assert prompt == ("<s>system: a cat\n<s>user: red what\n<s>assistant:" if chat else "a cat\n\nred what")
    with pytest.raises(ConfigError, match="sees no pictures"):
        many.write([TextRequest([Message("user", "what", tiny.pictures(1)[0])])], SAMPLE, [0])
    for wrong, words_of in ((Decoding(n=3, beams=2), "n=3"), (Decoding(beams=2, top_p=0.5), "does not sample")):
        with pytest.raises(ConfigError, match=words_of):
            many.write(requests[:1], wrong, [0])


def test_masks_are_filled_with_whole_words_and_nothing_else_changes(tmp_path):
    folder = tiny.masked_bert(tmp_path)
    one, many = make("MaskFiller", folder, batch_size=1), make("MaskFiller", folder, batch_size=8)
    texts = ["[MASK] visits [MASK].", "No mask", "Anna  paints [MASK]!", "x " * 60 + "[MASK]"]
    for temperature in (0.0, 2.0):
        filled = many.fill(texts, temperature, [1, 2, 3, 4])
        assert filled == one.fill(texts, temperature, [1, 2, 3, 4])
        first, second, third, fourth = filled
        assert second == "No mask" and isinstance(fourth, Failure) and "48 tokens" in fourth.reason
        assert first.endswith(".") and " visits " in first and third.startswith("Anna  paints ") and third[-1] == "!"
    drawn = many.fill(["[MASK]"] * 300, 50.0, range(300))
    assert len(set(drawn)) > 100
    vocabulary = set(many._filler._tokenizer.get_vocab())
    assert all(word.isalnum() and word in vocabulary for word in drawn)
    assert many.fill(["[MASK]"], 50.0, [1]) != many.fill(["[MASK]"], 50.0, [2])
    with pytest.raises(ConfigError, match="no mask token"):
        make("MaskFiller", tiny.llama(tmp_path / "llama")).fill(["[MASK]"], 1.0, [0])


def test_the_likeliest_words_are_the_networks(tmp_path):
    model = make("MaskFiller", tiny.masked_bert(tmp_path))
    filler = model._filler
    inputs = filler._tokenizer("a red [MASK] cat", return_tensors="pt")
    with torch.inference_mode():
        logits = filler._network(**inputs).logits[0, 3]
    tokens = filler._tokenizer.convert_ids_to_tokens(logits.argsort(descending=True).tolist())
    expected = next(t for t in tokens if t.isalnum())
    assert model.fill(["a red [MASK] cat"], 0.0, [0]) == [f"a red {expected} cat"]


def test_entities_are_the_labels_of_words(tmp_path, monkeypatch):
    folder = tiny.tagging_bert(tmp_path)
    one, many = make("EntityTagger", folder, batch_size=1), make("EntityTagger", folder, batch_size=8)
    texts = ["anna visits paris with bobby", "", "red " * 60, "Bob paints"]
    found = many.entities(texts)
    assert found == one.entities(texts) and found[1] == [] and isinstance(found[2], Failure)
    for text, own in ((texts[0], found[0]), (texts[3], found[3])):
        assert own == sorted(own) and all(0 <= e.start < e.end <= len(text) for e in own)
        assert all(a.end <= b.start for a, b in itertools.pairwise(own))

    labels = {"anna": 1, "smith": 2, "visits": 0, "paris": 3, "bob": 1, "x": 4}
    tagger = many._tagger

    def planted(input_ids, **_):
        tokens = [tagger._tokenizer.convert_ids_to_tokens(row) for row in input_ids.tolist()]
        ids = torch.tensor([[labels.get(token, 4 if token.startswith("##") else 0) for token in row] for row in tokens])
        return type("Outputs", (), {"logits": torch.nn.functional.one_hot(ids, 5).float()})

    planted.device, planted.dtype, planted.config = torch.device("cpu"), torch.float32, tagger._network.config
    monkeypatch.setattr(tagger, "_network", planted)
    assert many.entities(["Anna Bob visits Paris x"]) == [
        [Entity(0, 4, "PERSON"), Entity(5, 8, "PERSON"), Entity(16, 23, "LOC")]
    ]


def test_words_take_the_label_of_their_first_token():
    spans = encoders._spans([None, 0, 0, 1, None], [(0, 0), (0, 2), (2, 5), (6, 8), (0, 0)], [9, 1, 2, 0, 9])
    assert spans == [((0, 5), 1), ((6, 8), 0)]


@pytest.mark.parametrize("build", [tiny.grounding_dino, tiny.owl_vit], ids=["grounding-dino", "owl-vit"])
def test_boxes_are_in_the_picture_best_first_and_have_phrases_that_were_asked_for(build, tmp_path):
    folder = build(tmp_path)
    one, many = make("Detector", folder, batch_size=1), make("Detector", folder, batch_size=8)
    pictures = [*tiny.pictures(3), *tiny.pictures(1, (32, 64))]
    phrases = [["a Cat", "red square"], ["a Cat", "red square"], [], ["dog."]]
    found, single = many.detect(pictures, phrases, 0.0), one.detect(pictures, phrases, 0.0)
    for own, other, asked in zip(found, single, phrases, strict=True):
        assert [b.phrase for b in own] == [b.phrase for b in other] and {b.phrase for b in own} <= set(asked)
        np.testing.assert_allclose([[*b[:4], b.score] for b in own], [[*b[:4], b.score] for b in other], atol=1e-4)
        assert all(0 <= b.x1 < b.x2 <= 1 and 0 <= b.y1 < b.y2 <= 1 for b in own)
        assert [b.score for b in own] == sorted((b.score for b in own), reverse=True)
    assert found[0] and found[3] and not found[2]
    threshold = (found[0][1].score + found[0][2].score) / 2
    assert [b.phrase for b in many.detect(pictures[:1], phrases[:1], threshold)[0]] == [b.phrase for b in found[0][:2]]


def test_boxes_are_those_of_the_librarys_own_postprocessing(tmp_path):
    model = make("Detector", tiny.owl_vit(tmp_path))
    [picture] = tiny.pictures(1, (40, 80))
    [found] = model.detect([picture], [["a cat", "red square"]], 0.3)
    detector = model._detector
    inputs = detector._processor(
        images=[picture.pixels], text=[["a cat", "red square"]], return_tensors="pt", padding=True
    )
    with torch.inference_mode():
        outputs = detector._network(**inputs)
    [expected] = detector._processor.post_process_grounded_object_detection(
        outputs, threshold=0.3, target_sizes=[(40, 80)]
    )
    order = expected["scores"].argsort(descending=True)
    boxes = expected["boxes"][order].clamp(min=0).minimum(torch.tensor([80.0, 40.0] * 2)).numpy()
    np.testing.assert_allclose([b.score for b in found], expected["scores"][order].numpy(), atol=1e-5)
    np.testing.assert_allclose(np.array([b[:4] for b in found]) * [80, 40, 80, 40], boxes, atol=1e-3)


def requests_for(mode, pictures, mask):
    common = {"steps": 2, "guidance": 5.0}
    for number, picture in enumerate(pictures):
        prompt = f"a cat {number}"
        if mode == "text":
            yield PictureRequest(mode, prompt, size=(16, 24) if number else None, **common)
        elif mode == "image":
            yield PictureRequest(mode, prompt, picture=picture, strength=0.6, **common)
        elif mode == "instruct":
            yield PictureRequest(mode, prompt, picture=picture, image_guidance=1.3, **common)
        elif mode == "inpaint":
            yield PictureRequest(mode, prompt, picture=picture, mask=mask, strength=0.9, **common)
        else:
            yield PictureRequest(mode, prompt, boxes=[Box(0, 0, 0.5, 0.5, "a cat", 1)], size=(16, 24), **common)


@pytest.mark.parametrize("kind", PIPELINES)
def test_pictures_depend_on_request_and_seed_and_are_as_asked_for(kind, tmp_path):
    pytest.importorskip("diffusers", reason="pip install -e '.[generate]'")
    folder = tiny.stable_diffusion(tmp_path, kind=kind)
    one, many = make("ImageGenerator", folder, batch_size=1), make("ImageGenerator", folder, batch_size=8)
    pictures, mask = tiny.pictures(2, (30, 36)), np.zeros((30, 36), bool)
    mask[5:15, 8:20] = True
    for mode in PIPELINES[kind]:
        requests = list(requests_for(mode, pictures, mask))
        made, alone = many.make(requests, [3, 4]), one.make(requests, [3, 4])
        for request, picture, other in zip(requests, made, alone, strict=True):
            assert isinstance(picture, Picture), picture
            assert picture.pixels.dtype == np.uint8 and picture.pixels.std() > 0
            source = request.size or (None if request.picture is None else request.picture.pixels.shape[:2])
            assert picture.pixels.shape[:2] == (source or (32, 32))
            assert np.abs(picture.pixels.astype(int) - other.pixels).max() <= 1
            if mode == "inpaint":
                np.testing.assert_array_equal(picture.pixels[~mask], request.picture.pixels[~mask])
                assert (picture.pixels[mask] != request.picture.pixels[mask]).any()
        assert (many.make(requests[:1], [5])[0].pixels != made[0].pixels).any()
        np.testing.assert_array_equal(one.make(requests[:1], [3])[0].pixels, alone[0].pixels)
    wrong = "instruct" if "Pix2Pix" not in kind else "text"
    with pytest.raises(ConfigError, match=rf"{kind} does no '{wrong}'"):
        many.make([PictureRequest(wrong, "a", picture=pictures[0])], [0])
    if kind == "StableDiffusionPipeline":
        failed = many.make([PictureRequest("image", "a"), PictureRequest("inpaint", "a", picture=pictures[0])], [0, 1])
        assert ["needs a picture" in f.reason for f in failed] == [True, True]
        larger = make("ImageGenerator", folder, side=40).make(list(requests_for("image", pictures, mask)), [3, 4])
        assert [p.pixels.shape for p in larger] == [(30, 36, 3)] * 2


def test_a_bad_item_fails_alone(tmp_path):
    model = make("Captioner", tiny.blip(tmp_path))
    bad = Picture(np.zeros((2, 2, 2, 3), np.uint8))
    good = tiny.pictures(2)
    results = model.caption([good[0], bad, good[1]], [None] * 3, SAMPLE, SEEDS)
    assert isinstance(results[1], Failure)
    assert results[0::2] == model.caption(good, [None] * 2, SAMPLE, SEEDS[0::2])


def test_mistakes_are_one_line_with_a_way_out(tmp_path):
    bert = tiny.masked_bert(tmp_path / "bert")
    for act, words_of in (
        (lambda: make("Writer", tmp_path / "nothing").write([], SAMPLE, []), "name a folder"),
        (lambda: make("Captioner", bert).caption([], [], SAMPLE, []), "cannot load it"),
        (lambda: make("Detector", bert).detect([], [], 0.1), "grounding-dino"),
        (lambda: make("MaskFiller", bert, device="cuda:99").fill(["[MASK]"], 1.0, [0]), "device='cuda:99'"),
        (lambda: make("MaskFiller", bert, dtype="float64"), "models.x.dtype='float64'"),
        (lambda: make("MaskFiller", bert, sid=3), "models.x.sid=3: unknown key"),
    ):
        with pytest.raises(ConfigError, match=words_of) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert hf.Captioner(model="m").revision == "main"
