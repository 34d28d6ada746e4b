"""Tokenizers: trained on the captions, loaded from a folder, or loaded from the Hugging Face hub.

All of them are a ``tokenizers.Tokenizer`` that writes every text as ``BOS? body EOS pad*``, truncated before EOS. So
they are saved, loaded and pickled in the same way, and a saved run needs neither ``transformers``, which takes a second
to import, nor a network.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from mmjax.core.config import ConfigError, coerce, nearest
from mmjax.core.files import find_irregular, read_json_object
from mmjax.data import clip_bpe
from mmjax.data.text import get_cleaning
from mmjax.data.token_format import TokenFormat

_PAD, _BOS, _EOS, _UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_CONFIG_FILE = "tokenizer_config.json"
_OWN_KEY = "mmjax"  # in tokenizer_config.json: the folder was written by `save`


class Tokenizer:
    """``tokenizer(texts) -> i32[n, context_length]``; each row is ``BOS? body EOS pad*``.

    ``bos_id`` is None for tokenizers without a start token (SigLIP). ``pad_id`` may equal ``eos_id`` (Hugging Face's
    CLIP), so a text ends at its *first* EOS. Text that looks like a special token, such as ``"<eos>"`` in a caption, is
    tokenized as plain characters.

    Example::

        >>> words = load("word", context_length=6, captions=["a red cat", "a dog"])
        >>> words(["a cat"]).shape
        (1, 6)
        >>> words.decode(words(["A red cat"]))
        ['a red cat']
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        context_length: int,
        bos: str | None,
        eos: str,
        pad: str,
        clean: str | None = None,
    ):
        specials = 1 + (bos is not None)
        if context_length <= specials:
            raise ConfigError(
                f"context_length={context_length}: no room for text next to {specials} special token(s); "
                f"use at least {specials + 1}"
            )
        self.context_length = context_length
        self.eos_id = _id(backend, eos)
        self.bos_id = None if bos is None else _id(backend, bos)
        self.pad_id = _id(backend, pad)
        self.vocab_size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._bos, self._eos, self._pad = bos, eos, pad
        self.clean = clean
        self._cleaning = get_cleaning(clean)
        special_ids = {bos: self.bos_id, eos: self.eos_id}
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A {eos}" if bos is not None else f"$A {eos}",
            special_tokens=[(token, i) for token, i in special_ids.items() if token is not None],
        )
        backend.enable_truncation(context_length)
        backend.enable_padding(length=context_length, pad_id=self.pad_id, pad_token=pad)
        self._backend = backend
        self._encode_special_tokens_as_text()

    @property
    def format(self) -> TokenFormat:
        """The special tokens and sizes, for transforms of tokens."""
        return TokenFormat(self.bos_id, self.eos_id, self.pad_id, self.vocab_size, self.context_length)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of ``texts``: i32[n, context_length]."""
        if isinstance(texts, str):
            raise TypeError(f"expected a sequence of texts, got one string {texts!r}; wrap it in a list")
        rows = [encoding.ids for encoding in self._encode(texts)]
        return np.array(rows, np.int32).reshape(len(rows), self.context_length)

    def decode(self, ids: np.ndarray) -> list[str]:
        """The texts of ``ids`` i32[n, context_length], without special tokens; truncated text is lost."""
        bodies = []
        for row in np.asarray(ids).tolist():
            body = row[: row.index(self.eos_id)] if self.eos_id in row else row
            bodies.append(body[1:] if body[:1] == [self.bos_id] else body)
        return [text.strip() for text in self._backend.decode_batch(bodies, skip_special_tokens=False)]

    def is_truncated(self, texts: Sequence[str]) -> np.ndarray:
        """bool[n]: which of ``texts`` are longer than ``context_length``, and lose their end."""
        return np.array([bool(encoding.overflowing) for encoding in self._encode(texts)], bool)

    @property
    def has_unknown_words(self) -> bool:
        """Whether there are words that it has no token for; byte-level tokenizers have one for all."""
        return getattr(self._backend.model, "unk_token", None) is not None

    def unknown_fraction(self, texts: Sequence[str]) -> float:
        """The fraction of the words of ``texts`` that are not in the vocabulary."""
        if not self.has_unknown_words:
            return 0.0
        unknown = self._backend.model.unk_token
        ids = self(texts)
        words = ids[~np.isin(ids, [i for i in (self.bos_id, self.eos_id, self.pad_id) if i is not None])]
        return float((words == self._backend.token_to_id(unknown)).mean()) if len(words) else 0.0

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``tokenizer.json`` and its configuration, for ``load`` and for ``transformers.AutoTokenizer``."""
        os.makedirs(folder, exist_ok=True)
        self._backend.save(os.path.join(folder, "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.context_length,
            "clean_up_tokenization_spaces": False,
            "eos_token": self._eos,
            "pad_token": self._pad,
            **({} if self._bos is None else {"bos_token": self._bos}),
            _OWN_KEY: {"bos": self._bos, "eos": self._eos, "pad": self._pad, "clean": self.clean},
        }
        with open(os.path.join(folder, _CONFIG_FILE), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=2, ensure_ascii=False)

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        return self._backend.encode_batch_fast([self._cleaning(text) for text in texts])

    def _encode_special_tokens_as_text(self) -> None:
        self._backend.encode_special_tokens = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encode_special_tokens_as_text()  # pickling the backend loses it


def load(
    name: str,
    *,
    context_length: int,
    captions: Iterable[str] | None = None,
    vocab_size: int = 8192,
    clean: str | None = None,
    strip_sep: bool = False,
) -> Tokenizer:
    """Trains or loads a tokenizer.

    Args:
      name: ``"word"`` (the most frequent lower-case words, Chinese and Japanese characters, and runs of punctuation),
        ``"bpe"`` (lower-case byte-level BPE, without unknown tokens), a folder of a run or a Hugging Face tokenizer, a
        hub name, or CLIP's own ``bpe_simple_vocab_16e6.txt.gz``.
      context_length: tokens per row.
      captions: to train ``"word"`` or ``"bpe"`` on; their order does not matter.
      vocab_size: largest number of ids of a trained tokenizer.
      clean: how texts are cleaned first (see ``get_cleaning``); None: as the tokenizer says, most do nothing.
      strip_sep: of a Hugging Face tokenizer whose texts end with a separator, as BERT's: write id 0 in its place, as
        CLIPA's models expect it.
    """
    get_cleaning(clean)
    if strip_sep and (name in ("word", "bpe") or name.endswith(clip_bpe.SUFFIX) or _saved_specials(name) is not None):
        raise ConfigError(f"strip_sep=True: tokenizer={name!r} writes no separator; leave it out")
    if name in ("word", "bpe"):
        if captions is None:
            raise ConfigError(f"tokenizer={name!r} is trained and needs captions; name a folder instead")
        backend = _train(name, captions, vocab_size)
        return Tokenizer(backend, context_length=context_length, bos=_BOS, eos=_EOS, pad=_PAD, clean=clean)
    if name.endswith(clip_bpe.SUFFIX):
        backend = clip_bpe.load_backend(name)
        pad = _token(backend, 0)  # CLIP pads with id 0, which is also "!"; no text is read beyond its end
        specials = _Specials(clip_bpe.START, clip_bpe.END, pad, clean or "lower")
        return Tokenizer(backend, context_length=context_length, **vars(specials))
    saved = _saved_specials(name)
    if saved is not None:
        try:
            backend = tokenizers.Tokenizer.from_file(os.path.join(name, "tokenizer.json"))
            specials = dataclasses.replace(saved, clean=clean or saved.clean)
            loaded = Tokenizer(backend, context_length=context_length, **vars(specials))
            loaded(["", "a word \U0010ffff"])  # a damaged file may fail only now
        except ConfigError:
            raise
        except BaseException as error:  # the library raises nothing narrower; its panics are no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ConfigError(f"tokenizer={name!r}: tokenizer.json cannot be read ({error}); save it again") from None
        return loaded
    return _pretrained(name, context_length, clean, strip_sep)


def published_options(name: str, *, clean: str | None, strip_sep: bool) -> dict[str, Any]:
    """The options for ``load`` that come with a model's tokenizer; a folder that ``save`` wrote has them itself."""
    if _saved_specials(name) is not None:
        return {}
    return {key: value for key, value in {"clean": clean, "strip_sep": strip_sep}.items() if value}


def _train(name: str, captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if name == "bpe" else []
    specials = [_PAD, _BOS, _EOS] + ([] if name == "bpe" else [_UNKNOWN])
    least = len(specials) + len(alphabet) + 1
    if vocab_size < least:
        raise ConfigError(f"vocab_size={vocab_size}: tokenizer={name!r} needs at least {least}")
    trainer: trainers.Trainer
    if name == "word":
        backend = tokenizers.Tokenizer(models.WordLevel(unk_token=_UNKNOWN))
        # Chinese and Japanese have no spaces between words: each character is one.
        ideographs = pre_tokenizers.Split(tokenizers.Regex(r"[\p{Han}\p{Hiragana}\p{Katakana}]"), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([ideographs, pre_tokenizers.Whitespace()])
        trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=specials, show_progress=False)
    else:
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
    backend.train_from_iterator(captions, trainer)
    if backend.get_vocab_size() <= len(specials) + len(alphabet):
        raise ConfigError(f"tokenizer={name!r}: the captions have no words to train it on; check the source")
    return backend


@dataclasses.dataclass(frozen=True)
class _Specials:
    bos: str | None
    eos: str
    pad: str
    clean: str | None = None


def _saved_specials(folder: str) -> _Specials | None:
    """The special tokens of a folder written by `Tokenizer.save`; None for anything else."""
    if (path := find_irregular(folder)) is not None:
        raise ConfigError(f"tokenizer={folder!r}: {path} is not a regular file; remove it")
    try:
        own = read_json_object(Path(folder) / _CONFIG_FILE).get(_OWN_KEY)
        return None if own is None else coerce(own, _Specials, path=_OWN_KEY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, OSError) as error:
        raise ConfigError(f"tokenizer={folder!r}: {_CONFIG_FILE} cannot be read ({error}); save it again") from None


def _pretrained(name: str, context_length: int, clean: str | None, strip_sep: bool) -> Tokenizer:
    """Any Hugging Face tokenizer with a fast form; what it makes of an empty text tells its special tokens."""
    fast = _from_transformers(name)
    specials = fast("")["input_ids"]
    bos_id, eos_id = None, fast.eos_token_id
    if len(specials) == 2:
        bos_id, eos_id = specials
    elif len(specials) == 1 and specials[0] == fast.bos_token_id != eos_id:
        bos_id = specials[0]
    elif len(specials) == 1:
        eos_id = specials[0]
    elif specials:
        raise ConfigError(
            f"tokenizer={name!r}: it adds {len(specials)} special tokens to a text; only BOS and EOS work"
        )
    if eos_id is None:
        raise ConfigError(
            f"tokenizer={name!r}: it has no end-of-text token; give its tokenizer_config.json an eos_token"
        )
    pad_id = eos_id if fast.pad_token_id is None else fast.pad_token_id
    if strip_sep:
        if eos_id != fast.sep_token_id:
            raise ConfigError(f"strip_sep=True: texts of tokenizer={name!r} end with no separator; leave it out")
        eos_id = 0
    # A copy, because transformers patches its object (CLIP's decoding), and patches can be neither pickled nor saved.
    backend = tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
    suffix = getattr(backend.model, "end_of_word_suffix", None)
    if suffix and isinstance(backend.decoder, decoders.ByteLevel):
        backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(suffix, " ")])
    bos = None if bos_id is None else _token(backend, bos_id)
    eos, pad = _token(backend, eos_id), _token(backend, pad_id)
    return Tokenizer(backend, context_length=context_length, bos=bos, eos=eos, pad=pad, clean=clean)


