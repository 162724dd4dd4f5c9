"""The main job: train a network to order shuffled pieces while a policy learns which permutations to shuffle them with.

    python experiments/reinforce.py
    python experiments/reinforce.py --images path/to/images --seed 1 --out runs/mine
    python experiments/reinforce.py --task temporal --videos path/to/videos
    python experiments/reinforce.py --task spatiotemporal

Algorithm 1 and section 3.2 of Büchler, Brattoli, Ommer, "Improving Spatiotemporal Self-Supervision by Deep
Reinforcement Learning", ECCV 2018. Everything a run leaves behind is in its folder (see `experiments/runs.py`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
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
from agents import Agent, InversePolicy, RandomPolicy, Reinforce, Transition
from experiments import runs
from permenv import PermShuffleEnv, StillImages, VideoClips, checkpoint, render
from permenv.data import files
from permenv.data.splits import official_split
from permenv.evaluation import nearest_neighbour_accuracy, pool_features, spread_frames
from permenv.permutations import hamming_statistics

_MOST_EVALUATED = 10_000  # images on each side of the nearest-neighbour search
_FRAMES_A_CLIP = 10  # of them, where clips are searched (section 4.1)
_TO_CONTINUE = ("updates", "device", "out", "resume", "compare_random")  # may differ when a run is resumed

log = logging.getLogger("permenv")


@dataclass(frozen=True)
class Config:
    """The main job's options."""

    preset: str = "tiny"
    """Numbers to start from: "tiny" (minutes on two CPU cores) or "paper" (the paper's, for a GPU)."""
    task: Literal["spatial", "temporal", "spatiotemporal"] = "spatial"
    """What is shuffled: "spatial", the 3 × 3 tiles of an image; "temporal", 8 frames of a video; "spatiotemporal",
    both, on one shared trunk."""
    images: Path | None = None
    """Folder of images (ImageFolder layout); the embedded scenes if none is given."""
    eval_images: Path | None = None
    """Labelled images that query the nearest-neighbour search; by default the folder `val` or `test` beside an
    `images` folder called `train`, else the held-out images (fresh scenes for the embedded data)."""
    videos: Path | None = None
    """Folder of videos, or of folders of frames; the embedded clips if none is given. The nearest-neighbour search is
    queried by the test list of the split, else by the held-out clips (fresh clips for the embedded data)."""
    split: int | None = None
    """Official split of the videos: by default the first where its lists lie beside them, 0 for all clips."""
    trunk_from: Path | None = None
    """Checkpoint of a run, of whatever task, with whose trunk to begin: the paper's S&T is a spatial run and then a
    temporal one with its trunk."""
    updates: int | None = None
    """T, updates of the policy; the preset's if not given."""
    free_iterations: int | None = None
    """SGD iterations between updates, with the policy fixed; the preset's if not given."""
    policy: Literal["reinforce", "random", "inverse"] = "reinforce"
    """Who chooses: REINFORCE, uniformly random permutations, or the inverse of a policy (appendix F)."""
    policy_from: Path | None = None
    """Checkpoint of a run whose REINFORCE policy to start from; with `--policy inverse`, the trained policy to
    invert, where otherwise a policy is inverted that learns meanwhile."""
    credit: Literal["own", "sum"] = "own"
    """Which gain a joint task's policy credits the choices of one task with: its own, or the sum of both."""
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
        options = {"total_updates": self.updates, "free_iterations": self.free_iterations, "split": self.split}
        return values | {name: value for name, value in options.items() if value is not None}


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
    for ours, theirs in ((summary, baseline), *zip(summary["tasks"].values(), baseline["tasks"].values(), strict=True)):
        ours["relative_accuracy"] = _relative_accuracy(ours, theirs)
    runs.write_json(folder.path / "summary.json", summary)
    curves = {
        f"{task}, {name}": curve
        for name, run in ((config.policy, config), ("random", rival))
        for task, curve in runs.curves(runs.read_rows(run.folder)).items()
    }
    folder.picture("error", render.error_figure(curves))
    for task, ours in summary["tasks"].items():
        relative = ours["relative_accuracy"]
        in_words = "undefined, random's is 0" if relative is None else f"{relative:.1%} of random's"
        print(
            f"Against random permutations, same seed, {task}: error {ours['error_last']:.3f} to "
            f"{baseline['tasks'][task]['error_last']:.3f}, accuracy {in_words} (one seed: compare several before you "
            f"conclude)."
        )
    return summary


def _relative_accuracy(ours: dict[str, Any], theirs: dict[str, Any]) -> float | None:
    """Final accuracy relative to that of another run; None where that is 0."""
    accuracy = 1 - theirs["error_last"]
    return (1 - ours["error_last"]) / accuracy if accuracy else None


