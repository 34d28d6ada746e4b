"""Class names and prompt templates, as benchmarks store them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mmjax.core.config import ConfigError, nearest
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


def class_prompts(
    value: Names, class_names: Sequence[str], *, dataset: str | None = None, key: str = "templates"
) -> list[list[str]]:
    """The prompts of each class, from templates or from a file of them.

    Args:
        value: Templates, with ``{}`` or ``{c}`` for the class; or a file. Its JSON may be a list of templates, an
            object with a list of prompts for each class (as CuPL's), or an object with either for each data set (as
            CLIP_benchmark's ``en_zeroshot_classification_templates.json``).
        class_names: The classes.
        dataset: The data set in such a file.
        key: The option, for errors.
    """
    content: Any = _of_dataset(_file(value, key) if isinstance(value, str) else value, value, dataset, key)
    if isinstance(content, dict):
        lacking = next((name for name in class_names if not _are_texts(content.get(name))), None)
        if lacking is not None:
            raise ConfigError(f"{key}={value!r}: has no list of prompts for the class {lacking!r}; add it")
        return [[text.replace("{c}", "{}").replace("{}", name) for text in content[name]] for name in class_names]
    if not _are_texts(content):
        raise ConfigError(
            f"{key}={value!r}: set at least one, each with {{}} where the class name goes, or a file of them"
        )
    made = [text.replace("{c}", "{}") for text in content]
    wrong = next((text for text in made if "{}" not in text), None)
    if wrong is not None:
        raise ConfigError(f"{key}={value!r}: {wrong!r} has no place for the class; write {{}} there")
    return [prompts(name, made) for name in class_names]


def dataset_names(value: str | tuple[str, ...], *, dataset: str | None, key: str = "class_names") -> list[str]:
    """Class names in order, from an option or a file, which may have a list for each data set.

    CLIP_benchmark's ``en_classnames.json`` is such a file.
    """
    content: Any = _of_dataset(_file(value, key) if isinstance(value, str) else value, value, dataset, key)
    if not _are_texts(content):
        raise ConfigError(
            f"{key}={value!r}: expected names, or a file with a list of them; set dataset=… if it has several"
        )
    return list(content)


def _of_dataset(content: Any, value: Any, dataset: str | None, key: str) -> Any:
    """What a file has for ``dataset``; the whole content if it has nothing for data sets."""
    if dataset is None:
        return content
    if not isinstance(content, dict) or dataset not in content:
        known = content if isinstance(content, dict) else ()
        raise ConfigError(f"{key}={value!r}: has nothing for dataset={dataset!r}; {nearest(dataset, known)}")
    return content[dataset]


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(text, str) and text for text in value)


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
