"""CLIP's vocabulary file, ``bpe_simple_vocab_16e6.txt.gz``, as a tokenizer (Radford et al., arXiv:2103.00020).

The file lists merges of byte pairs, most frequent first. Ids are: the 256 bytes, the same at the end of a word, a merge
each, start and end of text.
"""

from __future__ import annotations

import gzip
import zlib

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from mmjax.core.config import ConfigError

SUFFIX = ".txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
_MERGES = 49_152 - 256 - 2  # CLIP uses as many lines of the file
_LARGEST = 64 * 2**20
# Contractions, letters, single digits, anything else that is no space. U+0345 (the Greek iota below a letter) is left
# out: ignoring case, as CLIP does, the `regex` package takes it neither as a letter nor as anything else.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}\x{345}]+"


def load_backend(path: str) -> tokenizers.Tokenizer:
    """The tokenizer of the file at ``path``; its texts must be cleaned (``lower``) first."""
    merges = _read_merges(path)
    alphabet = _byte_characters()
    pieces = [*alphabet, *(c + _WORD_END for c in alphabet), *("".join(pair) for pair in merges), START, END]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=_WORD_END)
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"tokenizer={path!r}: its merges cannot be used ({error}); fetch it again") from None
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(_WORD_END, " ")])
    backend.add_special_tokens([START, END])
    return backend


def _read_merges(path: str) -> list[tuple[str, str]]:
    try:
        with gzip.open(path) as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ValueError(f"larger than {_LARGEST >> 20} MiB")
        lines = content.decode("utf-8").split("\n")[1 : _MERGES + 1]  # the first line is a heading
        merges = [(first, second) for first, second in (line.split() for line in lines if line)]
        if not merges:
            raise ValueError("no merges")
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ConfigError(f"tokenizer={path!r}: not CLIP's list of merges ({error}); fetch it again") from None
    return merges


def _byte_characters() -> list[str]:
    """A printable character for each byte, in CLIP's order: those that are printable, then the others."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, printable), *(chr(256 + n) for n in range(256 - len(printable)))]
