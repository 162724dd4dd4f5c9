"""A training run, whichever algorithm drives it: its options, its environment, and everything that it leaves behind.

A job's script extends `Config`, builds an algorithm for a `Recorder`'s spaces, and lets it act there to the end:

```python
with job.Recorder(config) as run:
    agent = ...
    run.begin(agent.state_dict)
    observation, _ = run.reset()
    while not run.over:
        observation, reward, terminated, truncated, info = run.step(agent.act(observation))
        ...  # learn
        run.checkpoint()
    summary = run.finish()
```

What the run folder holds is in `experiments/runs.py`.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import gymnasium as gym
import numpy as np
from tqdm import tqdm

import permenv
from experiments import runs
from permenv import PermShuffleEnv, StillImages, VideoClips, checkpoint, render
from permenv.data import files
from permenv.data.splits import official_split
from permenv.evaluation import nearest_neighbour_accuracy, pool_features, spread_frames
from permenv.permutations import hamming_statistics

_MOST_EVALUATED = 10_000  # images on each side of the nearest-neighbour search
_FRAMES_A_CLIP = 10  # of them, where clips are searched (section 4.1)

log = logging.getLogger("permenv")

ERRORS = (permenv.ConfigurationError, permenv.DataError, permenv.CheckpointError, runs.RunFolderError)
"""What a script shows as one line: each names the value, the place and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options that every training job has."""

    may_change: ClassVar[tuple[str, ...]] = ("updates", "device", "out", "resume")
    """Options that may differ when a run is resumed."""

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
    seed: int = 0
    """Decides the run."""
    device: str = "auto"
    """auto, cpu or cuda."""
    out: Path | None = None
    """Run folder; runs/TASK-ALGORITHM-seedSEED if not given."""
    resume: bool = False
    """Continue the run in `out` where its last checkpoint was written."""
    set: tuple[str, ...] = ()
    """Any other number of permenv.Config, as NAME=VALUE: --set num_permutations=300 batch_size=32."""

    @property
    def algorithm_name(self) -> str:
        """What to call the algorithm in the folder's name."""
        raise NotImplementedError

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.task}-{self.algorithm_name}-seed{self.seed}"

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


