"""Models for data recipes that need no weights: each answer follows from the item and its seed."""

import json
import re

import numpy as np

from mmjax.generate.backend import Entity, Failure

WORDS = ("cow", "tree", "river", "owl", "green", "Bob", "under")


class Fake:
    revision = "1"

    def __init__(self, *, model="fake", batch_size=8):
        self.model = model


class MaskFiller(Fake):
    """Draws one of a few words; fails on texts with "fail"."""

    def fill(self, texts, temperature, seeds):
        assert temperature >= 0
        fills = [WORDS[np.random.default_rng(seed).integers(len(WORDS))] for seed in seeds]
        return [
            Failure("out of memory") if "fail" in text else text.replace("[MASK]", word)
            for text, word in zip(texts, fills, strict=True)
        ]


class EntityTagger(Fake):
    """Capitalized words are persons, but for the first; "Paris" is a place."""

    def entities(self, texts):
        return [
            Failure("no text")
            if "broken" in text
            else [
                Entity(*match.span(), "GPE" if match[0] == "Paris" else "PERSON")
                for match in re.finditer(r"(?<=\W)[A-Z]\w+(?: [A-Z]\w+)*", text)
            ]
            for text in texts
        ]


class Scorer(Fake):
    """Texts with an owl are as near to their picture as any; the first of several is at 0.3."""

    def score(self, pictures, texts):
        return [
            np.array([0.3, *(0.4 if "owl" in text else 0.2 for text in several[1:])], np.float32) for several in texts
        ]


class Writer(Fake):
    """Exchanges the first letter, by kind; "broken" captions get no JSON."""

    def write(self, requests, decoding, seeds, schema=None):
        replies = []
        for request in requests:
            caption = request.values["caption"]
            reply = {kind: f"{kind} of {caption[2:]}" for kind in schema["required"]}
            reply["relation"] = ""
            replies.append(["no JSON" if "broken" in caption else json.dumps(reply)])
        return replies
