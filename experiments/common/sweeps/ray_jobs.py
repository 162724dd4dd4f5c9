"""Jobs on Ray, on this machine or on those of a cluster (the extra `ray`)."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from types import ModuleType, TracebackType
from typing import Any, TypeVar

import torch

from permenv import ConfigurationError

R = TypeVar("R")

LOCAL = "local"
"""The address that stands for a Ray of its own on this machine."""


def start_ray(address: str, processes: int) -> ModuleType:
    """Start Ray on this machine, without dashboard and usage statistics, or connect to a cluster.

    The jobs have one thread each. `ray.shutdown` stops what was started here, and leaves a cluster.

    Args:
        address: `LOCAL` starts Ray on this machine. Else the address of a cluster to which this machine belongs, "auto"
            for any; permenv must be installed on all of its machines, in the same version. Addresses of Ray Client,
            ray://HOST:PORT, are refused: Ray Tune would run its callbacks, which keep the results, on the cluster.
        processes: Jobs at once where Ray is started here; a cluster has its own cores.

    Returns:
        The module `ray`.

    Raises:
        ConfigurationError: If Ray is not installed, there is no such cluster, or the address is one of Ray Client.
    """
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError('--ray needs the package ray: pip install -e ".[ray]"') from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = {"num_cpus": max(1, processes), "include_dashboard": False} if address == LOCAL else {"address": address}
    # RAY_CHDIR_TO_TRIAL_DIR: relative paths mean what they mean here
    in_jobs = {"OMP_NUM_THREADS": "1", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _require_reachable(address)
        ray.init(**where, log_to_driver=False, runtime_env={"env_vars": in_jobs})
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"--ray {address}: {error}; name the address of a cluster, or {LOCAL} for one on this machine"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray has one of its own
    return ray


class RayExecutor(Executor):
    """Runs each job as a task of Ray, on one core and with one thread.

    A job whose process or machine is lost is run again by Ray, three times at most.

    Args:
        address: See `start_ray`; what it starts here is stopped at the end.
        processes: See `start_ray`.
        gpus: GPUs that a job is given; a share of one lets several jobs use it.

    Raises:
        ConfigurationError: See `start_ray`.
    """

    def __init__(self, address: str, *, processes: int, gpus: float = 0):
        self._ray = ray = start_ray(address, processes)
        self._task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_with_one_thread)
        self._futures: list[Future[Any]] = []

    def submit(self, fn: Callable[..., R], /, *args: Any, **kwargs: Any) -> Future[R]:
        """Submit a job; its function, arguments and result are pickled. Its own error is the future's exception."""
        future: Future[R] = Future()

        def finish(theirs: Future[R]) -> None:
            if not future.set_running_or_notify_cancel():
                return
            error = theirs.exception()
            if error is None:
                future.set_result(theirs.result())
            else:
                future.set_exception(getattr(error, "cause", None) or error)

        self._task.remote(fn, args, kwargs).future().add_done_callback(finish)
        self._futures.append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster, or stop Ray where it was started here; jobs that are not waited for are cancelled."""
        if wait and not cancel_futures:
            futures.wait(self._futures)
        self._ray.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown(wait=kind is None)


def _require_reachable(address: str) -> None:
    """Raise an OSError if nothing answers at HOST:PORT, where Ray would try for minutes; a ValueError for ray://."""
    if address.startswith("ray://"):
        raise ValueError("Ray Client is not supported; start the script on a machine of the cluster")
    host, colon, port = address.rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()


def _with_one_thread(work: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
    torch.set_num_threads(1)
    return work(*args, **kwargs)
