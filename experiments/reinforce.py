"""The main job: train a network on shuffled images while a policy learns which permutations to shuffle them with.

    python experiments/reinforce.py
    python experiments/reinforce.py --images path/to/images --seed 1 --out runs/mine

Algorithm 1 and section 3.2 of Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep
Reinforcement Learning", ECCV 2018. Everything a run leaves behind is in its folder (see `experiments/runs.py`).
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import tyro
from tqdm import tqdm

import permenv
from agents import Agent, InversePolicy, RandomPolicy, Reinforce
from experiments import runs
from permenv import PermShuffleEnv, StillImages, checkpoint, render
from permenv.evaluation import nearest_neighbour_accuracy, pool_features
from permenv.permutations import hamming_statistics

_MOST_EVALUATED = 10_000  # images on each side of the nearest-neighbour search
_TO_CONTINUE = ("updates", "device", "out", "resume", "compare_random")  # may differ when a run is resumed


@dataclass(frozen=True)
class Config:
    """The main job's options."""

    preset: str = "tiny"
    """Numbers to start from: "tiny" (minutes on two CPU cores) or "paper" (the paper's, for a GPU)."""
    task: str = "spatial"
    """What is shuffled: "spatial", the 3 × 3 tiles of an image."""
    images: Path | None = None
    """Folder of images (ImageFolder layout); the embedded scenes if none is given."""
    eval_images: Path | None = None
    """Labelled images that query the nearest-neighbour search; by default the folder `val` or `test` beside an
    `images` folder called `train`, else the held-out validation samples (fresh scenes for the embedded data)."""
    updates: int | None = None
    """T, updates of the policy; the preset's if not given."""
    free_iterations: int | None = None
    """SGD iterations between updates, with the policy fixed; the preset's if not given."""
    policy: Literal["reinforce", "random", "inverse"] = "reinforce"
    """Who chooses: REINFORCE, uniformly random permutations, or the inverse of a policy (appendix F)."""
    policy_from: Path | None = None
    """Checkpoint of a run whose REINFORCE policy to start from; with `--policy inverse`, the trained policy to
    invert, where otherwise a policy is inverted that learns meanwhile."""
    seed: int = 0
    """Decides the run."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path | None = None
    """Run folder; runs/TASK-POLICY-seedSEED if not given."""
    resume: bool = False
    """Continue the run in `out` where its last checkpoint was written."""
    compare_random: bool = False
    """Train with random permutations too, from the same seed, into `out`/random, and compare."""
    set: tuple[str, ...] = ()
    """Any other number of permenv.Config, as NAME=VALUE: --set num_permutations=300 batch_size=32."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.task}-{self.policy}-seed{self.seed}"

    def overrides(self) -> dict[str, Any]:
        """What differs from the preset.

        Raises:
            ConfigurationError: If an entry of `set` is not NAME=VALUE.
        """
        values: dict[str, Any] = {}
        for entry in self.set:
            name, separator, text = entry.partition("=")
            if not separator:
                raise permenv.ConfigurationError(f"--set {entry}: write NAME=VALUE, such as num_permutations=300")
            try:
                values[name] = json.loads(text)
            except json.JSONDecodeError:
                values[name] = text  # a word, such as a backbone's name
        for name, value in (("total_updates", self.updates), ("free_iterations", self.free_iterations)):
            if value is not None:
                values[name] = value
        return values


def main(config: Config) -> dict[str, Any]:
    """Run the job.

    Args:
        config: Its options.

    Returns:
        What summary.json holds.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy, before anything is trained.
    """
    if not config.compare_random:
        return train(config)
    if config.policy == "random":
        raise permenv.ConfigurationError("--compare-random compares a policy with random: choose another --policy")
    rival = dataclasses.replace(config, policy="random", policy_from=None, out=config.folder / "random")
    if config.resume and not runs.RunFolder.holds_run(rival.folder):
        rival = dataclasses.replace(rival, resume=False)  # the first of the two was cut short
    runs.RunFolder(rival.folder, rival.resume)  # a folder in the way is told now, not after the first run
    summary = train(config)
    baseline = train(rival)
    folder = runs.RunFolder(config.folder, resume=True)
    summary["relative_accuracy"] = (1 - summary["error_last"]) / (1 - baseline["error_last"])
    runs.write_json(folder.path / "summary.json", summary)
    curves = {
        name: runs.columns(runs.read_rows(run.folder)) for name, run in ((config.policy, config), ("random", rival))
    }
    folder.picture("error", render.error_figure(curves))
    print(
        f"Against random permutations, same seed: error {summary['error_last']:.3f} to {baseline['error_last']:.3f}, "
        f"accuracy {summary['relative_accuracy']:.1%} of random's (one seed: compare several before you conclude)."
    )
    return summary


