"""What every training job does, whichever algorithm trains: evaluate before and after, sum up, and report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from experiments.common.machine import keep_freed_memory
from experiments.common.training.loggers import Logger, make_loggers
from experiments.common.training.options import JobOptions
from experiments.common.training.queries import Queries, find_queries, top1
from experiments.common.training.recorder import Recorder
from experiments.common.training.run_folder import open_folder
from permenv import CheckpointError, PermShuffleEnv, VideoClips, distributed
from permenv.data import files
from permenv.device import resolve_device


@contextlib.contextmanager
def torch_settings(options: JobOptions) -> Iterator[None]:
    """Use the GPU and the deterministic algorithms that the options name inside a `with` block, in which a job is run.

    Raises:
        ConfigurationError: If there is no such device.
    """
    device = resolve_device(options.device)
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with contextlib.ExitStack() as stack:
        if device.type == "cuda" and device.index is not None:  # memory is pinned for the current GPU
            stack.enter_context(torch.cuda.device(device))
        if options.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch demands it
            stack.callback(torch.use_deterministic_algorithms, enabled, warn_only=warn_only)
            torch.use_deterministic_algorithms(True)
        yield


def make_recorder(options: JobOptions, loggers: Sequence[Logger] = ()) -> Recorder:
    """Make the job's environment, and its recorder. Call it inside `torch_settings`.

    Args:
        options: The options of the job.
        loggers: More loggers than the options name.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy; nothing is written.
    """
    loggers = (*make_loggers(options.log), *loggers)
    distributed.current().require_shards(options.env)
    # the folder comes before the data, which may take minutes to read
    with contextlib.closing(open_folder(options.folder, options.resume)):
        keep_freed_memory()
        return Recorder(
            options.make(),
            options.folder,
            resume=options.resume,
            settings=options.settings,
            may_change=options.may_change,
            loggers=loggers,
        )


def begin(run: Recorder, options: JobOptions) -> dict[str, Queries]:
    """Begin or restore the run, and evaluate the network that it begins with.

    Returns:
        The queries of the evaluation, by task, for `finish`.

    Raises:
        ConfigurationError, CheckpointError, DataError: With the remedy; nothing is written.
    """
    run.reset(seed=options.seed, options=options.reset_options)
    queries = find_queries(options, run.base_env)
    fingerprints = {task: each.fingerprint for task, each in queries.items()}
    for task, before in run.notes.setdefault("queries", fingerprints).items():
        if fingerprints[task] != before:
            raise CheckpointError(
                f"the run in {options.folder} was evaluated with other images or clips than {queries[task].name} "
                f"({task}): name those with --images, --eval-images or --videos, or start another run with --out"
            )
    if "top1_untrained" not in run.notes:  # a resumed run has it in its checkpoint
        run.notes["top1_untrained"] = top1(run.base_env, queries, untrained=options.trunk_from is None)
    return queries


def finish(run: Recorder, options: JobOptions, queries: dict[str, Queries]) -> dict[str, Any]:
    """Evaluate the trained network, write the summary and the pictures, and print how the run went.

    Returns:
        What summary.json holds.
    """
    run.checkpoint()
    summary = run.summary()
    trained = top1(run.base_env, queries)
    for task, task_summary in summary["tasks"].items():
        task_summary["top1_untrained"] = run.notes["top1_untrained"][task]
        task_summary["top1_trained"] = trained[task]
        task_summary["queries"] = queries[task].name
    run.finish(summary, options.title)
    print(in_words(summary, run.base_env, options))
    return summary


def in_words(summary: dict[str, Any], base_env: PermShuffleEnv, options: JobOptions) -> str:
    """Return the lines that a job ends with.

    Args:
        summary: What summary.json holds.
        base_env: The environment at the end.
        options: The options of the job.
    """
    start = "untrained" if options.trunk_from is None else "with the given trunk"
    lines = []
    for task, task_summary in summary["tasks"].items():
        lines.append(
            f"Error, {task}: {task_summary['error_first']:.3f} {start}, {task_summary['error_last']:.3f} after "
            f"{summary['iterations']} iterations and {summary['updates']} updates "
            f"({task_summary['permutations']} permutations of {task_summary['samples']} held-out samples; "
            f"chance {task_summary['chance']:.3f})."
        )
    if summary["diverged"]:
        lines.append("The loss was not finite: the run ended early. Lower --env.learning-rate.")
    for task, task_summary in summary["tasks"].items():
        if task_summary["top1_untrained"] is None:
            remedy = " (see --eval-images)" if task == "spatial" else ""
            lines.append(f"Nearest neighbours, {task}: no labels, so there is nothing to evaluate{remedy}.")
        elif task_summary["top1_trained"] is None:
            lines.append(f"Nearest neighbours, {task}: the features are not finite any more.")
        else:
            lines.append(
                f"Nearest neighbour Top-1 of pool5 features, {task}: {task_summary['top1_untrained']:.1%} {start}, "
                f"{task_summary['top1_trained']:.1%} trained (queries: {task_summary['queries']})."
            )
    lines.append(
        f"Time: {summary['seconds']:.0f} s on {summary['machine']['device']}, of which validation "
        f"{summary['seconds_validation']:.1f}, grouping {summary['seconds_grouping']:.1f}, policy "
        f"{summary['seconds_policy']:.1f}: {summary['policy_cost']:.1%} of the run."
    )
    for task, each in base_env.tasks.items():
        if skipped := getattr(each.data, "skipped", ()):
            lines.append(f"Skipped, {task}: {len(skipped)}: {files.list_some(skipped)}.")
        if isinstance(each.data, VideoClips) and each.data.irregular:
            lines.append(
                f"Used but lacking frames, {task}: {len(each.data.irregular)}: {files.list_some(each.data.irregular)}."
            )
    logs = "TensorBoard, " if "tensorboard" in options.log else ""
    lines.append(f"Files: {summary['folder']} (metrics.csv, summary.json, pictures, {logs}checkpoint).")
    return "\n".join(lines)
