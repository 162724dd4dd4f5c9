"""Threads share a budget, of pixels for example."""

import os
import signal
import threading

import pytest

from permenv.data.parallel import Budget


def test_more_than_a_budget_is_used_alone():
    budget, events = Budget(3), []
    begun = threading.Event()

    def use_more():
        begun.set()
        with budget.using(10):
            events.append("more")

    with budget.using(1), budget.using(2):
        thread = threading.Thread(target=use_more)
        thread.start()
        assert begun.wait(60)
        events.append("first")
    thread.join()
    assert events == ["first", "more"]


def test_what_an_error_ends_no_longer_counts():
    budget = Budget(3)
    for _ in range(2):
        with pytest.raises(KeyError), budget.using(3):
            raise KeyError


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_has_the_whole_budget():
    budget = Budget(3)
    with budget.using(3):
        child = os.fork()
        if not child:
            signal.alarm(60)
            with budget.using(3):
                os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
