import dataclasses
import enum
import functools
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Optional

import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from mmjax.core.config import Between, ConfigError, Ge, Gt, bind, build, call, check_plain, choose, coerce, nearest


@dataclasses.dataclass(frozen=True)
class Tower:
    width: int = 8
    rate: float = 0.0
    sizes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    name: str
    kind: Literal["cls", "map"] = "cls"
    tower: Tower = dataclasses.field(default_factory=Tower)
    other: Tower | None = None
    cache: list = dataclasses.field(default_factory=list, init=False)


class Module(nnx.Module):
    """Its metaclass has a signature of (*args, **kwargs)."""

    def __init__(self, width: int, *, rate: float = 0.5, rngs: nnx.Rngs):
        self.width, self.rate = width, rate


class Plain:
    pass


class Red(enum.Enum):
    red = 1


def function(a: int, /, b: int, *rest: int, c: "float" = 1.0, d=None, **more: int):
    return b, c, d


MAPPINGS = [dict, ConfigDict]


class TestBuild:
    @pytest.mark.parametrize("mapping", MAPPINGS)
    def test_nested_sections(self, mapping):
        section = mapping({"name": "x", "tower": {"width": 3, "rate": 1, "sizes": [1, 2]}})
        model = build(Model, section, path="model")
        assert model == Model(name="x", tower=Tower(width=3, rate=1.0, sizes=(1, 2)))
        assert type(model.tower.rate) is float

    def test_a_missing_section_keeps_its_default_and_an_optional_one_can_be_given(self):
        assert build(Model, {"name": "x", "other": {"width": 2}}, path="m").other == Tower(width=2)
        assert build(Model, {"name": "x", "other": None}, path="m").other is None
        ready = Tower(width=5)
        assert build(Model, {"name": "x", "tower": ready}, path="m").tower is ready

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"name": "x", "tower": {"widht": 3}}, "m.tower.widht=3: unknown key; did you mean 'width'?"),
            ({"name": "x", "other": {"widht": 3}}, "m.other.widht=3: unknown key; did you mean 'width'?"),
            ({"name": "x", "zzz": 3}, "m.zzz=3: unknown key; known: kind, name, other, tower"),
            ({"name": "x", "cache": []}, "m.cache=[]: unknown key"),
            ({"name": "x", "tower": {"width": 3.0}}, "m.tower.width=3.0: expected int, got float"),
            ({"name": "x", "tower": {"sizes": [1, "b"]}}, "m.tower.sizes[1]='b': expected int, got str"),
            ({"name": "x", "tower": {}}, "m.tower={}: the section is empty; set at least one of width, rate, sizes"),
            ({"name": "x", "tower": None}, "m.tower=None: expected a section"),
            ({"name": "x", "tower": 3}, "m.tower=3: expected a section"),
            ({"name": "x", "kind": "mean"}, "m.kind='mean': must be one of 'cls', 'map'"),
            ({"name": 3}, "m.name=3: expected str, got int"),
            ({"kind": "cls"}, "m.name is missing; set it to a str"),
            ({1: 2, "name": "x"}, "m.1=2: unknown key"),
            ([], "m=[]: expected a section"),
        ],
    )
    def test_errors_are_one_line_that_names_the_key(self, section, message):
        with pytest.raises(ConfigError) as caught:
            build(Model, section, path="m")
        assert str(caught.value).startswith(message) and "\n" not in str(caught.value)

    def test_an_empty_section_is_refused_unless_nothing_could_be_set(self):
        with pytest.raises(ConfigError, match="the section is empty"):
            build(Tower, {}, path="t")
        with pytest.raises(ConfigError, match="the section is empty; set at least one of rate, sizes"):
            build(Tower, ConfigDict(), path="t", injected={"width": 1})
        assert build(Tower, {}, path="t", injected={"width": 1, "rate": 1.0, "sizes": ()}) == Tower(1, 1.0, ())
        assert isinstance(build(Plain, {}, path="p"), Plain)

    def test_long_values_are_shortened(self):
        with pytest.raises(ConfigError) as caught:
            build(Tower, {"width": "x" * 500}, path="t")
        assert len(str(caught.value)) < 120


