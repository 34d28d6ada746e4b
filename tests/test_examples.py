"""Every example in a docstring runs."""

import doctest
import importlib
from pathlib import Path

import pytest

import mmjax

PACKAGE = Path(mmjax.__file__).parent
WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings_run(name):
    failures, attempts = doctest.testmod(importlib.import_module(name))
    assert attempts > 0
    assert failures == 0
