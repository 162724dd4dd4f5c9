"""How the benchmarks measure time."""

import sys
import time

import pytest
import torch

from experiments.benchmarks.timing import REST, Clock, Stopwatch, seconds_in_turn, time_process


def test_rivals_run_in_turn_and_the_order_alternates():
    calls = []
    rivals = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = seconds_in_turn(rivals, 3, torch.device("cpu"))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # each once before it is timed
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_every_moment_belongs_to_the_part_that_was_entered_last(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(Clock, "now", lambda clock: next(now))
    watch = Stopwatch(Clock(torch.device("cpu")))

    def inner():
        return watch.part

    inner = watch.timed("inner", inner)
    with watch.running("outer"):
        assert inner() == "inner"
        assert watch.part == "outer"
    assert watch.part == REST
    lap = watch.lap()
    assert lap == {REST: 2, "outer": 2, "inner": 1}
    assert sum(lap.values()) == next(now) - 1
    assert sum(watch.lap().values()) == 2


def test_a_part_that_raises_is_left():
    watch = Stopwatch(Clock(torch.device("cpu")))
    with pytest.raises(ZeroDivisionError), watch.running("part"):
        raise ZeroDivisionError
    assert watch.part == REST


def test_one_thread_of_a_cpu_is_timed_by_its_own_seconds():
    clock = Clock(torch.device("cpu"))
    assert clock.counts_cpu  # the tests have one thread
    assert max(clock.times(lambda: time.sleep(0.05), 2)) < 0.05
    assert not Clock(torch.device("cuda")).counts_cpu
    assert Clock(torch.device("cuda")).name == "seconds of the clock"


def test_a_process_is_timed_with_all_that_it_does():
    found = time_process([sys.executable, "-c", "print(sum(range(10**6)))"])
    assert found.output == "499999500000\n"
    assert found.cpu_seconds > 0
    assert found.seconds > 0
    with pytest.raises(RuntimeError, match="ended with code 1: ZeroDivisionError"):
        time_process([sys.executable, "-c", "1 / 0"])
