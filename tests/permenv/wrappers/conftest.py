"""Fixtures of the wrappers' tests."""

import pytest

from tests.permenv.wrappers.helpers import FAST, STACKS


@pytest.fixture
def make(make_env):
    """Return a function that makes a stack of wrappers, given by its name or a function, over a fast environment."""

    def make_stack(stack, task="spatial", **overrides):
        wrap = STACKS[stack] if isinstance(stack, str) else stack
        return wrap(make_env(task=task, **{**FAST, **overrides}))

    return make_stack
