"""What the state of a run must look like, see `permenv.schema`: its parts, and conditions between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from permenv.checkpoint import CheckpointError
from permenv.config import Range
from permenv.grouping import HIGHEST_RATIO, LOWEST_RATIO, observe
from permenv.records import PHASES
from permenv.schema import (
    COUNT,
    FLAG,
    FLOAT32,
    INT64,
    Anything,
    Array,
    DictOf,
    Fields,
    ListOf,
    Number,
    OneOf,
    Schema,
    Where,
    below,
    equal,
    shown,
)
from permenv.streams import Purpose, stream
from permenv.tasks import Task


def run_schema(identity: Mapping[str, Any], tasks: Mapping[str, Task], num_groups: int, trainer: Schema) -> Schema:
    """What `Pretraining.state_dict` returns.

    Args:
        identity: What the run must have in common with this one, see `Pretraining.identity`.
        tasks: By name, what is shuffled.
        num_groups: |C|.
        trainer: Of the trainer's state.
    """
    shape = (len(tasks), num_groups)

    def by_task(schema: Schema) -> Schema:
        return Fields(dict.fromkeys(tasks, schema))

    choices = Array(INT64, shape, Range(0))
    record = Fields(
        {
            "iteration": COUNT,
            "phase": OneOf(PHASES),
            "errors": by_task(Number(float, Range(0, 1))),
            "cross_entropies": by_task(Number(float, Range(0))),
            "observation": Array(FLOAT32, (*(shape if len(tasks) > 1 else shape[1:]), 2), Range(0, HIGHEST_RATIO)),
            "choices": choices,
        }
    )
    parts = Fields(
        {
            "identity": _Identity(identity),
            "seed": Number(int, Range(0)),
            "trainer": trainer,
            "records": Where(ListOf(record), {"begin with a reset and be in the order of time": _are_in_order}),
            "losses": by_task(Number(float, None)),
            "choices": choices,
            "diverged": FLAG,
            "tasks": Fields({name: _task_schema(task, num_groups) for name, task in tasks.items()}),
        }
    )
    return Where(
        parts,
        {
            "have finite losses of at least 0, or have diverged": lambda state: (
                state["diverged"] or all(0 <= loss < math.inf for loss in state["losses"].values())
            ),
            "have its last record no later than its last iteration": lambda state: (
                state["records"][-1]["iteration"] <= state["trainer"]["iteration"]
            ),
            "have the errors and the observation of its last validation in its last record": _are_summarised,
        },
    )


def _task_schema(task: Task, num_groups: int) -> Schema:
    """What a state holds of a task."""
    # X_val of another seed shows of what shape it is
    samples = Array.like(task.hold_out(stream(0, Purpose.VALIDATION_SET)))
    pairs = len(task.permutations), samples.shape[0]
    parts = Fields(
        {
            "permutations": _Permutations(task),
            "held_out": Where(samples, {"be samples of the data": task.are_samples}),
            "ratios": Array(FLOAT32, pairs, Range(LOWEST_RATIO, HIGHEST_RATIO)),
            "correct": Array(np.dtype(np.bool_), pairs),
            "groups": Where(
                Array(INT64, pairs[:1], below(num_groups)),
                {"have its empty groups last": lambda groups: len(np.unique(groups)) == groups.max() + 1},
            ),
        }
    )
    rule = "have ratios of at least 1 where the permutation was recognised, and of at most 1 elsewhere"
    return Where(parts, {rule: _are_predictions})


def _are_in_order(records: list[dict[str, Any]]) -> bool:
    iterations = [record["iteration"] for record in records]
    begins = bool(records) and records[0]["phase"] == "reset" and iterations[0] == 0
    return begins and iterations == sorted(iterations)


def _are_predictions(saved: Mapping[str, np.ndarray]) -> bool:
    ratios, correct = saved["ratios"], saved["correct"]
    return bool((np.where(correct, ratios, 1) >= 1).all() and (np.where(correct, 1, ratios) <= 1).all())


def _are_summarised(state: Mapping[str, Any]) -> bool:
    last, tasks = state["records"][-1], state["tasks"]
    num_groups = last["observation"].shape[-2]
    ratios, groups = ({name: tasks[name][part] for name in last["errors"]} for part in ("ratios", "groups"))
    observation = observe(ratios, groups, num_groups)
    differences = [1 - tasks[name]["correct"].mean() - error for name, error in last["errors"].items()]
    return np.allclose(observation, last["observation"], rtol=0, atol=1e-6) and np.allclose(differences, 0, atol=1e-9)


@dataclass(frozen=True)
class _Identity(Schema):
    """The identity of a run, which must be this one's."""

    ours: Mapping[str, Any]

    def check(self, value: Any, place: str) -> None:
        DictOf(Anything()).check(value, place)
        different = [name for name in {**self.ours, **value} if not self._has(value, name)]
        if not different:
            return
        names = [name if name in self.ours else shown(name) for name in different]
        theirs, ours = (shown(each.get(different[0])) for each in (value, self.ours))
        remedy = "pass the same data, which must not change between reads" if "data" in different else "use its values"
        raise CheckpointError(
            f"the checkpoint is of another configuration: it has {names[0]}={theirs}, this run {names[0]}={ours} "
            f"(all differences: {', '.join(names)}); {remedy}"
        )

    def _has(self, value: Mapping[str, Any], name: str) -> bool:
        return name in self.ours and name in value and equal(self.ours[name], value[name])


@dataclass(frozen=True, eq=False)
class _Permutations(Schema):
    """Ψ, which must be this run's."""

    task: Task

    def check(self, value: Any, place: str) -> None:
        Array.like(self.task.permutations).check(value, place)
        if not np.array_equal(value, self.task.permutations):
            raise CheckpointError(
                f"the checkpoint has other permutations of task {self.task.name!r}: use its class as it was"
            )
