"""Random overrides: each is accepted, or refused in one line that names a key, and leaves no folder."""

import pytest

from support import random_overrides


@pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
def test_each_is_accepted_or_refused_in_one_line(count, capsys):
    assert random_overrides.main(count) == 0, capsys.readouterr().out
