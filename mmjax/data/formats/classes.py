"""Class names and prompt templates, as benchmarks store them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mmjax.core.config import ConfigError
from mmjax.data.storage import filesystem, path_patterns
from mmjax.data.text import clean

DEFAULT_TEMPLATES = ("a photo of a {}.",)

Names = str | tuple[str, ...] | None


def names(value: Names | dict[str, str], *, key: str = "class_names") -> list[str] | dict[str, str] | None:
    """Class names from an option or a file: ``.json`` is a list or an object, other files have one a line.

    An object is a mapping from the names of folders; ``{"0": "tench", "1": …}`` with all numbers is a list.
    """
    if value is None:
        return None
    content = _file(value, key) if isinstance(value, str) else value
    texts = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts) or not texts:
        raise ConfigError(f"{key}={value!r}: expected names, or a file with a list or an object of them; check it")
    if not isinstance(content, dict):
        return list(content)
    if set(content) == {str(number) for number in range(len(content))}:
        return [content[str(number)] for number in range(len(content))]
    return dict(content)


def templates(value: Names, *, key: str = "templates") -> list[str] | None:
    """Templates from an option or a file, with ``{}`` for the class; files may write ``{c}``."""
    if value is None:
        return None
    content = names(value, key=key)
    texts = list(content.values()) if isinstance(content, dict) else content or []
    made = [text.replace("{c}", "{}") for text in texts]
    wrong = next((text for text in made if "{}" not in text), None)
    if wrong is not None:
        raise ConfigError(f"{key}={value!r}: {wrong!r} has no place for the class; write {{}} there")
    return made


def prompts(name: str, templates: Sequence[str] | None) -> list[str]:
    """The prompts for a class: each template with its name."""
    return [template.replace("{}", name) for template in templates or DEFAULT_TEMPLATES]


def _file(path: str, key: str) -> list[str] | dict[str, str]:
    (path,) = path_patterns.expand([path], key=key)
    data = filesystem.read(path)
    try:
        if path.lower().endswith(".json"):
            return json.loads(data)
        return [clean(line) for line in data.rstrip().splitlines()]
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{key}={path!r}: {' '.join(str(error).split())}; expected UTF-8 text or JSON") from None
