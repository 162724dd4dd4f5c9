"""A sweep: many runs, each once, by any executor; what a folder already has is not run again.

```python
jobs = {f"{name}-seed{seed}": {"name": name, "seed": seed} for name in names for seed in range(5)}
with make_executor(processes=2) as executor:
    results = sweep(work, jobs, executor=executor, folder=Path("runs/mine"))
```

`over_seeds` does the same from the options of a script, and `run_missing` for what runs jobs in another way.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from experiments.common.content import contents_of, digest_of_code, digest_of_folder
from experiments.common.files import as_json, require_writable, write_json
from experiments.common.machine import versions
from experiments.common.options import SweepOptions
from experiments.common.sweeps.processes import make_executor
from experiments.common.training.run_folder import RunFolderError, locked
from permenv.device import resolve_device

R = TypeVar("R")

Jobs = Mapping[str, Mapping[str, Any]]
Keep = Callable[[str, R], None]


_LONGEST, _SHOWN = 200, 160  # bytes: most file systems take 255, of which an atomic write needs 43


class JobError(RuntimeError):
    """A job of a sweep that failed; the message names the job, and the cause is the job's own error."""


def sweep(
    work: Callable[..., R],
    jobs: Jobs,
    *,
    executor: Executor,
    folder: Path | None = None,
) -> dict[str, R]:
    """Run all jobs, or those whose results are missing, and return all results.

    Args:
        work: Does one job. It is pickled if the executor has other processes, so it is a function at module level.
        jobs: By name, the keyword arguments of `work`. They are run in this order. Whatever decides a result must be
            among them: the arguments, of folders among them the content and not the place
            (`experiments.common.content`), and the versions of the libraries say whether a result in the folder is the
            same. Where only the code of permenv, agents and experiments has changed since, results are taken, and one
            line says how many: most changes of code change no result, and training may have taken a night.
        executor: Runs the jobs: `make_executor`, or anything with the `submit` of `concurrent.futures`.
        folder: If given, this process writes each result to NAME.json as soon as it is there, under a digest of NAME
            where that is long; results must be what JSON can hold.

    Returns:
        By name, the results, in the order of `jobs`; of a folder as JSON has them (tuples are lists).

    Raises:
        ConfigurationError: If no such folder can be made.
        RunFolderError: If another process uses the folder, or it has a result that is damaged or of other arguments,
            data or versions; nothing has been run.
        JobError: If a job failed. Jobs not yet begun are cancelled. Those that run are completed and kept; on Ray they
            are cancelled as well.
    """
    return run_missing(jobs, folder, lambda missing, found, keep: _run(work, missing, executor, keep))


def run_missing(jobs: Jobs, folder: Path | None, run: Callable[[Jobs, Mapping[str, R], Keep[R]], None]) -> dict[str, R]:
    """Return the results of all jobs, those that a folder has and those of the others, which are run.

    Args:
        jobs: See `sweep`.
        folder: See `sweep`.
        run: Runs jobs, given the missing ones, the results of the others, and the function to call with the name and
            the result of each job that is done.

    Raises:
        ConfigurationError, RunFolderError: See `sweep`.
    """
    found: dict[str, R] = {}
    if folder is None:
        run(jobs, {}, found.__setitem__)
        return {name: found[name] for name in jobs}
    require_writable(folder, "--runs")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "--runs"):
        libraries, code = versions(), digest_of_code()
        digest = functools.cache(functools.partial(digest_of_folder, without=folder))  # jobs share folders
        settings = {
            name: as_json({"arguments": given, "data": contents_of(given, digest), "versions": libraries})
            for name, given in jobs.items()
        }
        files = {name: folder / _file(name) for name in jobs}
        there = {name: _read(path, settings[name]) for name, path in files.items() if os.path.lexists(path)}
        found |= {name: each["result"] for name, each in there.items()}
        others = sum(each.get("code") != code for each in there.values())
        if others:
            print(
                f"{others} of the {len(there)} results in {folder} were made by other code of permenv, agents or "
                "experiments: to make them anew, name another folder with --runs, or remove it",
                flush=True,
            )
        missing = {name: jobs[name] for name in jobs if name not in found}

        def keep(name: str, result: R) -> None:
            write_json(files[name], {"settings": settings[name], "code": code, "result": result})

        run(missing, found, keep)
        found |= {name: _read(files[name], settings[name])["result"] for name in missing}
    return {name: found[name] for name in jobs}


