"""Several ranks without torchrun: processes that are forked from one that has imported torch already."""

import datetime
import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from experiments.common.script import run_script
from permenv import distributed
from permenv.training import _by_dtype
from tests.helpers import small_run

_CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    _CONTEXT.set_forkserver_preload(["tests.ranks", "experiments.reinforce", "experiments.common.reports.figures"])


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, patience: float = 240) -> list[Any]:
    """Call a function in several ranks; return what it returned in each.

    Args:
        size: How many; one is this process.
        function: At module level, so that it pickles.
        *arguments: Of the function.
        patience: Seconds that a rank waits for the others.

    Returns:
        By rank; an exception as its text, of a RankError "RankError: ..." alone, else the whole traceback.
    """
    if size == 1:
        return [function(*arguments)]
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun's
    found, processes = [], []
    for rank in range(size):
        receiver, sender = _CONTEXT.Pipe(duplex=False)
        processes.append(
            _CONTEXT.Process(
                target=_work, args=(rank, size, store.port, sender, patience, function, arguments), daemon=True
            )
        )
        processes[-1].start()
        sender.close()
        found.append(receiver)
    try:
        return [receiver.recv() if receiver.poll(240) else "hangs" for receiver in found]
    finally:
        for process in processes:
            process.join(10)
            process.kill()
            process.join()


def run_script_in_ranks(size: int, folder: Path, script: str, *words: str) -> tuple[list[int], list[str]]:
    """Run a script of `experiments` as its command line would; return the exit codes and what each rank printed."""
    folder.mkdir(exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    logs = [folder / f"{rank}.log" for rank in range(size)]
    processes = [
        _CONTEXT.Process(target=_run_script, args=(rank, size, store.port, logs[rank], script, words), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        process.kill()
        process.join()
    return [process.exitcode for process in processes], [log.read_text() for log in logs]


def _run_script(rank: int, size: int, port: int, log: Path, name: str, words: tuple[str, ...]) -> None:
    as_rank(rank, size, port)
    torch.set_num_threads(1)
    output = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    module = importlib.import_module(f"experiments.{name}")
    sys.argv = [f"experiments/{name}.py", *words]
    # as at the end of the script
    several = {"several_ranks": True} if "several_ranks=True" in Path(module.__file__).read_text() else {}
    run_script(module.main, module.Config, module.__doc__, **several)


def as_rank(rank: int, size: int, port: int) -> None:
    """Set the environment that torchrun gives a rank."""
    own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in own.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def _work(
    rank: int, size: int, port: int, sender: Any, patience: float, function: Callable[..., Any], arguments: Any
) -> None:
    as_rank(rank, size, port)
    torch.set_num_threads(1)
    try:
        distributed.start(torch.device("cpu"), datetime.timedelta(seconds=patience))
        sender.send(function(*arguments))
        distributed.current().barrier()
        distributed.stop()
    except distributed.RankError as error:
        sender.send(f"RankError: {error}")
    except BaseException:
        sender.send(traceback.format_exc())


def float64_run(
    task: str,
    iterations: int,
    replayed: list[dict[str, np.ndarray]] | None = None,
    *,
    factor: float = 1.0,
    **overrides: Any,
) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """Train a small run in float64, validated after every tenth iteration.

    Args:
        task: What is shuffled.
        iterations: How many, a multiple of 10.
        replayed: The groups of each validation, of another run; None for the run's own.
        factor: Multiplies the initial weights.
        **overrides: Of `SMALL`.

    Returns:
        All numbers of its state by name, and the groups of each validation.
    """
    run = small_run(task, **{"precision": "float32", "ema_decay": 0.9, "num_validation": 11, **overrides})
    trainer = run.trainer
    for network in (trainer.network, trainer.eval_network):
        network.double()
        network.trunk.register_forward_pre_hook(lambda _, pieces: pieces[0].double())
    for parameter in trainer.network.parameters():
        parameter.data.mul_(factor)
    trainer._averages = _by_dtype(trainer.eval_network, trainer.network)
    rng = np.random.default_rng(5)
    groups: list[dict[str, np.ndarray]] = []
    for iteration in range(iterations + 1):
        if iteration % 10 == 0:
            run.validate()
            if replayed is not None:
                run._set_groups(replayed[len(groups)])
            groups.append(run.groups)
        if iteration < iterations:
            run.iterate(rng.integers(run.config.num_groups, size=(4, len(run.tasks))))
    numbers = {f"network {name}": value.numpy() for name, value in trainer.network.state_dict().items()}
    numbers |= {f"average {name}": value.numpy() for name, value in trainer.eval_network.state_dict().items()}
    numbers |= {f"momentum {name}": value.numpy() for name, value in trainer._momentum.items()}
    numbers |= {f"ratios {name}": each.ratios for name, each in run.validation.items()}
    numbers |= {f"loss {name}": np.array(loss) for name, loss in run.losses.items()}
    return numbers, groups


def largest_difference(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> float:
    """The largest difference of two states."""
    assert first.keys() == second.keys()
    assert all(value.dtype in (np.float64, np.int64) for value in first.values())
    return float(np.max([np.abs(value - second[name]).max() for name, value in first.items()]))  # NaN if any is
