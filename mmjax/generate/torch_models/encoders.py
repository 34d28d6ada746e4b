"""Encoders that judge words: what fits into a blank, and what a word names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mmjax.core.config import ConfigError
from mmjax.generate.backend import Entity, Failure
from mmjax.generate.torch_models.loading import TorchModel, draws, import_torch, import_transformers, to_device

MASK = "[MASK]"
_KINDS = {"PER": "PERSON"}  # CoNLL's name beside OntoNotes' and spaCy's


class BlankFiller:
    """A masked language model, of the kind of BERT or RoBERTa."""

    def __init__(self, options: TorchModel):
        torch, transformers = import_torch(), import_transformers()
        self._options = options
        self._tokenizer = options.read(transformers.AutoTokenizer)
        if self._tokenizer.mask_token is None:
            raise ConfigError(f"model={options.model!r}: its tokenizer has no mask token; name a masked language model")
        self._network = options.load(transformers.AutoModelForMaskedLM)
        self._vocabulary = self._whole_words(self._network.config.vocab_size)
        self._allowed = torch.tensor([bool(word) for word in self._vocabulary])
        if not self._allowed.any():
            raise ConfigError(f"model={options.model!r}: its tokenizer has no whole words")

    def fill(self, texts: Sequence[str], temperature: float, seeds: Sequence[int]) -> list[str | Failure]:
        """Each text with one whole word drawn for every mask from softmax(logits / T); the likeliest if T is 0."""
        results: list[str | Failure] = list(texts)
        masked = [place for place, text in enumerate(texts) if MASK in text]
        filled = self._options.run(
            [texts[place] for place in masked],
            [seeds[place] for place in masked],
            lambda items, own_seeds: self._fill(items, temperature, own_seeds),
        )
        for place, text in zip(masked, filled, strict=True):
            results[place] = text
        return results

    def _fill(self, texts: Sequence[str], temperature: float, seeds: Sequence[int]) -> list[str]:
        torch, tokenizer = import_torch(), self._tokenizer
        written = [text.replace(MASK, tokenizer.mask_token) for text in texts]
        inputs = to_device(tokenizer(written, padding=True, truncation=True, return_tensors="pt"), self._network)
        logits = self._network(**inputs).logits.float().cpu()
        logits[..., ~self._allowed] = float("-inf")
        results = []
        for row, (text, seed) in enumerate(zip(texts, seeds, strict=True)):
            places = (inputs["input_ids"][row].cpu() == tokenizer.mask_token_id).nonzero()[:, 0]
            pieces = text.split(MASK)
            if len(places) != len(pieces) - 1:
                raise ValueError(f"a mask lies beyond the model's {tokenizer.model_max_length} tokens")
            stream, result = draws(seed), pieces[0]
            for place, piece in zip(places, pieces[1:], strict=True):
                own = logits[row, place].double()
                if temperature > 0:
                    sums = torch.softmax(own / temperature, -1).cumsum(-1).numpy()
                    chosen = int(np.searchsorted(sums, stream.random() * sums[-1], side="right"))
                else:
                    chosen = int(own.argmax())
                result += self._vocabulary[chosen] + piece
            results.append(result)
        return results

    def _whole_words(self, size: int) -> list[str]:
        """By token, the word that it writes; empty for sub-words, punctuation and special tokens."""
        tokenizer = self._tokenizer
        tokens = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
        # Byte-level and SentencePiece vocabularies mark the beginnings of words, WordPiece the other pieces.
        marks = {token[0] for token in tokens if token and token[0] in "Ġ▁"}
        special = set(tokenizer.all_special_tokens)
        vocabulary = []
        for number, token in enumerate(tokens):
            begins = token is not None and (token[:1] in marks if marks else not token.startswith("##"))
            word = tokenizer.decode([number]).strip() if begins and token not in special else ""
            vocabulary.append(word if word.isalnum() else "")
        return vocabulary + [""] * (size - len(vocabulary))


class Tagger:
    """A token classifier with labels as in B-PER, I-PER and O."""

    def __init__(self, options: TorchModel):
        transformers = import_transformers()
        self._options = options
        self._tokenizer = options.read(transformers.AutoTokenizer)
        if not self._tokenizer.is_fast:
            raise ConfigError(f"model={options.model!r}: its tokenizer has no offsets; name a model with a fast one")
        self._network = options.load(transformers.AutoModelForTokenClassification)

    def entities(self, texts: Sequence[str]) -> list[list[Entity] | Failure]:
        """The entities of each text; a word has the label of its first token."""
        return self._options.run(list(texts), [0] * len(texts), lambda items, _: self._tag(items))

    def _tag(self, texts: list[str]) -> list[list[Entity]]:
        tokens = self._tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
        limit = getattr(self._network.config, "max_position_embeddings", None)
        if limit is not None and tokens["input_ids"].shape[1] > limit:
            raise ValueError(f"{tokens['input_ids'].shape[1]} tokens are more than the model's {limit}")
        offsets = tokens.pop("offset_mapping").tolist()
        labels = self._network(**to_device(tokens, self._network)).logits.argmax(-1).tolist()
        names = self._network.config.id2label
        return [
            _join([(*span, names[label]) for span, label in _spans(tokens.word_ids(row), offsets[row], labels[row])])
            for row in range(len(texts))
        ]


def _spans(word_ids: Sequence[int | None], offsets: Any, labels: Sequence[int]) -> list[tuple[tuple[int, int], int]]:
    """Span and label of each word."""
    labeled: dict[int, tuple[tuple[int, int], int]] = {}
    for word, (start, end), label in zip(word_ids, offsets, labels, strict=True):
        if word is not None and start < end:
            (begin, _), first = labeled.get(word, ((start, end), label))
            labeled[word] = (begin, end), first
    return list(labeled.values())


def _join(labeled: Sequence[tuple[int, int, str]]) -> list[Entity]:
    """Neighboring words of one kind are one entity, unless the label says that another begins.

    >>> _join([(0, 4, "B-PER"), (5, 9, "I-PER"), (14, 17, "O"), (18, 22, "LOC")])
    [Entity(start=0, end=9, kind='PERSON'), Entity(start=18, end=22, kind='LOC')]
    """
    entities: list[Entity] = []
    goes_on = False
    for start, end, label in labeled:
        prefix, _, kind = label.rpartition("-")
        if label == "O":
            goes_on = False
            continue
        kind = _KINDS.get(kind, kind)
        if goes_on and prefix != "B" and entities[-1].kind == kind:
            entities[-1] = Entity(entities[-1].start, end, kind)
        else:
            entities.append(Entity(start, end, kind))
        goes_on = True
    return entities
