"""How the benchmarks measure time."""

import torch

from experiments.benchmarks.timing import seconds_in_turn


def test_rivals_run_in_turn_and_the_order_alternates():
    calls = []
    rivals = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = seconds_in_turn(rivals, 3, torch.device("cpu"))
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # each once before it is timed
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
