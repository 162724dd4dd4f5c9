"""The animation of the README: a network learns to put the tiles of held-out images back, update by update.

    python experiments/studies/animation.py

One frame an update, of one run of the spatial task under `agents.EasiestFirst`: on the left held-out images with their
tiles shuffled, and below as the network puts them back; on the right the error so far, and which groups were chosen.
The permutations of the images stay the same. The seed decides all frames. It takes as long as the run, minutes in the
tiny preset. Writes `experiments/results/run.gif`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

import agents
from agents.rollout import rollout
from experiments.common.files import write_with
from experiments.common.options import EnvOptions, require_at_least
from experiments.common.reports.style import add_title, styled
from experiments.common.script import run_script
from permenv import PermShuffleEnv
from permenv.wrappers.base import base_env_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from permenv.render import Predictions

SAMPLES = 3
"""Held-out images that are shown."""
POLICY = "easiest-first"
_MILLISECONDS, _LAST_MILLISECONDS = 300, 4000  # how long a frame is shown, and the last one
_COLOURS = 96  # of the palette that all frames share


@dataclass(frozen=True, kw_only=True)
class Config(EnvOptions):
    """The options."""

    task: tyro.conf.Suppress[str] = "spatial"
    seed: int = 0
    """Decides the run and the permutations that are shown."""
    out: Path = Path("experiments/results/run.gif")
    """GIF file."""

    def __post_init__(self) -> None:
        """Fill in `env`, and check the seed.

        Raises:
            ConfigurationError: If an option is unknown or out of range.
        """
        super().__post_init__()
        require_at_least(self, seed=0)


def main(config: Config) -> None:
    """Train, draw and write.

    Raises:
        RuntimeError: If the run diverges before its first update has ended.
    """
    from permenv.render import to_array  # slow to import

    env = config.make()
    base_env = base_env_of(env)
    agent = agents.make(POLICY, env, seed=config.seed)
    title = f"A network learns to put shuffled tiles back ({POLICY}, {config.preset} preset, seed {config.seed})"
    frames = []
    observation, _ = env.reset(seed=config.seed)
    with tqdm(total=config.env.total_updates, unit="update") as bar:

        def draw(*_: object) -> None:
            frames.append(Image.fromarray(to_array(frame(title, base_env, config.seed))))
            bar.update(len(frames) - 1 - bar.n)

        draw()
        rollout(env, agent, observation=observation, on_update=draw)
    write_gif(frames, config.out)
    print(f"{len(frames)} frames written to {config.out}")


@styled
def frame(title: str, env: PermShuffleEnv, seed: int) -> Figure:
    """Draw a run as of its last update.

    Args:
        title: Of the frame.
        env: The environment of the run.
        seed: Draws the permutations of the images.
    """
    from matplotlib.figure import Figure  # slow to import

    from experiments.common.reports.figures import stack_choices
    from permenv.render import BLUE, draw_put_back, draw_shuffled

    total, chance = env.config.total_updates, 1 - 1 / env.config.num_permutations
    ended = [record for index, record in enumerate(env.records) if index == 0 or record.phase == "update"]
    errors = [record.errors[env.task] for record in ended]
    figure = Figure(figsize=(9.6, 4.2), dpi=100)
    add_title(figure, title)
    tiles = figure.add_gridspec(2, SAMPLES, left=0.02, right=0.52, top=0.84, bottom=0.06, wspace=0.06, hspace=0.3)
    for column, found in enumerate(_predictions(env, seed)):
        upper, lower = (figure.add_subplot(tiles[row, column]) for row in range(2))
        draw_shuffled(upper, found)
        draw_put_back(lower, found)
        right = int((found.orders[0] == found.guesses[0]).sum())
        lower.text(
            0.5,
            -0.04,
            f"{right} of {len(found.orders[0])}",
            fontsize=9,
            ha="center",
            va="top",
            transform=lower.transAxes,
        )
        if column == 0:
            upper.set_title("held-out images, shuffled")
            lower.set_title("put back by the network")
    curves = figure.add_gridspec(2, 1, left=0.59, right=0.9, top=0.84, bottom=0.12, hspace=0.35, height_ratios=(3, 2))
    upper, lower = (figure.add_subplot(curves[row]) for row in range(2))
    upper.axhline(chance, color="grey", linewidth=1, linestyle="--")
    upper.text(total + 1, chance, "chance", color="grey", fontsize=9, va="center")
    upper.plot(range(len(errors)), errors, marker=".", color=BLUE)
    beside = max(len(errors) - 1, 0.05 * total)  # the first number would be on the axis
    upper.text(beside, errors[-1] - 0.06, f"{errors[-1]:.2f}", color=BLUE, fontsize=9, ha="center", va="top")
    upper.set(title="error on held-out images", xlim=(0, total + 0.5), ylim=(0, 1.05), xticklabels=[])
    choices = np.array([record.choices[0] for record in ended])  # none before the untrained network's validation
    stack_choices(lower, range(len(ended)), choices / np.maximum(choices.sum(axis=1, keepdims=True), 1))
    lower.set(title="permutations trained on", xlabel="update", xlim=(0, total + 0.5), ylim=(0, 1), yticks=[0, 1])
    return figure


def _predictions(env: PermShuffleEnv, seed: int) -> list[Predictions]:
    """What the network predicts for each of the images that are shown."""
    from permenv.render import predict

    run, task = env.run, env.task
    labels = np.random.default_rng(seed).integers(env.config.num_permutations, size=SAMPLES)
    samples = run.held_out[task][:SAMPLES]
    network = functools.partial(run.network, task)
    return [predict(run.tasks[task], network, samples[[index]], labels[[index]]) for index in range(len(samples))]


def write_gif(frames: Sequence[Image.Image], path: Path) -> None:
    """Write frames as a GIF that repeats, atomically; all have the colours of the first and the last one."""
    palette = Image.fromarray(np.concatenate([frames[0], frames[-1]])).quantize(_COLOURS, kmeans=1)
    first, *others = (each.quantize(palette=palette, dither=Image.Dither.NONE) for each in frames)
    durations = [*[_MILLISECONDS] * len(others), _LAST_MILLISECONDS]
    write_with(
        path,
        lambda file: first.save(
            file, "gif", save_all=True, append_images=others, duration=durations, loop=0, optimize=False
        ),
    )


if __name__ == "__main__":
    run_script(main, Config, __doc__)
