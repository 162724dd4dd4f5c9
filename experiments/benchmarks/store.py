"""What the store of images costs: to build it, to start from it, and to read from it.

    python experiments/benchmarks/store.py --folder /path/to/a/large/disk --images path/to/photos

- build: files a second, of a folder of many small distinct JPEG files, a thousand in a folder.
- start: seconds from the command to the first iteration of training on that folder, with the store built and the
  system's cache of files warm; of these, the seconds after `import permenv`. The first start after the build reads the
  files again that were written in its last two seconds, so it is not counted.
- read: images a second of random mini-batches of 255 × 255 pixels, kept as JPEG, and the cores for 5,120 of them.

Seconds are of the clock; CPU seconds, of all threads, do not depend on what else the machine does. All images are kept
as JPEG here, as those of large sets are. If `--files` would take more than half of the disk's free room, fewer are
made. The folder is made if need be and is not removed: a later run uses its files again.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import permenv
from experiments.benchmarks.timing import time_process
from experiments.common.files import write_json
from experiments.common.machine import machine
from experiments.common.reports.report import origin
from experiments.common.script import run_script
from permenv.data import store, stored
from permenv.data.embedded import embedded_scenes

_BYTES_OF_FILE = 8192  # a block of the file, its inode, and what is kept of it
_PER_FOLDER = 1000
_PHOTO_SIZE, _BATCH, _WANTED = 255, 128, 5120  # the paper's images and mini-batch; images a second that an H100 takes
_START = """
import time
from permenv.data import store
from permenv import Pretraining
store.RAW_BYTES = 0
begin = time.perf_counter()
run = Pretraining.create("nano", images={folder!r}, seed=0, device="cpu")
run.iterate()
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The benchmark's options."""

    folder: Path = Path("runs/store")
    """Where the files are made, and the cache of this benchmark; on a large disk."""
    files: int = 1_000_000
    """How many."""
    images: Path | None = None
    """Images to measure reading with; by default embedded scenes."""
    num_images: int = 512
    """How many of them."""
    starts: int = 3
    """Starts that are timed; the median counts."""
    batches: int = 40
    """Mini-batches that are read."""
    out: Path = Path("experiments/results/store.json")
    """JSON file."""


def main(config: Config) -> dict[str, Any]:
    """Measure, print and write.

    Returns:
        What the JSON file holds.
    """
    os.environ["PERMENV_CACHE"] = str(config.folder / "cache")
    raw_bytes, store.RAW_BYTES = store.RAW_BYTES, 0
    try:
        many = _make_files(config)
        report: dict[str, Any] = {
            **origin(),
            "machine": machine(torch.device("cpu")),
            "files": many,
            "build": _build(config, many),
            "start": _starts(config),
            "read": _read(config),
        }
    finally:
        store.RAW_BYTES = raw_bytes
    for name in ("build", "start", "read"):
        print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in report[name].items()), flush=True)
    write_json(config.out, report)
    print(f"written to {config.out}")
    return report


def _make_files(config: Config) -> int:
    """Make distinct small JPEG files; return how many there are."""
    folder = config.folder / "files"
    folder.mkdir(parents=True, exist_ok=True)
    room = os.statvfs(folder)
    there = sum(len(files) for _, _, files in os.walk(folder))
    fit = there + min(room.f_bavail * room.f_frsize // _BYTES_OF_FILE, room.f_favail) // 2
    count = min(config.files, fit)
    if count < config.files:
        print(f"only {count} files fit on the disk of {folder}", flush=True)
    content = io.BytesIO()
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    coarse.resize((64, 48), Image.Resampling.BICUBIC).save(content, "JPEG", quality=85)
    start, rest = content.getvalue()[:2], content.getvalue()[2:]
    for number in tqdm(range(there, count), desc="files", disable=None):
        subfolder = folder / f"{number // _PER_FOLDER:04}"
        if number % _PER_FOLDER == 0:
            subfolder.mkdir(exist_ok=True)
        comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")  # a comment, by which they differ
        (subfolder / f"{number:07}.jpg").write_bytes(start + comment + rest)
    return max(there, count)


def _build(config: Config, count: int) -> dict[str, float]:
    """Build the store anew."""
    shutil.rmtree(config.folder / "cache", ignore_errors=True)
    size = permenv.make_config("nano").image_size
    seconds, cpu = _timed(lambda: permenv.image_folder(config.folder / "files", size))
    return {
        "image_size": size,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "files_per_second": count / seconds,
        "files_per_cpu_second": count / cpu,
        "kept_bytes_per_file": _kept_bytes(config) / count,
    }


def _starts(config: Config) -> dict[str, float]:
    """Start training in new processes, once before they are timed."""
    script = _START.format(folder=str(config.folder / "files"))
    seconds, cpu, after = [], [], []
    for _ in range(1 + config.starts):
        process = time_process([sys.executable, "-c", script])
        seconds.append(process.seconds)
        cpu.append(process.cpu_seconds)
        after.append(float(process.output))
    return {
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu[1:]),
        "seconds_after_import": statistics.median(after[1:]),
    }


def _read(config: Config) -> dict[str, float]:
    """Read random mini-batches of photos."""
    folder = config.folder / "photos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if config.images is None:
        for number, scene in enumerate(np.asarray(embedded_scenes(config.num_images, _PHOTO_SIZE).pixels)):
            Image.fromarray(scene).save(folder / f"{number}.png")
    else:
        paths = sorted(path for path in config.images.rglob("*") if path.is_file())
        for number, path in enumerate(itertools.islice(paths, 0, None, max(1, len(paths) // config.num_images))):
            (folder / f"{number}{path.suffix}").symlink_to(path.resolve())
    before = _kept_bytes(config)
    images = permenv.image_folder(folder, _PHOTO_SIZE)
    kept_bytes = _kept_bytes(config) - before
    rng = np.random.default_rng(0)
    images.take(np.arange(len(images)), torch.device("cpu"))  # checks all checksums
    batches = [rng.integers(len(images), size=_BATCH) for _ in range(config.batches)]
    seconds, cpu = _timed(lambda: [images.take(batch, torch.device("cpu")) for batch in batches])
    count = len(batches) * _BATCH
    return {
        "images": len(images),
        "image_size": _PHOTO_SIZE,
        "kept_bytes_per_image": kept_bytes / len(images),
        "threads": min(stored.DECODERS, len(os.sched_getaffinity(0))),
        "images_per_second": count / seconds,
        "images_per_cpu_second": count / cpu,
        f"cores_for_{_WANTED}_per_second": _WANTED * cpu / count,
    }


def _kept_bytes(config: Config) -> int:
    return sum(path.stat().st_size for path in (config.folder / "cache").glob("images-*/*"))


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds and CPU seconds of all threads."""
    cpu, begin = time.process_time(), time.perf_counter()
    work()
    return time.perf_counter() - begin, time.process_time() - cpu


if __name__ == "__main__":
    run_script(main, Config, __doc__)
