"""JSON replies of models, checked against the part of JSON Schema that structured outputs use."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.core.config import ConfigError, short_repr, shorten

_TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "integer": lambda value: not isinstance(value, bool) and isinstance(_as_integer(value), int),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "minimum": ("number", lambda value, limit: value >= limit),
    "maximum": ("number", lambda value, limit: value <= limit),
    "exclusiveMinimum": ("number", lambda value, limit: value > limit),
    "exclusiveMaximum": ("number", lambda value, limit: value < limit),
    "minLength": ("string", lambda value, limit: len(value) >= limit),
    "maxLength": ("string", lambda value, limit: len(value) <= limit),
    "pattern": ("string", lambda value, pattern: re.search(pattern, value) is not None),
    "minItems": ("array", lambda value, limit: len(value) >= limit),
    "maxItems": ("array", lambda value, limit: len(value) <= limit),
    "uniqueItems": ("array", lambda value, wanted: not wanted or len({_canonical(v) for v in value}) == len(value)),
}
"""Keywords with the type that they apply to, and when a value passes."""
_NESTED = ("properties", "additionalProperties", "items", "anyOf")
_OTHERS = ("type", "enum", "const", "required")
_REMARKS = ("title", "description", "default", "examples", "$schema", "$id", "$comment")
_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(.*)\n\s*```\s*\Z", re.DOTALL)


def read_reply(text: str, schema: Mapping[str, Any]) -> str:
    """The JSON of a reply, without a code fence around it.

    >>> read_reply('```json\\n{"color": "red"}\\n```', {"type": "object", "required": ["color"]})
    '{"color": "red"}'

    Raises:
      ValueError: it is not JSON or does not follow the schema; the message says where.
    """
    fenced = _FENCE.match(text)
    text = (fenced[1] if fenced else text).strip()
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the reply is not JSON ({shorten(str(error), 80)}): {short_repr(text)}") from None
    if reason := find_violation(value, schema):
        raise ValueError(f"the reply does not follow the schema: {reason}")
    return text


def find_violation(value: Any, schema: Any, path: str = "$") -> str | None:
    """Where and how a value breaks a schema that ``check_schema`` has passed; None if it does not."""
    if isinstance(schema, bool):
        return None if schema else f"{path} must not be there"
    kinds = schema.get("type", ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if kinds and not any(_TYPES[kind](value) for kind in kinds):
        return f"{path}={short_repr(value)} is not of type {' or '.join(kinds)}"
    if "enum" in schema and _canonical(value) not in map(_canonical, schema["enum"]):
        return f"{path}={short_repr(value)} is not one of {short_repr(schema['enum'])}"
    if "const" in schema and _canonical(value) != _canonical(schema["const"]):
        return f"{path}={short_repr(value)} is not {short_repr(schema['const'])}"
    for keyword, (kind, passes) in _LIMITS.items():
        if keyword in schema and _TYPES[kind](value) and not passes(value, schema[keyword]):
            return f"{path}={short_repr(value)} breaks {keyword}={short_repr(schema[keyword])}"
    if "anyOf" in schema and all(find_violation(value, option, path) for option in schema["anyOf"]):
        return f"{path}={short_repr(value)} follows none of anyOf"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        if missing := [name for name in schema.get("required", ()) if name not in value]:
            return f"{path}.{missing[0]} is missing"
        inner = [(f"{path}.{name}", v, properties.get(name, schema.get("additionalProperties", True)))
                 for name, v in value.items()]  # fmt: skip
    else:
        inner = [
            (f"{path}[{i}]", v, schema.get("items", True))
            for i, v in enumerate(value if isinstance(value, list) else ())
        ]
    return next((reason for where, v, part in inner if (reason := find_violation(v, part, where))), None)


def check_schema(schema: Any, *, path: str = "schema") -> None:
    """Raises ConfigError if a schema has keywords or values that are not understood here."""
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{path}={short_repr(schema)}: a schema is an object or a bool")
    for keyword, value in schema.items():
        if keyword not in (*_LIMITS, *_NESTED, *_OTHERS, *_REMARKS):
            raise ConfigError(
                f"{path}.{keyword}={short_repr(value)}: not understood; "
                f"use {', '.join(sorted((*_LIMITS, *_NESTED, *_OTHERS)))}"
            )
    kinds = schema.get("type", ())
    for kind in (kinds,) if isinstance(kinds, str) else kinds:
        if kind not in _TYPES:
            raise ConfigError(f"{path}.type={short_repr(kind)}: expected {', '.join(_TYPES)}")
    try:
        re.compile(schema.get("pattern", ""))
    except re.error as error:
        raise ConfigError(f"{path}.pattern={schema['pattern']!r}: {error}; see Python's re") from None
    for name, part in schema.get("properties", {}).items():
        check_schema(part, path=f"{path}.properties.{name}")
    for i, part in enumerate(schema.get("anyOf", ())):
        check_schema(part, path=f"{path}.anyOf[{i}]")
    for keyword in ("additionalProperties", "items"):
        check_schema(schema.get(keyword, True), path=f"{path}.{keyword}")


def _canonical(value: Any) -> str:
    """Equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    return json.dumps(_integers(value), sort_keys=True)


def _integers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _integers(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_integers(v) for v in value]
    return _as_integer(value)


def _as_integer(value: Any) -> Any:
    return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")
