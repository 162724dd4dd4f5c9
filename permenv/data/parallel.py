"""Work on many files in threads, in bounded memory."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from permenv.progress import progress_bar

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(
    work: Callable[[T], R], items: Sequence[T], label: str, progress: bool, unit: str, in_flight: int
) -> Generator[R, None, None]:
    """Map with threads, in order and in bounded memory. Decoding, hashing and reading release the GIL.

    Args:
        work: The function.
        items: Its arguments.
        label: Label of the progress bar.
        progress: Show a progress bar, see `permenv.progress`.
        unit: Unit of the progress bar.
        in_flight: Largest number of items submitted to the threads before the result of the first is used.

    Yields:
        The results, in the order of the items.
    """
    from concurrent.futures import ThreadPoolExecutor

    todo = iter(items)
    with (
        ThreadPoolExecutor() as pool,
        progress_bar(total=len(items), label=label, unit=unit, show=progress) as bar,
    ):
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(todo, in_flight))
        while waiting:
            yield waiting.popleft().result()
            bar.update()
            waiting.extend(pool.submit(work, item) for item in islice(todo, 1))


class Budget:
    """What threads may use together at one time.

    Args:
        total: How much that is.
    """

    def __init__(self, total: int):
        self.total = total
        self._begin()
        if hasattr(os, "register_at_fork"):  # a forked child is without its parent's threads
            os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self._used, self._changed = 0, threading.Condition()

    @contextmanager
    def using(self, amount: int) -> Iterator[None]:
        """Wait until the others leave this much; of more than the total, until they use nothing."""
        amount = min(amount, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + amount <= self.total)
            self._used += amount
        try:
            yield
        finally:
            with self._changed:
                self._used -= amount
                self._changed.notify_all()
