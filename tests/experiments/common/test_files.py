"""Files that a script writes together, and how they are named."""

from pathlib import Path

import pytest

from experiments.common.files import with_ending


@pytest.mark.parametrize(
    ("out", "expected"),
    [("table", "table.csv"), ("table.json", "table.csv"), ("table.csv", "table.csv"), ("rate-0.1", "rate-0.1.csv")],
)
def test_an_ending_replaces_another_one_and_nothing_else(out, expected):
    assert with_ending(Path("results") / out, ".csv") == Path("results") / expected
