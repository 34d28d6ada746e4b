"""Prompts: texts with blanks in files, whose hash goes into the provenance of what they lead to."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from mmjax.core.config import ConfigError, nearest
from mmjax.generate.backend import Message, TextRequest

_TURN = re.compile(r"^## (system|user|assistant)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A file of turns, each below a line ``## system``, ``## user`` or ``## assistant``; ``$name`` is a blank."""

    name: str
    turns: tuple[tuple[str, str], ...]
    sha: str

    def fill(self, *, examples: Sequence[tuple[str, str]] = (), **values: Any) -> TextRequest:
        """The request with the blanks filled; ``examples`` are turns of user and assistant before the last one."""
        texts = {name: "\n".join(map(str, v)) if isinstance(v, (list, tuple)) else str(v) for name, v in values.items()}
        try:
            filled = [(role, string.Template(text).substitute(texts)) for role, text in self.turns]
        except (KeyError, ValueError) as error:
            raise ConfigError(f"prompt={self.name!r}: its blank {error} is not among {', '.join(values)}") from None
        shown = [turn for user, reply in examples for turn in (("user", user), ("assistant", reply))]
        messages = [Message(cast(Literal["system"], role), text) for role, text in [*filled[:-1], *shown, filled[-1]]]
        return TextRequest(messages, task=self.name, values=values)


@functools.cache
def load_prompt(name: str) -> Prompt:
    """A prompt of ``mmjax/generate/prompts`` by its name, or one's own by its path."""
    folder = importlib.resources.files(__package__).joinpath("prompts")
    known = {file.name.removesuffix(".txt") for file in folder.iterdir() if file.name.endswith(".txt")}
    if name in known:
        text = folder.joinpath(f"{name}.txt").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"prompt={name!r}: neither a prompt nor a file; {nearest(name, known)}") from None
    pieces = _TURN.split(text)
    turns = tuple((role, body.strip()) for role, body in zip(pieces[1::2], pieces[2::2], strict=True))
    if not turns or pieces[0].strip() or turns[-1][0] != "user":
        raise ConfigError(f"prompt={name!r}: needs turns below lines '## system' or '## user', the last one the user's")
    return Prompt(Path(name).stem, turns, hashlib.sha256(text.encode()).hexdigest()[:16])