def _from_transformers(name: str) -> Any:
    local = os.path.isdir(name)
    if not local and (os.path.exists(name) or name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise ConfigError(f"tokenizer={name!r}: no such folder; use 'word', 'bpe', a folder or a hub name 'owner/name'")
    hint = nearest(name.lower(), ("word", "bpe"))
    if not local and hint.startswith("did you mean"):
        raise ConfigError(f"tokenizer={name!r}: no such tokenizer; {hint}")
    offline = local or _is_cached_or_on_hub(name) == "cached"
    # Imported only here: transformers takes a second, and advises to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    error: Exception | None = None
    # The second loader reads the fast file of a folder whose class is slow (SigLIP's needs sentencepiece).
    for loader in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        try:
            # By default transformers asks on the terminal whether to run code of the folder.
            loaded = loader.from_pretrained(name, local_files_only=offline, trust_remote_code=False)
        except Exception as e:  # transformers raises anything from KeyError to RuntimeError on a damaged folder
            error = error or e
            continue
        if getattr(loaded, "backend_tokenizer", None) is not None:
            return loaded
    reason = " ".join(str(error).split())[:200] if error else "it has no fast form (tokenizer.json)"
    raise ConfigError(f"tokenizer={name!r}: cannot be loaded: {reason}")


def _is_cached_or_on_hub(name: str) -> Literal["cached", "on hub"]:
    """Asks with one short request, because without a network transformers retries for most of a minute."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    way_out = "use 'word', 'bpe' or a folder, or save it to a folder on a machine with a network"
    try:
        if isinstance(huggingface_hub.try_to_load_from_cache(name, _CONFIG_FILE), str):
            return "cached"
        huggingface_hub.HfApi().model_info(name, timeout=10)
    except (RepositoryNotFoundError, ValueError):
        raise ConfigError(
            f"tokenizer={name!r}: neither a folder nor a model on the Hugging Face hub; {way_out}"
        ) from None
    except Exception as error:  # whichever HTTP library the hub client uses this year
        raise ConfigError(
            f"tokenizer={name!r}: no such folder, and the Hugging Face hub cannot be reached "
            f"({type(error).__name__}); {way_out}"
        ) from None
    return "on hub"


def _id(backend: tokenizers.Tokenizer, token: str) -> int:
    index = backend.token_to_id(token)
    if index is None:
        raise ConfigError(f"tokenizer: its special token {token!r} is not in its vocabulary; save it again")
    return index


def _token(backend: tokenizers.Tokenizer, index: int) -> str:
    token = backend.id_to_token(index)
    if token is None:
        raise ConfigError(f"tokenizer: its special id {index} is not in its vocabulary; save it again")
    return token