def train(config: Config) -> dict[str, Any]:
    """Train one run to its end, or go on with it, and sum it up in its folder."""
    folder = runs.RunFolder(config.folder, config.resume)
    saved = checkpoint.read(folder.checkpoint) if config.resume else None
    if saved is not None:
        _check_same_job(config, saved["job"]["config"], folder.path)
    wrapped = gym.make(
        "PermShuffle-v0",
        preset=config.preset,
        task=config.task,
        images=config.images,
        device=config.device,
        **config.overrides(),
    )
    env = wrapped.unwrapped
    assert isinstance(env, PermShuffleEnv)
    agent = make_agent(config, env)
    gallery = Gallery(config, env)
    if saved is None:
        observation, info = wrapped.reset(seed=config.seed)
        untrained = gallery.accuracy(env)
        job: dict[str, Any] = {
            "untrained": untrained,
            "error_first": info["error"],
            "seconds": 0.0,
            "policy": 0.0,
        }
    else:
        observation, info = wrapped.reset(options={"checkpoint": folder.checkpoint})
        agent.load_state_dict(saved["agent"])
        job = saved["job"]
    job["config"] = _as_json(config)
    folder.start(job.pop("rows", []))
    _describe(config, env, folder, gallery)
    folder.save(env, agent, **job)
    for row in _run(wrapped, agent, observation, info, job):
        folder.append(row)
        folder.save(env, agent, **job)
    folder.close()
    summary = _sum_up(env, folder, job, gallery)
    print(_in_words(summary, env, gallery))
    return summary


def make_agent(config: Config, env: PermShuffleEnv) -> Agent:
    """Build the policy that the options name."""
    spaces = env.observation_space, env.action_space
    # not the environment's own seed: two generators of one seed draw the same numbers
    seed, inner_seed = (int(word) for word in np.random.SeedSequence(config.seed).generate_state(2))
    if config.policy == "random":
        return RandomPolicy(*spaces, seed=seed)
    given = Reinforce(*spaces, seed=inner_seed)
    if config.policy_from is not None:
        given.load_state_dict(_policy_in(config.policy_from))
    if config.policy == "inverse":
        return InversePolicy(given, seed=seed, policy_learns=config.policy_from is None)
    return given


def _run(
    env: gym.Env[Any, Any], agent: Agent, observation: np.ndarray, info: dict[str, Any], job: dict[str, Any]
) -> Iterator[dict[str, float]]:
    """Drive the environment to its end; yields a row of metrics an update."""
    world = env.unwrapped
    assert isinstance(world, PermShuffleEnv)
    config = world.config
    iterations = config.total_updates * (config.free_iterations + config.iterations_per_update)
    over = info["diverged"] or info["update"] >= config.total_updates
    chosen = np.zeros(config.num_groups)
    overhead = {name: job.get(name, 0.0) for name in ("validation", "grouping")}
    start, policy_seconds = time.perf_counter() - job["seconds"], job["policy"]
    pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines: a log file is not a terminal
    with tqdm(total=iterations, initial=info["iteration"], unit="it", mininterval=pause) as bar:
        while not over:
            before = time.perf_counter()
            action = agent.act(observation)
            policy_seconds += time.perf_counter() - before
            observation_next, gain, terminated, truncated, info = env.step(action)
            before = time.perf_counter()
            learned = agent.learn(observation, action, gain, observation_next, terminated, truncated, info)
            policy_seconds += time.perf_counter() - before
            acted_on, observation, over = observation, observation_next, terminated or truncated
            bar.update(info["iteration"] - bar.n)
            if info["phase"] == "free" and not terminated:
                continue
            chosen[action] += 1
            if not (info["validated"] or terminated):
                continue
            job["seconds"], job["policy"] = time.perf_counter() - start, policy_seconds
            for name in overhead:
                job[name] = overhead[name] + world.seconds[name]
            bar.set_postfix(error=f"{info['error']:.3f}", reward=f"{float(gain):+.4f}")
            yield {
                "update": info["update"] + int(terminated),  # one that diverged counts as begun
                "iteration": info["iteration"],
                "seconds": round(job["seconds"], 3),
                "loss": info["loss"],
                "error": info["error"],
                "baseline_error": info["baseline_error"],
                "reward": float(gain),
                "diverged": float(info["diverged"]),
                "entropy": learned.get("entropy", _entropy(agent.probabilities(observation))),
                **{f"group_{group}": count / chosen.sum() for group, count in enumerate(chosen)},
                **{f"size_{group}": float(fraction) for group, fraction in enumerate(acted_on[:, 0])},
            }
            chosen[:] = 0