class Recorder(gym.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """One training run's environment, which leaves behind all that the run folder holds.

    It does not matter who acts, nor through which wrappers above: a row needs nothing but what the environment says.
    The environment's own numbers pass through unchanged.

    Args:
        config: The job's options. They are checked, and the environment is made; nothing is written before `begin`.

    Attributes:
        world: The environment itself.
        folder: The run folder.
        saved_agent: State of the algorithm in the checkpoint of a run that is resumed, else None.
        over: Whether the run has ended.

    Raises:
        ConfigurationError, DataError, CheckpointError, RunFolderError: With the remedy.
    """

    def __init__(self, config: Config):
        _check_data(config)
        runs.keep_freed_memory()
        self.config = config
        self.folder = runs.RunFolder(config.folder, config.resume)
        self._saved = checkpoint.read(self.folder.checkpoint) if config.resume else None
        self.saved_agent = None
        if self._saved is not None:
            _check_same_job(config, self._saved["job"]["config"], self.folder.path)
            self.saved_agent = self._saved["agent"]
        env = gym.make(
            "PermShuffle-v0",
            preset=config.preset,
            task=config.task,
            images=config.images,
            videos=config.videos,
            device=config.device,
            **config.overrides(),
        )
        super().__init__(env)
        assert isinstance(env.unwrapped, PermShuffleEnv)
        self.world = env.unwrapped
        self.over = False
        self._is_due = False
        self._galleries = {task: Gallery(config, self.world, task) for task in self.world.tasks}
        self._bar: tqdm[None] | None = None

    def begin(self, agent_state: Callable[[], dict[str, Any]]) -> None:
        """Begin the run, or go back to where it was saved, and write down what is about to run.

        Args:
            agent_state: Called for every checkpoint, once the algorithm has learned from the update: returns its
                state. An algorithm with a file of its own writes it then, and returns {}.
        """
        config, world = self.config, self.world
        self._agent_state = agent_state
        if self._saved is None:
            begin = {} if config.trunk_from is None else {"trunk": config.trunk_from}
            self._observation, self._info = self.env.reset(seed=config.seed, options=begin)
            self._job: dict[str, Any] = {
                "untrained": {task: gallery.accuracy(world) for task, gallery in self._galleries.items()},
                "error_first": self._info["error"],
                "seconds": 0.0,
                "policy": 0.0,
            }
        else:
            self._observation, self._info = self.env.reset(options={"checkpoint": self.folder.checkpoint})
            self._job = self._saved["job"]
        self._saved = None
        self._job["config"] = _as_json(config)
        numbers = world.config
        self.over = self._info["diverged"] or self._info["update"] >= numbers.total_updates
        self._earlier = {name: self._job.get(name, 0.0) for name in ("validation", "grouping")}
        self.folder.start(self._job.pop("rows", []))
        _describe(config, world, self.folder, self._galleries)
        iterations = numbers.total_updates * (numbers.free_iterations + numbers.iterations_per_update)
        pause = 0.1 if sys.stderr.isatty() else 30  # seconds between two lines: a log file is not a terminal
        self._bar = tqdm(total=iterations, initial=self._info["iteration"], unit="it", mininterval=pause)
        self._start = time.perf_counter() - self._job["seconds"]
        self._leave()
        self._save()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Return where the run stands; `begin` began it, from the job's seed.

        Libraries reset when they please: Stable-Baselines3 before its first step with a seed of its own, and again
        behind the last one. Neither begins another run.
        """
        self._leave()
        return self._observation, self._info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Step the environment; where an update ends, add its row of metrics."""
        self.checkpoint()
        self._enter()
        self._observation, reward, terminated, truncated, self._info = self.env.step(action)
        info = self._info
        self.over = terminated or truncated
        assert self._bar is not None, "begin() comes first"
        if info["iteration"] > self._bar.n:
            self._bar.update(info["iteration"] - self._bar.n)
        if terminated or (info["validated"] and info["phase"] == "update"):
            self._job["seconds"] = time.perf_counter() - self._start
            for name, before in self._earlier.items():
                self._job[name] = before + self.world.seconds[name]
            self._bar.set_postfix(error=f"{info['error']:.3f}", reward=f"{float(reward):+.4f}", refresh=False)
            self.folder.append(self._row(float(reward), terminated))
            self._is_due = True
        self._leave()
        return self._observation, float(reward), terminated, truncated, info

    def checkpoint(self) -> None:
        """Write the checkpoint where an update has ended since the last one.

        To be called when the algorithm has learned from the update and not acted since: then the run resumes to the
        same numbers. It is called before the next step at the latest.
        """
        if self._is_due:
            self._enter()
            self._save()
            self._leave()

    def finish(self) -> dict[str, Any]:
        """Write the last checkpoint, summary.json and the pictures, and say how it went.

        Returns:
            What summary.json holds.
        """
        self.checkpoint()
        self._close_files()
        summary = self._sum_up()
        print(_in_words(summary, self.world, "untrained" if self.config.trunk_from is None else "with the given trunk"))
        return summary

    def close(self) -> None:
        """Close the files, the progress bar and the environment."""
        self._close_files()
        super().close()

    def _close_files(self) -> None:
        self.folder.close()
        if self._bar is not None:
            self._bar.close()

    def _save(self) -> None:
        self.folder.save(self.world, self._agent_state(), **self._job)
        self._is_due = False

    # What passes between leaving and entering is the algorithm's own time, which a row calls "policy".

    def _leave(self) -> None:
        self._left = time.perf_counter()

    def _enter(self) -> None:
        self._job["policy"] += time.perf_counter() - self._left

    def _row(self, reward: float, terminated: bool) -> dict[str, float]:
        """The metrics of the update that this step ended."""
        info = self._info
        row = {
            "update": info["update"] + int(terminated),  # one that diverged counts as begun
            "iteration": info["iteration"],
            "seconds": round(self._job["seconds"], 3),
            "loss": info["loss"],
            "error": info["error"],
            "baseline_error": info["baseline_error"],
            "reward": reward,
            "diverged": float(info["diverged"]),
        }
        observation, choices = _last_choices(self.world, terminated)
        states = observation.reshape(*choices.shape, 2)
        for task, counts, state in zip(info["task_errors"], choices, states, strict=True):
            row |= {f"{task}/{name}": value for name, value in _task_columns(info, task, counts, state).items()}
        return row

    def _sum_up(self) -> dict[str, Any]:
        """Write summary.json and the pictures."""
        world, folder, times = self.world, self.folder, self._job
        rows = folder.rows
        summary = {
            "updates": len(rows),
            "iterations": world.trainer.iteration,
            "diverged": bool(rows[-1]["diverged"]),
            "error_first": self._job["error_first"],
            "error_last": rows[-1]["error"],
            "error_best": min(row["error"] for row in rows),
            "tasks": {
                task: {
                    "error_first": world.history[task][0][1],
                    "error_last": rows[-1][f"{task}/error"],
                    "error_best": min(row[f"{task}/error"] for row in rows),
                    "chance": 1 - 1 / len(world.permutations[task]),
                    "permutations": len(world.permutations[task]),
                    "samples": len(world.validation_samples[task]),
                    "top1_untrained": self._job["untrained"][task],
                    "top1_trained": gallery.accuracy(world),
                    "queries": gallery.name,
                }
                for task, gallery in self._galleries.items()
            },
            "seconds": times["seconds"],
            "seconds_validation": times["validation"],
            "seconds_grouping": times["grouping"],
            "seconds_policy": times["policy"],
            "policy_cost": (times["validation"] + times["grouping"] + times["policy"]) / times["seconds"],
            "folder": str(folder.path),
            "machine": runs.machine(world.device),
        }
        runs.write_json(folder.path / "summary.json", summary)
        folder.picture("dashboard", world.dashboard())
        folder.picture("error", render.error_figure(runs.curves(rows)))
        for task in world.tasks:
            folder.picture(f"choices-{task}", runs.choice_figure(rows, task))
            folder.picture(f"shuffles-{task}", runs.example_figure(world, task, seed=0))
        return summary


def _last_choices(world: PermShuffleEnv, terminated: bool) -> tuple[np.ndarray, np.ndarray]:
    """ŝ on which the last update's actions were taken, and (tasks, |C|), how often they chose each group."""
    records = world.records
    if terminated:  # no validation has recorded them
        return records[-1].observation, world.choices
    return records[-2].observation, records[-1].choices


def _task_columns(info: dict[str, Any], task: str, counts: np.ndarray, state: np.ndarray) -> dict[str, float]:
    """What a row of metrics says of one task.

    Args:
        info: Of the step that ended the update.
        task: Its name.
        counts: (|C|,), how often the update's actions chose each group.
        state: (|C|, 2), its ŝ on which they were taken.

    Returns:
        loss, error, baseline_error, reward, entropy of the choices in nats, share of the actions and of Ψ that each
        group has.
    """
    shares = counts / counts.sum()
    positive = shares[shares > 0]
    return {
        "loss": info["task_losses"][task],
        "error": info["task_errors"][task],
        "baseline_error": info["task_baseline_errors"][task],
        "reward": info["task_rewards"][task],
        "entropy": float((positive * np.log(1 / positive)).sum()),
        **{f"group_{group}": float(share) for group, share in enumerate(shares)},
        **{f"size_{group}": float(share) for group, share in enumerate(state[:, 0])},
    }


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
        if name not in config.may_change and value != saved.get(name):
            raise permenv.CheckpointError(
                f"the run in {folder} was started with {name}={saved.get(name)!r}, not {value!r}: "
                f"resume it with that value, or start another run with --out"
            )