def over_seeds(
    work: Callable[..., R], variants: Mapping[str, Mapping[str, Any]], options: SweepOptions
) -> dict[str, list[R]]:
    """Run every variant with every seed.

    Args:
        work: Does one job, see `sweep`. It receives the arguments of the variant, `seed` and `environment`, an
            `EnvOptions`.
        variants: By name, the arguments of `work`; run in this order for each seed.
        options: The seeds, the environment, the number of processes, and the folder of the results.

    Returns:
        By variant, the results in the order of the seeds.

    Raises:
        RunFolderError, JobError: See `sweep`.
    """
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = {
        f"{name}-seed{seed}": {**arguments, "seed": seed, "environment": options.environment}
        for seed in seeds
        for name, arguments in variants.items()
    }
    with executor_of(options) as executor:
        found = sweep(work, jobs, executor=executor, folder=options.runs)
    return {name: [found[f"{name}-seed{seed}"] for seed in seeds] for name in variants}


def executor_of(options: SweepOptions) -> Executor:
    """Make the executor that the options of a script name."""
    return make_executor(options.processes, options.ray, gpus=float(resolve_device(options.device).type == "cuda"))


def _run(
    work: Callable[..., R],
    jobs: Jobs,
    executor: Executor,
    keep: Keep[R],
) -> None:
    with tqdm(total=len(jobs), unit="run", disable=not jobs) as bar:
        done: set[str] = set()

        def finish(future: Future[R], name: str) -> None:
            if name not in done:
                keep(name, _result(future, name))
                done.add(name)
                bar.update()

        futures: dict[Future[R], str] = {}
        try:
            for name, arguments in jobs.items():
                future = executor.submit(work, **arguments)
                futures[future] = name
                if future.done():
                    finish(future, name)
            for future in as_completed(futures):
                finish(future, futures[future])
        except Exception:
            for future in futures:
                future.cancel()
            running = [future for future in futures if not future.cancelled()]
            # they end, and are kept; what could not be written, on a full disk, is written once more at last
            for future in itertools.chain(as_completed(running), running):
                with contextlib.suppress(JobError, OSError):
                    finish(future, futures[future])
            raise
        except BaseException:
            # a pool of processes that is stopped is broken on purpose, and its jobs must not be cancelled meanwhile
            if not isinstance(executor, ProcessPoolExecutor):
                for future in futures:
                    future.cancel()
            raise


def _result(future: Future[R], name: str) -> R:
    try:
        return future.result()
    except Exception as error:
        raise JobError(f"{name}: {error}") from error


def _file(name: str) -> str:
    """Return the name of the file with the result of a job."""
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST:
        name = f"{encoded[:_SHOWN].decode(errors='ignore')}-{hashlib.blake2b(encoded, digest_size=16).hexdigest()}"
    return f"{name}.json"


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read a file of a result: "result", and "code", the digest of the sources; older files have none."""
    try:
        if not path.is_file():  # reading a named pipe would wait
            raise OSError("not a file")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        then, _ = _leaves(content["settings"]), content["result"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunFolderError(
            f"{path} is not a result of a job ({error}): remove it, and the job is run again"
        ) from error
    now = _leaves(settings)
    places = {f"arguments.{name}" for name in settings["data"]}  # of folders, whose content counts
    different = [name for name in now | then if name not in places and then.get(name) != now.get(name)]
    if different:
        name = different[0]
        raise RunFolderError(
            f"{path} was made with {name}={then.get(name)!r}, not {now.get(name)!r} ({len(different)} differences): "
            f"name another folder with --runs, or remove it"
        )
    return content


def _leaves(tree: Any, name: str = "") -> dict[str, Any]:
    """Return the values of nested dicts and lists by their dotted names, as `contents_of` names folders."""
    if not (tree and isinstance(tree, dict | list)):
        return {name: tree}
    prefix = f"{name}." if name else ""
    branches = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {leaf: value for key, branch in branches for leaf, value in _leaves(branch, f"{prefix}{key}").items()}
