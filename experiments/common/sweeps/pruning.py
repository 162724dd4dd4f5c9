"""A sweep whose bad jobs are stopped early: ASHA (Li et al. 2020, Algorithm 2) by Ray Tune (the extra `ray`).

Ray Tune runs the jobs and decides; what it writes is temporary. The results are in the folder of the sweep, as JSON
like those of any sweep, and it is continued from them: `Tuner.restore` would unpickle files of that folder.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tqdm import tqdm

from experiments.common.sweeps.ray_jobs import start_ray
from experiments.common.sweeps.sweep import JobError, Jobs, Keep, run_missing
from permenv import ConfigurationError

_QUIETLY = {
    "RAY_AIR_NEW_OUTPUT": "0",  # which prints a table whatever the verbosity
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # they write files of each trial
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a script has its own
}
_LOST = 3  # times that a job is run again whose process or machine is lost


@dataclass(frozen=True, kw_only=True)
class Asha:
    """When a job is stopped.

    After `grace`, `grace` · `reduction`, `grace` · `reduction`², ... updates a job goes on if its error is among the
    lowest 1 / `reduction` of those that other jobs have had there before; the first always does.

    Attributes:
        updates: Of a job that is not stopped.
        grace: Updates before which none is stopped, 1 to `updates`.
        reduction: At least 2.
    """

    updates: int
    grace: int
    reduction: int


def pruned_sweep(
    work: Callable[..., dict[str, Any]],
    jobs: Jobs,
    asha: Asha,
    *,
    ray: str,
    processes: int,
    gpus: float = 0,
    folder: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Run all jobs, or those whose results are missing, stop the bad ones, and return all results.

    Args:
        work: Does one job and returns its result. It receives `report` as well, a function to call with its result so
            far after each update. A result has "errors", the error after each update so far, and "finished", whether
            the job is over.
        jobs: See `sweep`.
        asha: Decides which are stopped. Those in the folder count.
        ray: The address, see `start_ray`.
        processes: Jobs at once, where Ray is started here.
        gpus: GPUs of a job.
        folder: See `sweep`.

    Returns:
        By name, the results, in the order of `jobs`; of a job that was stopped, the last one that it reported.

    Raises:
        ConfigurationError: If no such folder can be made, Ray Tune is not installed, or there is no such cluster.
        RunFolderError, JobError: See `sweep`.
    """

    def run(missing: Jobs, found: Mapping[str, Any], keep: Keep[dict[str, Any]]) -> None:
        if missing:
            _tune(work, {name: jobs[name] for name in missing}, found, asha, keep, ray, processes, gpus)

    return run_missing({name: {**arguments, "asha": asdict(asha)} for name, arguments in jobs.items()}, folder, run)


def _tune(
    work: Callable[..., dict[str, Any]],
    jobs: Jobs,
    found: Mapping[str, dict[str, Any]],
    asha: Asha,
    keep: Keep[dict[str, Any]],
    address: str,
    processes: int,
    gpus: float,
) -> None:
    os.environ.update(_QUIETLY)
    try:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
    except ImportError as error:
        raise ConfigurationError('--prune needs the package ray[tune]: pip install -e ".[ray]"') from error
    ray = start_ray(address, processes)
    try:
        logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it warns that it has no files of the trials
        scheduler = ASHAScheduler("update", "error", "min", asha.updates, asha.grace, asha.reduction)
        for name, result in found.items():
            job = SimpleNamespace(trial_id=name)
            scheduler.on_trial_add(None, job)
            for update, mean in enumerate(result["errors"], start=1):
                scheduler.on_trial_result(None, job, {"update": update, "error": mean})

        errors: list[Exception] = []  # Ray Tune makes others of them

        class _Keep(tune.Callback):
            def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any]) -> None:
                try:
                    name = trial.config["name"]
                    if "failure" in result:
                        raise JobError(f"{name}: {result['failure']}") from result["failure"]
                    if result["result"]["finished"] or result["done"]:
                        keep(name, result["result"])
                        bar.update()
                except Exception as error:
                    errors.append(error)
                    raise

            def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
                errors.append(JobError(f"{trial.config['name']}: its process was lost {_LOST + 1} times"))

            def __reduce__(self) -> tuple[Any, ...]:
                return tune.Callback, ()  # Ray Tune pickles it, for `Tuner.restore`

        with tqdm(total=len(jobs), unit="run") as bar, tempfile.TemporaryDirectory() as folder:
            tuner = tune.Tuner(
                tune.with_resources(tune.with_parameters(_job, work=work, jobs=jobs), {"cpu": 1, "gpu": gpus}),
                param_space={"name": tune.grid_search(list(jobs))},
                tune_config=tune.TuneConfig(scheduler=scheduler),
                run_config=tune.RunConfig(
                    storage_path=folder,
                    callbacks=[_Keep()],
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=_LOST),
                ),
            )
            try:
                tuner.fit()
            except Exception:
                if not errors:  # what has ended it is raised below, as it was
                    raise
        if errors:
            raise errors[0]
    finally:
        ray.shutdown()


def _job(config: Mapping[str, str], work: Callable[..., dict[str, Any]], jobs: Jobs) -> None:
    """Do one job as a trial of Ray Tune."""
    from ray import tune

    def report(result: dict[str, Any]) -> None:
        tune.report({"update": len(result["errors"]), "error": result["errors"][-1], "result": result})

    torch.set_num_threads(1)
    try:
        work(**jobs[config["name"]], report=report)
    except Exception as failure:  # which would be run again, as if its process had been lost
        tune.report({"update": 0, "error": 1.0, "failure": failure})
