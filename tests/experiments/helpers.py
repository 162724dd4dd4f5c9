"""What the tests of the scripts share: small options, and the rows of a run."""

import csv

import cv2
import numpy as np

from experiments import reinforce
from permenv import make_config
from tests.helpers import SMALL


def small(task="spatial", **changes):
    """Return a configuration with which an update takes a fraction of a second."""
    numbers = {name: value for name, value in SMALL.items() if name != "device"}
    return make_config("tiny", task, **{**numbers, "num_scenes": 80, "total_updates": 3, **changes})


def arguments(**changes):
    """Return the same configuration as arguments of a command line."""
    numbers = {**SMALL, "num_scenes": 80, "total_updates": 3, **changes}
    del numbers["device"]
    return [word for name, value in numbers.items() for word in (f"--env.{name.replace('_', '-')}", str(value))]


def job(out, task="spatial", env=(), **options):
    """Return options of the main job; `env` are changes of `small`."""
    return reinforce.Config(out=out, task=task, device="cpu", env=small(task, **dict(env)), **options)


def metrics(folder):
    """Return the rows of a run's metrics.csv without the seconds, which no two runs share."""
    with (folder / "metrics.csv").open() as file:
        return [{name: text for name, text in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def write_photos(folder, classes=3, each=12):
    """Write a folder of random images."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(each):
            cv2.imwrite(
                str(folder / f"class{label}" / f"{number}.jpg"), rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
            )
