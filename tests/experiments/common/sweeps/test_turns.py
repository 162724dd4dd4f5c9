"""Runs in turns: none runs beside another, and none notices the others."""

import threading

import numpy as np
import pytest
import torch

from experiments.common.sweeps.turns import reports


def counting(report):
    """Report three numbers."""
    for number in range(3):
        report(number)


def seeding(report):
    """Seed the global generators and draw from them, as Stable-Baselines3 does."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    for _ in range(3):
        report((torch.rand(1).item(), np.random.rand()))  # noqa: NPY002


def test_a_function_is_an_iterator_over_its_reports():
    assert list(reports(counting)) == [0, 1, 2]


def test_it_waits_between_two_steps():
    said = []

    def work(report):
        for number in range(3):
            said.append(number)
            report(number)

    steps = reports(work)
    assert said == []
    assert next(steps) == 0
    assert said == [0]
    steps.close()


def test_global_generators_are_its_own():
    alone = list(reports(seeding))
    before = torch.get_rng_state()
    first, second = reports(seeding), reports(seeding)
    beside = [(next(first), next(second)) for _ in range(3)]
    assert [each for each, _ in beside] == [each for _, each in beside] == alone
    assert torch.equal(torch.get_rng_state(), before)
    first.close()
    second.close()


def test_its_error_is_raised_where_it_was_to_report():
    def work(report):
        report(1)
        raise ZeroDivisionError("no zero")

    steps = reports(work)
    assert next(steps) == 1
    with pytest.raises(ZeroDivisionError, match="no zero"):
        next(steps)


def test_one_that_is_closed_ends_where_it_waits():
    ended = []

    def work(report):
        try:
            counting(report)
        finally:
            ended.append(True)

    before = threading.active_count()
    steps = reports(work)
    assert next(steps) == 0
    steps.close()
    assert ended
    assert threading.active_count() == before