class TestBind:
    def test_a_function(self):
        assert bind(function, {"b": 2, "c": 3}, path="f") == {"b": 2, "c": 3.0}
        assert bind(function, {"b": 2, "d": object}, path="f") == {"b": 2, "d": object}
        for name in ("a", "rest", "more", "other"):
            with pytest.raises(ConfigError, match=f"f.{name}=1: unknown key; known: b, c, d"):
                bind(function, {"b": 2, name: 1}, path="f")

    def test_a_module_whose_metaclass_hides_its_signature(self):
        rngs = nnx.Rngs(0)
        made = build(Module, {"width": 3, "rate": 1}, path="m", injected={"rngs": rngs})
        assert (made.width, made.rate) == (3, 1.0)
        with pytest.raises(ConfigError, match=r"m\.zzz=3: unknown key; known: rate, width"):
            bind(Module, {"zzz": 3}, path="m", injected={"rngs": rngs})

    def test_given_arguments_are_the_programs(self):
        assert bind(Tower, {"rate": 1}, path="t", injected={"width": 4}) == {"width": 4, "rate": 1.0}
        with pytest.raises(ConfigError, match=r"t\.width=3: unknown key"):
            bind(Tower, {"width": 3}, path="t", injected={"width": 4})

    def test_an_empty_section_is_right_where_nothing_is_required(self):
        assert bind(Tower, {}, path="t") == {}
        with pytest.raises(ConfigError, match=r"m\.name is missing; set it to a str"):
            bind(Model, {}, path="m")

    def test_at_the_root_keys_have_no_prefix(self):
        with pytest.raises(ConfigError, match=r"^zzz=1: unknown key"):
            bind(Tower, {"zzz": 1}, path="")
        with pytest.raises(ConfigError, match=r"^width='a': expected int"):
            bind(Tower, {"width": "a"}, path="")

    def test_the_section_is_not_changed(self):
        section = {"width": 1, "sizes": [1]}
        bind(Tower, section, path="t")
        assert section == {"width": 1, "sizes": [1]}


class TestCoerce:
    @pytest.mark.parametrize(
        ("kind", "value", "expected"),
        [
            (Any, object, object),
            (float, 1, 1.0),
            (Optional[float], 1, 1.0),  # noqa: UP045 - the older spelling is another type
            (str | None, None, None),
            (int | str, "a", "a"),
            (int | tuple[int, ...], [1, 2], (1, 2)),
            (tuple[float, ...], [1], (1.0,)),
            (tuple[int, str], [1, "a"], (1, "a")),
            (tuple[int, ...], (), ()),
            (tuple[tuple[int, ...], ...], [[1], []], ((1,), ())),
            (list[float], (1, 2), [1.0, 2.0]),
            (Sequence[str], ["a"], ("a",)),
            (dict[str, float], {"a": 1}, {"a": 1.0}),
            (dict[str, tuple[int, ...]], ConfigDict({"a": (1,)}), {"a": (1,)}),
            (Mapping[str, Any], {"a": object}, {"a": object}),
            (dict, ConfigDict({"a": 1}), {"a": 1}),
            (Mapping, ConfigDict({"a": 1}), {"a": 1}),
            (Literal["a", 1], 1, 1),
            (bool, True, True),
            (Red, Red.red, Red.red),
        ],
    )
    def test_what_is_meant(self, kind, value, expected):
        got = coerce(value, kind, path="p")
        assert got == expected and type(got) is type(expected)

    @pytest.mark.parametrize(
        ("kind", "value"),
        [
            (int, True), (int, 1.0), (int, "1"), (int, None), (float, True), (float, "1"), (bool, 1), (bool, "true"),
            (str, 1), (str, None), (tuple[int, ...], "12"), (tuple[int, ...], 1), (tuple[int, str], [1]),
            (tuple[int, ...], [True]), (list[int], "12"), (Sequence[str], "ab"), (dict[str, int], [1]), (dict, [1]),
            (Literal[1, 2], True), (Literal[True], 1), (Literal["a"], ["a"]), (Literal["a"], "A"), (int | str, [1]),
            (int | None, "x"), (Red, "red"), (Tower | None, 3),
        ],
    )  # fmt: skip
    def test_nothing_else_is_converted(self, kind, value):
        with pytest.raises(ConfigError, match=r"^p"):
            coerce(value, kind, path="p")

    def test_words_between_commas_are_a_tuple_of_texts(self):
        assert coerce("recall", tuple[str, ...], path="p") == ("recall",)
        assert coerce("a, b", tuple[str, ...] | None, path="p") == ("a", "b")
        assert coerce("", tuple[str, ...], path="p") == ()
        assert coerce("a,b", str | tuple[str, ...], path="p") == "a,b"

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, 2**63, -(2**63) - 1, 2**99, "a\0b"])
    def test_what_no_setting_can_be_is_refused_for_any_kind(self, value):
        for kind in (Any, int, float, str, float | str):
            with pytest.raises(ConfigError, match=r"^p=.*(finite|64 bits|null)"):
                coerce(value, kind, path="p")

    @given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
    def test_the_result_has_the_type_or_there_is_an_error(self, value):
        for kind in (int, float, str, bool):
            try:
                assert type(coerce(value, kind, path="p")) is kind
            except ConfigError:
                unfit = isinstance(value, (int, float)) and not abs(value) < 2**63
                assert type(value) is not kind or unfit or (kind is str and "\0" in value)

    def test_a_callable_cannot_be_written_in_a_section(self):
        with pytest.raises(ConfigError, match="expected"):
            coerce("len", Callable[[int], int], path="p")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ramp:
    """A value that moves, as augmentation schedules do."""

    start: float = 0.0
    end: float

    @property
    def extremes(self):
        return self.start, self.end


