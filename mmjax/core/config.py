"""From a configuration section to keyword arguments, with errors that name the key and the way out.

The signature of a function or dataclass is the schema of its section: its annotations give types and ranges::

    @dataclasses.dataclass(frozen=True)
    class GuardConfig:
        max_rejected: Annotated[int, Ge(1)] = 10
        spike_factor: Annotated[float, Gt(1, "None turns it off")] | None = None

    build(GuardConfig, {"max_rejected": 0}, path="guard")  # ConfigError: guard.max_rejected=0: must be at least 1
"""

from __future__ import annotations

import abc
import ast
import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union

T = TypeVar("T")

NAMES_SHOWN = 24
MAX_FLOAT = 3.4e38  # of single precision
MAX_DEPTH = 20  # of sections and lists in each other


class ConfigError(ValueError):
    """A setting that cannot be used; the message is one line that names the key, the value and the way out."""


class Range(abc.ABC):
    """Limits of an option's numbers; no range holds NaN or infinity.

    The classes below are ours instead of the package annotated_types, because they carry the hint of an error message.
    """

    hint: str

    @abc.abstractmethod
    def __contains__(self, number: float) -> bool: ...

    def check(self, value: Any, *, path: str) -> None:
        """Raises ConfigError unless ``value`` is in the range, or all of ``value.extremes`` are (as of a schedule)."""
        for number in getattr(value, "extremes", (value,)):
            if not math.isfinite(number) or number not in self:
                finite = "finite and " if math.isinf(number) and number in self else ""
                raise ConfigError(f"{path}={number}: must be {finite}{self}{self.hint and f'; {self.hint}'}")


@dataclasses.dataclass(frozen=True)
class Ge(Range):
    """At least ``low``."""

    low: float
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        return number >= self.low

    def __str__(self) -> str:
        return f"at least {self.low}"


@dataclasses.dataclass(frozen=True)
class Gt(Range):
    """More than ``low``."""

    low: float
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        return number > self.low

    def __str__(self) -> str:
        return f"more than {self.low}"


@dataclasses.dataclass(frozen=True)
class Le(Range):
    """At most ``high``."""

    high: float
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        return number <= self.high

    def __str__(self) -> str:
        return f"at most {self.high}"


@dataclasses.dataclass(frozen=True)
class Between(Range):
    """From ``low`` to ``high``, both included."""

    low: float
    high: float
    hint: str = ""

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"between {self.low} and {self.high}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A closing phrase for an error: the likeliest intended name, or the known ones (of very many, the first few)."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return f"known: {', '.join(known[:NAMES_SHOWN]) or 'none'}{more}"


def choose(name: str, known: Iterable[str], *, path: str) -> str:
    """``name`` if it is one of ``known``; otherwise an error."""
    known = list(known)
    if name not in known:
        raise ConfigError(f"{path}={short_repr(name)}: no such name; {nearest(str(name), known)}")
    return name


def build(target: Callable[..., T], section: Any, *, path: str, injected: Mapping[str, Any] | None = None) -> T:
    """Calls ``target`` with the keys of ``section``, checked against its signature.

    ``injected`` are arguments that the program supplies and a section therefore must not name. An empty section is an
    error: whoever writes one has mistyped or lost its keys.
    """
    bound = bind(target, section, path=path, injected=injected)
    left = [name for name in _parameters(target) if name not in bound]
    if left and not dict(section.items()):
        raise ConfigError(
            f"{path}={{}}: the section is empty; set at least one of {', '.join(left)} or leave it as it was"
        )
    return call(target, bound, path=path, paths={name: name for name in injected or ()})


def call(
    target: Callable[..., T], arguments: Mapping[str, Any], *, path: str, paths: Mapping[str, str] | None = None
) -> T:
    """Calls ``target``; its errors name its options by their full keys.

    Args:
        target: A function or class. Its own ConfigErrors begin with the bare name of an option: ``folds=0: …``.
        arguments: Its keyword arguments.
        path: The key of the section that the options are in.
        paths: The keys of options that come from elsewhere.
    """
    try:
        return target(**arguments)
    except ConfigError as error:
        text = str(error)
        [name] = re.findall(r"^\w*", text)
        keys = {name: f"{path}.{name}" for name in _parameters(target) if path} | dict(paths or {})
        if text.startswith(f"{path}.") or name not in keys:
            raise
        raise ConfigError(keys[name] + text.removeprefix(name)) from None


def check_plain(value: Any, *, path: str, depth: int = 0) -> None:
    """Raises ConfigError unless ``value`` is made of what JSON can hold, with finite numbers; dataclasses may be in it.

    Args:
        value: A section, list, or value of a configuration.
        path: Its key.
        depth: How many sections and lists it is in.
    """
    if depth > MAX_DEPTH:
        raise ConfigError(f"{path}: more than {MAX_DEPTH} sections or lists in each other; make it flatter")
    if hasattr(value, "items"):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ConfigError(
                    f"{path}={short_repr(value)}: the key {short_repr(key)} is not a text; put it in quotes"
                )
            check_plain(inner, path=f"{path}.{key}" if path else key, depth=depth + 1)
    elif isinstance(value, (tuple, list)):
        for i, inner in enumerate(value):
            check_plain(inner, path=f"{path}[{i}]", depth=depth + 1)
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ConfigError(f"{path}={short_repr(value)}: does not fit into 64 bits; use a smaller number")
    elif isinstance(value, float):
        if not abs(value) <= MAX_FLOAT:
            raise ConfigError(f"{path}={value}: must be a finite number of single precision")
    elif isinstance(value, str):
        if "\0" in value:
            raise ConfigError(f"{path}={short_repr(value)}: a text cannot hold a null character; leave it out")
    elif value is not None and not dataclasses.is_dataclass(value):
        raise ConfigError(
            f"{path}={short_repr(value)}: {type(value).__name__} is no type of a setting; use a text, a number, True, "
            "False, None, a list, or a section"
        )


