"""Replies against schemas: what passes, what does not, and that no reply makes it raise anything else."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.config import ConfigError
from mmjax.generate.json_schema import check_schema, find_violation, read_reply

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
SCHEMA = {
    "type": ["object", "array"],
    "properties": {"a": {"type": "integer", "exclusiveMaximum": 3}, "b": {"anyOf": [{"const": 1}, {"type": "null"}]}},
    "items": {"type": "string", "pattern": "^x", "maxLength": 2},
    "additionalProperties": False,
    "uniqueItems": True,
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, [1, 1.0, -3], [True, 1.5, "1", None, float("inf")]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"type": "null"}, [None], [0, ""]),
        ({"enum": [1, "a", None, [1]]}, [1, 1.0, "a", None, [1]], [True, "1", [True], [2]]),
        ({"const": {"a": 1}}, [{"a": 1.0}], [{"a": True}, {}]),
        ({"minimum": 2, "exclusiveMaximum": 4}, [2, 3.9, "text"], [1.9, 4]),
        ({"minLength": 2, "pattern": "b"}, ["ab", 5], ["b", "aa"]),
        ({"minItems": 1, "maxItems": 2, "uniqueItems": True}, [[1], [1, 2]], [[], [1, 2, 3], [1, 1.0]]),
        ({"items": {"type": "string"}}, [[], ["a"]], [["a", 1]]),
        ({"properties": {"a": {"type": "string"}}, "required": ["a"]}, [{"a": ""}, {"a": "", "b": 1}], [{}, {"a": 1}]),
        ({"properties": {"a": True}, "additionalProperties": False}, [{"a": 1}, {}], [{"b": 1}]),
        ({"additionalProperties": {"type": "null"}}, [{"a": None}], [{"a": 1}]),
        ({"anyOf": [{"type": "null"}, {"type": "array"}]}, [None, []], [1]),
        (True, [1, None], []),
        (False, [], [1, None]),
    ],
)
def test_the_truth_table_of_each_keyword(schema, good, bad):
    check_schema(schema)
    assert [value for value in good if find_violation(value, schema)] == []
    assert [value for value in bad if not find_violation(value, schema)] == []


def test_a_violation_names_its_place():
    schema = {"properties": {"a": {"items": {"properties": {"b": {"type": "string"}}}}}}
    assert find_violation({"a": [{}, {"b": 1}]}, schema) == "$.a[1].b=1 is not of type string"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"oneOf": []}, "schema.oneOf"),
        ({"type": "int"}, "schema.type='int'"),
        ({"properties": {"a": {"$ref": "#"}}}, r"schema.properties.a.\$ref"),
        ({"items": [1]}, "schema.items"),
        ({"pattern": "("}, "schema.pattern"),
    ],
)
def test_schemas_that_are_not_understood_are_refused(schema, words):
    with pytest.raises(ConfigError, match=words):
        check_schema(schema)


@settings(max_examples=60)
@given(st.text(max_size=20) | JSON.map(json.dumps) | JSON.map(lambda v: f"```json\n{json.dumps(v)}\n```"))
def test_any_reply_follows_or_is_a_value_error(text):
    try:
        reply = read_reply(text, SCHEMA)
    except ConfigError:
        raise
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert find_violation(json.loads(reply), SCHEMA) is None
        assert read_reply(reply, SCHEMA) == reply


@pytest.mark.parametrize("text", ["", "NaN", "[" * 100_000, "1" * 5000, '{"a": Infinity}', "```\n```", "{} {}"])
def test_what_is_no_json_is_said_so(text):
    with pytest.raises(ValueError, match="not JSON"):
        read_reply(text, {})
