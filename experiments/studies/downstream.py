"""Does it matter downstream which permutations were chosen? Features at equal iterations, with and without a policy.

    python experiments/studies/downstream.py
    python experiments/studies/downstream.py --policies runs/across-gaussian-pool-seed0
    python experiments/studies/downstream.py --images path/to/imagenette/train --eval-images path/to/imagenette/val

Networks of the same seed are trained with random permutations, with a curriculum (`agents.EasiestFirst`) and with
policies that were learned across runs. Untrained, at half of the run and at its end, the last map of the trunk is
evaluated on labelled images: by the nearest neighbour (cosine distance), and by logistic regression on the training
images, whose penalty is chosen by cross-validation on them. The untrained network has measured batch statistics.

A job that is done is kept in the folder `runs`. Writes `experiments/results/downstream.json` and prints the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import agents
import permenv
from agents.rollout import rollout
from experiments.common.agent_runs import curriculum_options
from experiments.common.learned import LearnedPolicy, by_name
from experiments.common.options import EnvOptions, Preset, SweepOptions
from experiments.common.reports.report import heading, heading_in_words, publish
from experiments.common.reports.statistics import OF_MEANS, Estimate, mean_of
from experiments.common.script import run_script
from experiments.common.sweeps.sweep import over_seeds
from permenv import DataError, PermShuffleEnv, StillImages
from permenv.transfer.retrieval import nearest_neighbour_accuracy, pool_features
from permenv.transfer.trunks import measure_statistics, some_of
from permenv.wrappers.base import base_env_of

MOMENTS = ("untrained", "half", "end")
MEASURES = {"nearest": "nearest neighbour", "linear": "logistic regression"}
COLUMNS = [(moment, measure) for measure in MEASURES for moment in MOMENTS]
_CURRICULUM = (0.1, 0.5)  # the share of Ψ in the first pool, and of the updates until it is whole
_PENALTIES = np.logspace(-4, 2, 7).tolist()  # C, the inverse of the penalty
_FOLDS = 3


@dataclass(frozen=True, kw_only=True)
class Config(SweepOptions):
    """The options."""

    preset: Preset = "nano"
    task: tyro.conf.Suppress[str] = "spatial"
    policies: tuple[Path, ...] = ()
    """Run folders of `experiments/across_runs.py`, or copies of their checkpoints."""
    eval_images: Path | None = None
    """Labelled images to classify; by default fresh scenes, for --images the held-out images."""
    seeds: int = 5
    """Networks of each policy."""
    first_seed: int = 400
    """The first of the seeds."""
    runs: Path | None = Path("runs/downstream")
    """Folder with the result of each run; a run whose result is there is not run again."""
    out: Path = Path("experiments/results/downstream.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Run what is missing, print and write.

    Raises:
        CheckpointError: If a folder holds no policy.
        ConfigurationError: If a policy has the name of another one, or of a curriculum that it is compared with.
    """
    players: dict[str, str | LearnedPolicy] = {name: name for name in ("random", "curriculum")}
    players |= by_name([LearnedPolicy.find(path) for path in config.policies], taken=tuple(players))
    variants = {name: {"player": player, "eval_images": config.eval_images} for name, player in players.items()}
    found = over_seeds(_run, variants, config)
    by_policy = {name: _compare(runs, found["random"]) for name, runs in found.items()}
    report = {
        **heading(config),
        "first_seed": config.first_seed,
        "interval": OF_MEANS,
        "policies": {
            name: {
                column: value
                for metric, (own, more) in metrics.items()
                for column, value in {**own.as_columns(metric), **more.as_columns(f"{metric}_more")}.items()
            }
            for name, metrics in by_policy.items()
        },
        "runs": found,
    }
    publish(report, in_words(report), config.out)
    return report


def _compare(
    runs: list[dict[str, dict[str, float]]], random: list[dict[str, dict[str, float]]]
) -> dict[str, tuple[Estimate, Estimate]]:
    """Return each accuracy, and its difference from that of random permutations of the same seeds."""
    metrics = {}
    for moment, measure in COLUMNS:
        own, theirs = (np.array([run[moment][measure] for run in each]) for each in (runs, random))
        metrics[f"{measure}_{moment}"] = mean_of(own), mean_of(own - theirs)
    return metrics


