"""Fixtures that the tests of the scripts share."""

import pytest

from experiments.common.run_folder import RunFolder


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    """Leave out what takes most of the time of a run this small; fixtures of a wider scope still draw."""
    monkeypatch.setattr(RunFolder, "picture", lambda *_: None)
