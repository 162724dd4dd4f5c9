"""Fixtures of the tests of the core."""

import pytest

from permenv import registered_tasks
from tests.permenv.windows import open_windows


@pytest.fixture
def windows(monkeypatch):
    """Let matplotlib open windows, on a machine without a screen too; the list of them."""
    yield from open_windows(monkeypatch)


@pytest.fixture
def registry(monkeypatch):
    """Leave the registry of tasks as it was."""
    monkeypatch.setattr("permenv.registry._REGISTRY", dict(registered_tasks()))