def _run(
    player: str | LearnedPolicy, eval_images: Path | None, seed: int, environment: EnvOptions
) -> dict[str, dict[str, float]]:
    """Train one network; return its metrics, E among them, untrained, at half and at the end."""
    env = environment.make()
    base_env = base_env_of(env)
    queries = _queries(environment, base_env, eval_images)
    for images in (base_env.tasks["spatial"].data, queries):
        if images is not None and images.labels is None:
            raise DataError(f"{images.name} has no labels: name a folder with a subfolder for each class")
    if isinstance(player, LearnedPolicy):
        env, agent = player.make(env, seed=seed)
    elif player == "curriculum":
        options = curriculum_options(*_CURRICULUM, base_env.config.total_updates)
        agent = agents.make("easiest-first", env, seed=seed, **options)
    else:
        agent = agents.make(player, env, seed=seed)
    observation, _ = env.reset(seed=seed)
    by_moment = {"untrained": _evaluate(base_env, queries, untrained=True)}
    half = base_env.config.total_updates // 2
    for moment, updates in (("half", half), ("end", base_env.config.total_updates - half)):
        last = rollout(env, agent, observation=observation, updates=updates, learn=player == "curriculum")
        observation = last.next_observation
        by_moment[moment] = _evaluate(base_env, queries)
    return by_moment


def _queries(environment: EnvOptions, base_env: PermShuffleEnv, eval_images: Path | None) -> StillImages | None:
    """Return the images to classify; None for those that are held out."""
    config = environment.env
    if eval_images is not None:
        return permenv.image_folder(eval_images, config.image_size)
    if environment.images is None:
        return permenv.embedded_scenes(max(1, config.num_scenes // 4), config.image_size, config.scenes_seed + 1)
    return None


def _evaluate(base_env: PermShuffleEnv, queries: StillImages | None, untrained: bool = False) -> dict[str, float]:
    """Return the accuracies of both measures, in [0, 1], and E."""
    from sklearn.linear_model import LogisticRegression  # slow to import
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    task, trunk = base_env.tasks["spatial"], base_env.run.trainer.eval_network.trunk
    held_out = base_env.run.held_out["spatial"]
    trained = task.trainable(held_out)
    if untrained:
        trunk = measure_statistics(trunk, some_of(task.data, trained))
    sets: dict[str, tuple[StillImages, np.ndarray]] = {
        "train": (task.data, trained),
        "test": (task.data, held_out[:, 0]) if queries is None else (queries, np.arange(len(queries))),
    }
    features, labels = {}, {}
    for name, (images, rows) in sets.items():
        assert images.labels is not None, "checked before training"
        labelled = rows[images.labels[rows] >= 0]
        features[name] = pool_features(trunk, images, labelled)
        labels[name] = np.array(images.classes)[images.labels[labelled]]
    nearest = nearest_neighbour_accuracy(features["test"], labels["test"], features["train"], labels["train"])[1]
    regression = GridSearchCV(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": _PENALTIES},
        cv=_FOLDS,
    ).fit(features["train"], labels["train"])
    return {
        "nearest": nearest,
        "linear": float(regression.score(features["test"], labels["test"])),
        "error": base_env.records[-1].errors["spatial"],
    }


def in_words(report: dict[str, Any]) -> str:
    """Return what is printed of a report."""
    columns = {f"{measure}_{moment}": f"{MEASURES[measure]}, {moment}" for moment, measure in COLUMNS}
    lines = [
        f"{heading_in_words(report)}; accuracy of random permutations, in percent; below, in points, what others have "
        f"more, same seed; mean [{report['interval']}]",
        "",
        "| | " + " | ".join(columns.values()) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, row in report["policies"].items():
        of_random = name == "random"
        found = [Estimate.of_columns(row, column if of_random else f"{column}_more") for column in columns]
        points = (Estimate(*(100 * end for end in each)) for each in found)
        cells = " | ".join(f"{each:.1f}" if of_random else f"{each:+.1f}" for each in points)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