def train(config: Config) -> dict[str, Any]:
    """Train one run to its end, or go on with it, and sum it up in its folder."""
    _check_data(config)
    runs.keep_freed_memory()
    folder = runs.RunFolder(config.folder, config.resume)
    saved = checkpoint.read(folder.checkpoint) if config.resume else None
    if saved is not None:
        _check_same_job(config, saved["job"]["config"], folder.path)
    wrapped = gym.make(
        "PermShuffle-v0",
        preset=config.preset,
        task=config.task,
        images=config.images,
        videos=config.videos,
        device=config.device,
        **config.overrides(),
    )
    env = wrapped.unwrapped
    assert isinstance(env, PermShuffleEnv)
    agent = make_agent(config, env)
    galleries = {task: Gallery(config, env, task) for task in env.tasks}
    if saved is None:
        begin = {} if config.trunk_from is None else {"trunk": config.trunk_from}
        observation, info = wrapped.reset(seed=config.seed, options=begin)
        untrained = {task: gallery.accuracy(env) for task, gallery in galleries.items()}
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
    _describe(config, env, folder, galleries)
    folder.save(env, agent, **job)
    for row in _run(wrapped, agent, observation, info, job):
        folder.append(row)
        folder.save(env, agent, **job)
    folder.close()
    summary = _sum_up(env, folder, job, galleries)
    print(_in_words(summary, env, "untrained" if config.trunk_from is None else "with the given trunk"))
    return summary


def make_agent(config: Config, env: PermShuffleEnv) -> Agent:
    """Build the policy that the options name."""
    spaces = env.observation_space, env.action_space
    # not the environment's own seed: two generators of one seed draw the same numbers
    seed, inner_seed = (int(word) for word in np.random.SeedSequence(config.seed).generate_state(2))
    if config.policy == "random":
        return RandomPolicy(*spaces, seed=seed)
    given = Reinforce(*spaces, seed=inner_seed, credit=config.credit)
    if config.policy_from is not None:
        try:
            given.load_state_dict(_policy_in(config.policy_from))
        except ValueError as error:
            raise permenv.CheckpointError(f"{config.policy_from}: {error}") from error
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
    tasks = np.arange(len(world.tasks))
    chosen = np.zeros((len(tasks), config.num_groups))
    overhead = {name: job.get(name, 0.0) for name in ("validation", "grouping")}
    start, policy_seconds = time.perf_counter() - job["seconds"], job["policy"]
    pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines: a log file is not a terminal
    with tqdm(total=iterations, initial=info["iteration"], unit="it", mininterval=pause) as bar:
        while not over:
            before = time.perf_counter()
            action = agent.act(observation)
            policy_seconds += time.perf_counter() - before
            observation_next, gain, terminated, truncated, info = env.step(action)
            over = terminated or truncated
            counts = info["phase"] == "update" or terminated
            if counts:
                chosen[tasks, action] += 1
            row: dict[str, float] = {}
            if counts and (info["validated"] or terminated):
                row = _task_columns(info, chosen, agent.probabilities(observation), observation)
                chosen[:] = 0
            before = time.perf_counter()
            agent.learn(Transition(observation, action, gain, observation_next, terminated, truncated, info))
            policy_seconds += time.perf_counter() - before
            observation = observation_next
            bar.update(info["iteration"] - bar.n)
            if not row:
                continue
            job["seconds"], job["policy"] = time.perf_counter() - start, policy_seconds
            for name in overhead:
                job[name] = overhead[name] + world.seconds[name]
            bar.set_postfix(error=f"{info['error']:.3f}", reward=f"{float(gain):+.4f}", refresh=False)
            yield {
                "update": info["update"] + int(terminated),  # one that diverged counts as begun
                "iteration": info["iteration"],
                "seconds": round(job["seconds"], 3),
                "loss": info["loss"],
                "error": info["error"],
                "baseline_error": info["baseline_error"],
                "reward": float(gain),
                "diverged": float(info["diverged"]),
                **row,
            }


def _task_columns(
    info: dict[str, Any], chosen: np.ndarray, probabilities: np.ndarray, observation: np.ndarray
) -> dict[str, float]:
    """What a row of metrics says of each task.

    Args:
        info: Of the step that ended the update.
        chosen: (tasks, |C|), how often the update's actions chose each group.
        probabilities: π(. | ŝ) that drew them.
        observation: ŝ on which they were taken.

    Returns:
        By "TASK/column": loss, error, baseline_error, reward, entropy over groups in nats, share of the actions and of
        Ψ that each group has.
    """
    row: dict[str, float] = {}
    states, policies = observation.reshape(*chosen.shape, 2), probabilities.reshape(chosen.shape)
    for task, counts, policy, state in zip(info["task_errors"], chosen, policies, states, strict=True):
        positive = policy[policy > 0]
        columns = {
            "loss": info["task_losses"][task],
            "error": info["task_errors"][task],
            "baseline_error": info["task_baseline_errors"][task],
            "reward": info["task_rewards"][task],
            "entropy": float(-(positive * np.log(positive)).sum()),
            **{f"group_{group}": float(share) for group, share in enumerate(counts / counts.sum())},
            **{f"size_{group}": float(share) for group, share in enumerate(state[:, 0])},
        }
        row |= {f"{task}/{name}": value for name, value in columns.items()}
    return row