def bind(
    target: Callable[..., Any], section: Any, *, path: str, injected: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The keyword arguments that ``section`` means for ``target``; raises ConfigError where it cannot be right.

    An empty section is right here where nothing is required: of ``{"name": …}`` only defaults may be left.
    """
    injected = dict(injected or {})
    prefix = f"{path}." if path else ""
    if not isinstance(section, Mapping) and not hasattr(section, "items"):
        raise ConfigError(
            f"{path}={short_repr(section)}: expected a section (a mapping of keys); see the shipped configs"
        )
    constructor = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(target if dataclasses.is_dataclass(target) else constructor, include_extras=True)
    parameters = {name: p for name, p in _parameters(target).items() if name not in injected}
    bound = dict(injected)
    for name, value in section.items():
        if name not in parameters:
            raise ConfigError(f"{prefix}{name}={short_repr(value)}: unknown key; {nearest(str(name), parameters)}")
        bound[name] = coerce(value, hints.get(name, Any), path=f"{prefix}{name}")
    for name, p in parameters.items():
        if p.default is p.empty and name not in bound:
            raise ConfigError(f"{prefix}{name} is missing; set it to a {_name(hints.get(name, Any))}")
    return bound


def coerce(value: Any, kind: Any, *, path: str) -> Any:
    """``value`` as type ``kind``, in the ranges that ``kind`` is annotated with.

    Ints become floats, tuples and lists each other, and ``"a,b"`` a tuple of texts; nothing else is converted.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, (int, float, str)):
        check_plain(value, path=path)
    if kind is Any:
        return value
    if origin is Annotated:
        value = coerce(value, arguments[0], path=path)
        for limits in arguments[1:]:
            if isinstance(limits, Range) and value is not None:
                limits.check(value, path=path)
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if hasattr(value, "items"):  # of the kinds, only a section's own can say what is wrong with it
            options = [a for a in options if dataclasses.is_dataclass(a)] or options
        for option in options:
            try:
                return coerce(value, option, path=path)
            except ConfigError:
                if len(options) == 1:
                    raise
    elif origin is Literal:
        if any(value == a and type(value) is type(a) for a in arguments):  # True == 1, but is no 1
            return value
        raise ConfigError(f"{path}={short_repr(value)}: must be one of {', '.join(map(repr, arguments))}")
    elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        try:
            return build(kind, value, path=path)
        except ConfigError as error:
            if path in str(error):
                raise
            raise ConfigError(f"{path}: {error}") from None  # the section's own check, which does not know where it is
    elif kind == tuple[str, ...] and isinstance(value, str) and value[:1] not in ("(", "[", "{"):
        return tuple(word.strip() for word in value.split(",")) if value else ()
    elif origin is tuple and isinstance(value, (tuple, list)):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(coerce(v, arguments[0], path=f"{path}[{i}]") for i, v in enumerate(value))
        if len(arguments) == len(value):
            return tuple(
                coerce(v, a, path=f"{path}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True))
            )
    elif origin in (list, Sequence) and isinstance(value, (tuple, list)):
        items = [coerce(v, arguments[0], path=f"{path}[{i}]") for i, v in enumerate(value)]
        return items if origin is list else tuple(items)
    elif kind in (dict, Mapping) and hasattr(value, "items"):
        return dict(value.items())
    elif origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if hasattr(value, "items"):
            return {k: coerce(v, arguments[1], path=f"{path}.{k}") for k, v in value.items()}
    elif kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif kind is int and isinstance(value, bool):
        pass
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    raise ConfigError(f"{path}={short_repr(value)}: expected {_name(kind)}, got {type(value).__name__}")


def _parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that a section can name: those with names of their own."""
    # A class's own constructor, because a metaclass may hide it (that of flax.nnx modules does).
    function = target.__init__ if inspect.isclass(target) else target
    parameters = list(inspect.signature(function).parameters.values())[inspect.isclass(target) :]
    return {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is Annotated:
        return _name(typing.get_args(kind)[0])
    if dataclasses.is_dataclass(kind):
        return "section"
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind).replace("typing.", "")


def short_repr(value: Any) -> str:
    """``repr(value)`` on one line, or its beginning if it is long."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to write out integers of thousands of digits
        return "a number of thousands of digits"
    return shorten(text)


def shorten(text: str, limit: int = 60) -> str:
    """``text``, or its beginning if it is longer than ``limit``."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def literal(text: str) -> Any:
    """The value that a word on the command line stands for: a Python literal, true/false, or else the word."""
    constants = {"true": True, "false": False, "none": "none"}
    if text.lower() in constants and text not in ("True", "False", "None"):
        return constants[text.lower()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in regular expressions
        try:
            return ast.literal_eval(text)
        except (
            ValueError,
            SyntaxError,
            TypeError,
            MemoryError,
            RecursionError,
        ):  # such as a dict as a key, or deep nests
            return text
