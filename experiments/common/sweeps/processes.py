"""Jobs in this process or in others, which end when this one ends, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, TypeVar

import torch

R = TypeVar("R")


def make_executor(processes: int, ray: str | None = None, *, gpus: float = 0) -> Executor:
    """Make an executor.

    Args:
        processes: Jobs at once, a new process of one thread each; 0 runs them in this process, one after the other.
        ray: Run them on Ray instead, see `experiments.common.sweeps.ray_jobs`: "local", or the address of a cluster.
        gpus: GPUs of a job on Ray.

    Raises:
        ConfigurationError: If Ray is asked for and not installed, or there is no such cluster.
    """
    if ray is not None:
        from experiments.common.sweeps.ray_jobs import RayExecutor  # slow to import

        return RayExecutor(ray, processes=processes, gpus=gpus)
    return SerialExecutor() if processes == 0 else _Workers(processes)


class SerialExecutor(Executor):
    """Runs each job in this process when it is submitted."""

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Run `fn`; return its result or its exception as a future that is done."""
        future: Future[R] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Workers(ProcessPoolExecutor):
    """Processes of one thread each. An error waits for the jobs that run; Ctrl-C or a signal ends them at once."""

    def __init__(self, processes: int):
        super().__init__(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Submit a job; a process is started for it if need be."""
        with interrupts_for_this_process_only():
            return super().submit(fn, *args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        if kind is not None and not issubclass(kind, Exception):
            end_processes()
        return super().__exit__(kind, error, trace)


def _begin() -> None:
    torch.set_num_threads(1)
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended, also by SIGKILL; to be called once in a child."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def end_processes() -> None:
    """Kill the processes that this one has started."""
    for process in multiprocessing.active_children():
        process.kill()


@contextmanager
def interrupts_for_this_process_only() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, which a terminal sends to all: this one ends them.

    They are born with the signal blocked. Where signals cannot be blocked, on Windows, they get it too. The signal is
    blocked while a process is started and no longer: Stable-Baselines3 also waits here for what it has started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # multiprocessing's own process; starting it would unblock the signal
    start = BaseProcess.start

    def start_deaf(process: BaseProcess) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            start(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    BaseProcess.start = start_deaf  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        BaseProcess.start = start  # type: ignore[method-assign]