class Gallery:
    """The labelled images of the nearest-neighbour search: held-out queries, training images as the database.

    Args:
        config: The job's options.
        env: The environment; its training images are searched.
    """

    def __init__(self, config: Config, env: PermShuffleEnv):
        self.queries, self.name = _query_images(config, env)

    def accuracy(self, env: PermShuffleEnv) -> float | None:
        """Top-1 of pool5 features by the network as it is now (Table 1); None where there are no labels."""
        database = _labelled(env.data, env.training_indices)
        queries = _labelled(self.queries, env.validation_indices if self.queries is env.data else None)
        if not len(database) or not len(queries):
            return None
        query_features, query_classes = _features(env, self.queries, queries)
        features, classes = _features(env, env.data, database)
        return nearest_neighbour_accuracy(query_features, query_classes, features, classes)[1]


def _features(env: PermShuffleEnv, data: StillImages, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and class names of some images; names, for two folders may number their classes differently."""
    assert data.labels is not None
    features = pool_features(env.trainer.evaluated, data, indices, env.device)
    return features, np.array([data.classes[label] for label in data.labels[indices]])


def _query_images(config: Config, env: PermShuffleEnv) -> tuple[StillImages, str]:
    """The images that query, and what to call them."""
    size, folder = env.config.image_size, config.eval_images
    if config.images is None and folder is None:
        count, seed = max(1, env.config.num_scenes // 4), env.config.scenes_seed + 1
        return permenv.embedded_scenes(count, size, seed), "fresh scenes"
    if config.images is not None and folder is None and config.images.name == "train":
        beside = (config.images.with_name(name) for name in ("val", "test"))
        folder = next((path for path in beside if path.is_dir()), None)
    if folder is not None:
        return permenv.image_folder(folder, size).to(env.device), str(folder)
    return env.data, "the held-out validation samples"


def _labelled(data: StillImages, among: np.ndarray | None) -> np.ndarray:
    """Indices of labelled images, at most `_MOST_EVALUATED` of them, evenly spread."""
    if data.labels is None:
        return np.empty(0, dtype=np.int64)
    indices = np.arange(len(data)) if among is None else among
    indices = indices[data.labels[indices] >= 0]
    return indices[:: -(-len(indices) // _MOST_EVALUATED)] if len(indices) else indices


def _describe(config: Config, env: PermShuffleEnv, folder: runs.RunFolder, gallery: Gallery) -> None:
    """Write down what is about to run: config.json and Ψ."""
    permutations = env.permutations[env.task]
    folder.array("permutations", permutations)
    runs.write_json(
        folder.path / "config.json",
        {
            "job": _as_json(config),
            "environment": env.config.as_dict(),
            "permutations": dataclasses.asdict(hamming_statistics(permutations)),
            "data": {
                "name": env.data.name,
                "images": len(env.data),
                "fingerprint": env.data.fingerprint,
                "skipped": len(env.data.skipped),
                "queries": gallery.name,
            },
            "machine": runs.machine(env.device),
        },
    )


def _sum_up(env: PermShuffleEnv, folder: runs.RunFolder, job: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
    """Write summary.json and the pictures."""
    rows = folder.rows
    overhead = job["validation"] + job["grouping"] + job["policy"]
    summary = {
        "updates": len(rows),
        "iterations": env.trainer.iteration,
        "diverged": bool(rows[-1]["diverged"]),
        "error_first": job["error_first"],
        "error_last": rows[-1]["error"],
        "error_best": min(row["error"] for row in rows),
        "top1_untrained": job["untrained"],
        "top1_trained": gallery.accuracy(env),
        "top1_queries": gallery.name,
        "seconds": job["seconds"],
        "seconds_validation": job["validation"],
        "seconds_grouping": job["grouping"],
        "seconds_policy": job["policy"],
        "policy_cost": overhead / job["seconds"],
        "folder": str(folder.path),
        "machine": runs.machine(env.device),
    }
    runs.write_json(folder.path / "summary.json", summary)
    folder.picture("error", render.error_figure({"this run": runs.columns(rows)}))
    folder.picture("choices", runs.choice_figure(rows))
    folder.picture("shuffles", runs.example_figure(env, seed=0))
    return summary


def _in_words(summary: dict[str, Any], env: PermShuffleEnv, gallery: Gallery) -> str:
    """The few lines a run ends with."""
    config = env.config
    lines = [
        f"Error: {summary['error_first']:.3f} untrained, {summary['error_last']:.3f} after {summary['iterations']} "
        f"iterations and {summary['updates']} updates ({config.num_permutations} permutations of "
        f"{config.num_validation} held-out images; chance {1 - 1 / config.num_permutations:.3f})."
    ]
    if summary["diverged"]:
        lines.append("The loss was not finite: the run ended early. Lower learning_rate (--set learning_rate=...).")
    if summary["top1_trained"] is None:
        lines.append("Nearest neighbours: no labels, so there is nothing to evaluate (see --eval-images).")
    else:
        lines.append(
            f"Nearest neighbour Top-1 of pool5 features: {summary['top1_untrained']:.1%} untrained, "
            f"{summary['top1_trained']:.1%} trained (queries: {gallery.name})."
        )
    lines.append(
        f"Time: {summary['seconds']:.0f} s on {summary['machine']['device']}, of which validation "
        f"{summary['seconds_validation']:.1f}, grouping {summary['seconds_grouping']:.1f}, policy "
        f"{summary['seconds_policy']:.1f}: {summary['policy_cost']:.1%} of the run."
    )
    if env.data.skipped:
        lines.append(f"Skipped files: {len(env.data.skipped)}, the first {env.data.skipped[0]}.")
    lines.append(f"Files: {summary['folder']} (metrics.csv, summary.json, pictures, TensorBoard, checkpoint).")
    return "\n".join(lines)


def _entropy(probabilities: np.ndarray) -> float:
    """Of a distribution over groups, in nats."""
    positive = probabilities[probabilities > 0]
    return float(-(positive * np.log(positive)).sum())


def _as_json(config: Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _check_same_job(config: Config, saved: dict[str, Any], folder: Path) -> None:
    """Refuse to continue a run with other options than it was started with."""
    for name, value in _as_json(config).items():
        if name not in _TO_CONTINUE and value != saved.get(name):
            raise permenv.CheckpointError(
                f"the run in {folder} was started with {name}={saved.get(name)!r}, not {value!r}: "
                f"resume it with that value, or start another run with --out"
            )


def _policy_in(path: Path) -> dict[str, Any]:
    """The state of the REINFORCE policy in a run's checkpoint."""
    state = checkpoint.read(path).get("agent", {})
    if state.get("signature", {}).get("agent") != "Reinforce":
        raise permenv.CheckpointError(f"{path} holds no REINFORCE policy: name {runs.CHECKPOINT} of such a run")
    return state


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (
        permenv.ConfigurationError,
        permenv.DataError,
        permenv.CheckpointError,
        runs.RunFolderError,
    ) as error:
        sys.exit(f"error: {error}")