class Gallery:
    """A task's labelled images for the nearest-neighbour search: held-out queries, training images as the database.

    Of clips, a few frames each stand for it, every one a query or an entry of the database.

    Args:
        config: The job's options.
        env: The environment; the images or clips that it trains on are searched.
        task: Which of its tasks.
    """

    def __init__(self, config: Config, env: PermShuffleEnv, task: str):
        self.task = task
        queries = _query_images(config, env) if task == "spatial" else _query_clips(config, env)
        self.queries: StillImages | VideoClips = queries[0]
        self.name = queries[1]

    def accuracy(self, env: PermShuffleEnv) -> float | None:
        """Top-1 of pool5 features by the network as it is now (Table 1).

        Returns:
            None where there are no labels, or the weights are so bad that the features are not finite.
        """
        data, held_out = env.tasks[self.task].data, env.validation_samples[self.task]
        queried = np.unique(held_out[:, 0]) if self.queries is data else np.arange(len(self.queries))
        entries, database = _labelled(data, env.tasks[self.task].trainable(held_out))
        images, queries = _labelled(self.queries, queried)
        if not len(database) or not len(queries):
            return None
        query_features, query_classes = _features(env, images, queries)
        features, classes = _features(env, entries, database)
        if not (np.isfinite(query_features).all() and np.isfinite(features).all()):
            return None
        return nearest_neighbour_accuracy(query_features, query_classes, features, classes)[1]


def _features(env: PermShuffleEnv, data: StillImages, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features and class names of some images; names, for two folders may number their classes differently."""
    assert data.labels is not None
    features = pool_features(env.trainer.evaluated, data, indices, env.device)
    return features, np.array([data.classes[label] for label in data.labels[indices]])


def _query_images(config: Config, env: PermShuffleEnv) -> tuple[StillImages | VideoClips, str]:
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
    return env.tasks["spatial"].data, "the held-out images"


def _query_clips(config: Config, env: PermShuffleEnv) -> tuple[StillImages | VideoClips, str]:
    """The clips that query, and what to call them."""
    numbers = env.config
    if config.videos is None:
        count, frames = max(1, numbers.num_clips // 4), min(_FRAMES_A_CLIP, numbers.clip_frames)
        return permenv.embedded_clips(count, frames, numbers.frame_size, numbers.scenes_seed + 1), "fresh clips"
    trained = env.tasks["temporal"].data
    assert isinstance(trained, VideoClips)
    held_out = trained, "the held-out clips"
    if numbers.split == 0 or not official_split(config.videos.expanduser(), numbers.split or 1, trained.names):
        return held_out
    try:
        clips = permenv.video_folder(
            config.videos, numbers.frame_size, _FRAMES_A_CLIP, split=numbers.split, part="test"
        )
    except permenv.DataError as fault:  # training needs no test clips: it goes on without them
        log.warning("the held-out clips query, for the test clips cannot: %s", fault)
        return held_out
    return clips.to(env.device), clips.name


def _labelled(data: StillImages | VideoClips, among: np.ndarray) -> tuple[StillImages, np.ndarray]:
    """Images, and indices of labelled ones of them, at most `_MOST_EVALUATED`, evenly spread.

    Args:
        data: Images or clips.
        among: (N,) int, which images or clips.
    """
    if isinstance(data, VideoClips):
        images, indices = data.frames, spread_frames(data, among, _FRAMES_A_CLIP)
    else:
        images, indices = data, among
    if images.labels is None:
        return images, np.empty(0, dtype=np.int64)
    indices = indices[images.labels[indices] >= 0]
    count = min(len(indices), _MOST_EVALUATED)
    return images, indices[np.arange(count) * len(indices) // max(1, count)]


def _describe(config: Config, env: PermShuffleEnv, folder: runs.RunFolder, galleries: dict[str, Gallery]) -> None:
    """Write down what is about to run: config.json and each task's Ψ."""
    for task, permutations in env.permutations.items():
        folder.array(f"permutations-{task}", permutations)
    runs.write_json(
        folder.path / "config.json",
        {
            "job": _as_json(config),
            "environment": env.config.as_dict(),
            "permutations": {
                task: dataclasses.asdict(hamming_statistics(psi)) for task, psi in env.permutations.items()
            },
            "data": {
                task: {
                    "name": each.data.name,
                    **_sizes(each.data),
                    "fingerprint": each.data.fingerprint,
                    "skipped": len(each.data.skipped),
                    "held_out": len(np.unique(env.validation_samples[task][:, 0])),
                    "queries": galleries[task].name,
                }
                for task, each in env.tasks.items()
            },
            "machine": runs.machine(env.device),
        },
    )


def _sizes(data: StillImages | VideoClips) -> dict[str, int]:
    if isinstance(data, VideoClips):
        return {"clips": len(data), "frames": len(data.frames), "irregular": len(data.irregular)}
    return {"images": len(data)}


def _sum_up(
    env: PermShuffleEnv, folder: runs.RunFolder, job: dict[str, Any], galleries: dict[str, Gallery]
) -> dict[str, Any]:
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
        "tasks": {
            task: {
                "error_first": env.history[task][0][1],
                "error_last": rows[-1][f"{task}/error"],
                "error_best": min(row[f"{task}/error"] for row in rows),
                "chance": 1 - 1 / len(env.permutations[task]),
                "permutations": len(env.permutations[task]),
                "samples": len(env.validation_samples[task]),
                "top1_untrained": job["untrained"][task],
                "top1_trained": gallery.accuracy(env),
                "queries": gallery.name,
            }
            for task, gallery in galleries.items()
        },
        "seconds": job["seconds"],
        "seconds_validation": job["validation"],
        "seconds_grouping": job["grouping"],
        "seconds_policy": job["policy"],
        "policy_cost": overhead / job["seconds"],
        "folder": str(folder.path),
        "machine": runs.machine(env.device),
    }
    runs.write_json(folder.path / "summary.json", summary)
    folder.picture("error", render.error_figure(runs.curves(rows)))
    for task in env.tasks:
        folder.picture(f"choices-{task}", runs.choice_figure(rows, task))
        folder.picture(f"shuffles-{task}", runs.example_figure(env, task, seed=0))
    return summary


