"""Runs side by side in one process, in turns: each goes on until it has something to report, and waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from queue import SimpleQueue
from typing import Any, TypeVar

from agents.randomness import OwnRandomness

T = TypeVar("T")


class _Stopped(BaseException):
    """Ends a function that is not waited for any longer."""


def reports(work: Callable[[Callable[[T], None]], object]) -> Generator[T, None, None]:
    """Run a function as an iterator over what it reports.

    Between two steps of the iterator the function waits inside the callback. It has a thread and states of the global
    random generators of its own, and runs while the iterator steps, never beside the caller. If the iterator is closed
    first, the function ends where it waits; if a step is interrupted, at its next report.

    Args:
        work: Takes the callback.

    Yields:
        What `work` passes to the callback.

    Raises:
        Exception: What `work` raises.
    """
    goes_on: SimpleQueue[bool] = SimpleQueue()
    steps: SimpleQueue[Callable[[], T]] = SimpleQueue()  # each returns a report, or raises what has ended the function
    randomness = OwnRandomness()

    def wait() -> None:
        if not goes_on.get():
            raise _Stopped

    def report(value: T) -> None:
        steps.put(lambda: value)
        wait()

    def run() -> None:
        try:
            wait()
            work(report)
            steps.put(_raising(StopIteration()))
        except _Stopped:
            return
        except BaseException as error:
            steps.put(_raising(error))

    thread, waits = threading.Thread(target=run, daemon=True), True
    thread.start()
    try:
        while True:
            with randomness.in_use():
                waits = False
                goes_on.put(True)
                step = steps.get()
                waits = True
            try:
                value = step()
            except StopIteration:
                return
            yield value
    finally:
        with randomness.in_use():
            goes_on.put(False)
            if waits:
                thread.join()


def _raising(error: BaseException) -> Callable[[], Any]:
    def step() -> Any:
        raise error

    return step