STRENGTH = Annotated[float | Ramp, Between(0, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranged:
    steps: Annotated[int, Ge(1)] = 1
    rate: Annotated[float, Between(0, 1)] = 0.5
    factor: Annotated[float, Gt(1, "None turns it off")] | None = None
    size: Annotated[float | None, Ge(0)] = None
    scale: tuple[Annotated[float, Between(0, 1)], ...] = (0.5, 1.0)
    strength: STRENGTH = 0.5


class TestRanges:
    @pytest.mark.parametrize(
        "section",
        [
            {"steps": 1}, {"rate": 0}, {"rate": 1.0}, {"factor": None}, {"factor": 1.001}, {"size": None}, {"size": 0},
            {"scale": [0, 1]}, {"strength": 1}, {"strength": {"end": 1}},
        ],
    )  # fmt: skip
    def test_limits_belong_to_a_range_and_none_needs_no_limit(self, section):
        assert build(Ranged, section, path="r") is not None

    @pytest.mark.parametrize(
        ("section", "message"),
        [
            ({"steps": 0}, "r.steps=0: must be at least 1"),
            ({"rate": 1.5}, "r.rate=1.5: must be between 0 and 1"),
            ({"rate": -1}, "r.rate=-1.0: must be between 0 and 1"),
            ({"factor": 1}, "r.factor=1.0: must be more than 1; None turns it off"),
            ({"size": -1}, "r.size=-1.0: must be at least 0"),
            ({"scale": (0.5, 2)}, "r.scale[1]=2.0: must be between 0 and 1"),
            ({"strength": 2}, "r.strength=2.0: must be between 0 and 1"),
            ({"strength": {"end": 2}}, "r.strength=2.0: must be between 0 and 1"),
            ({"strength": {"end": "x"}}, "r.strength.end='x': expected float, got str"),
            ({"rate": float("nan")}, "r.rate=nan: must be a finite number of single precision"),
            ({"size": float("inf")}, "r.size=inf: must be a finite number of single precision"),
            ({"steps": "1"}, "r.steps='1': expected int, got str"),
        ],
    )
    def test_a_value_out_of_range_is_named_with_the_range(self, section, message):
        with pytest.raises(ConfigError) as caught:
            build(Ranged, section, path="r")
        assert str(caught.value) == message

    def test_a_missing_key_is_asked_for_by_its_type(self):
        def function(steps: Annotated[int, Ge(1)]):
            pass

        with pytest.raises(ConfigError, match="steps is missing; set it to a int"):
            bind(function, {}, path="")


class Retrieval:
    """An evaluator whose own checks know nothing of where its options stand."""

    def __init__(self, source: str, *, folds: int = 1):
        raise ConfigError(f"folds={folds}: more than {source}" if folds else "source: is empty")


class TestCall:
    def test_an_error_names_the_option_by_its_full_key(self):
        for folds, message in ((3, "eval.retrieval.folds=3: more than s"), (0, "data.source: is empty")):
            with pytest.raises(ConfigError) as caught:
                arguments = {"source": "s", "folds": folds}
                call(Retrieval, arguments, path="eval.retrieval", paths={"source": "data.source"})
            assert str(caught.value) == message


class TestPlain:
    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({"a": {"b": [1, b"x"]}}, "a.b[1]=b'x': bytes is no type of a setting"),
            ({"a": 1j}, "a=1j: complex is no type"),
            ({"a": {1, 2}}, "a={1, 2}: set is no type"),
            ({"a": {3: 4}}, "a={3: 4}: the key 3 is not a text"),
            ({"a": (1.0, math.inf)}, "a[1]=inf: must be a finite number"),
        ],
    )
    def test_what_json_cannot_hold_is_named_with_its_key(self, value, message):
        with pytest.raises(ConfigError) as caught:
            check_plain(value, path="")
        assert str(caught.value).startswith(message)

    def test_all_else_may_be_in_each_other(self):
        check_plain({"a": [None, True, -1, 2.5, "x", {"b": ()}], "c": Tower()}, path="")
        with pytest.raises(ConfigError, match="flatter"):
            check_plain(functools.reduce(lambda inner, _: [inner], range(99), 1), path="a")


class TestNames:
    def test_choose(self):
        assert choose("b", iter(["a", "b"]), path="p") == "b"
        with pytest.raises(ConfigError, match=r"p='recal': no such name; did you mean 'recall'\?"):
            choose("recal", ["recall", "zeroshot"], path="p")
        with pytest.raises(ConfigError, match=r"p=None: no such name; known: x, y"):
            choose(None, ["y", "x"], path="p")

    def test_nearest(self):
        assert nearest("widht", ["width", "depth"]) == "did you mean 'width'?"
        assert nearest("q", ["width", "depth"]) == "known: depth, width"
        assert nearest("q", []) == "known: none"
        assert nearest("q", [f"name{i:02}" for i in range(30)]).endswith("name23 and 6 more")


def test_importing_it_does_not_import_jax():
    code = "import sys, mmjax.core.config; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