def _in_words(summary: dict[str, Any], env: PermShuffleEnv, start: str) -> str:
    """The few lines a run ends with.

    Args:
        summary: What summary.json holds.
        env: The environment at the end.
        start: What to call the network that the run began with.
    """
    lines = []
    for task, its in summary["tasks"].items():
        lines.append(
            f"Error, {task}: {its['error_first']:.3f} {start}, {its['error_last']:.3f} after "
            f"{summary['iterations']} iterations and {summary['updates']} updates ({its['permutations']} permutations "
            f"of {its['samples']} held-out samples; chance {its['chance']:.3f})."
        )
    if summary["diverged"]:
        lines.append("The loss was not finite: the run ended early. Lower learning_rate (--set learning_rate=...).")
    for task, its in summary["tasks"].items():
        if its["top1_untrained"] is None:
            remedy = " (see --eval-images)" if task == "spatial" else ""
            lines.append(f"Nearest neighbours, {task}: no labels, so there is nothing to evaluate{remedy}.")
        elif its["top1_trained"] is None:
            lines.append(f"Nearest neighbours, {task}: the features are not finite any more.")
        else:
            lines.append(
                f"Nearest neighbour Top-1 of pool5 features, {task}: {its['top1_untrained']:.1%} {start}, "
                f"{its['top1_trained']:.1%} trained (queries: {its['queries']})."
            )
    lines.append(
        f"Time: {summary['seconds']:.0f} s on {summary['machine']['device']}, of which validation "
        f"{summary['seconds_validation']:.1f}, grouping {summary['seconds_grouping']:.1f}, policy "
        f"{summary['seconds_policy']:.1f}: {summary['policy_cost']:.1%} of the run."
    )
    for task, each in env.tasks.items():
        if each.data.skipped:
            lines.append(f"Skipped, {task}: {len(each.data.skipped)}: {files.summary(each.data.skipped)}.")
        if isinstance(each.data, VideoClips) and each.data.irregular:
            lines.append(
                f"Used but lacking frames, {task}: {len(each.data.irregular)}: {files.summary(each.data.irregular)}."
            )
    lines.append(f"Files: {summary['folder']} (metrics.csv, summary.json, pictures, TensorBoard, checkpoint).")
    return "\n".join(lines)


def _check_data(config: Config) -> None:
    """Refuse options of data that the run does not have."""
    if config.eval_images is not None and config.task == "temporal":
        raise permenv.ConfigurationError(
            f"--eval-images {config.eval_images}: task 'temporal' shuffles frames, and clips query; leave it out"
        )
    if config.split is not None and config.videos is None:
        raise permenv.ConfigurationError(
            f"--split {config.split}: the embedded data has no official splits; name a folder with --videos"
        )


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
