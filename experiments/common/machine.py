"""The machine and the commit that a number was made with, and the memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.common.files import flat

log = logging.getLogger("permenv")

ROOT = Path(__file__).parents[2]
"""The checkout that the scripts are in."""

_LIBRARIES = (
    "permenv",
    "torch",
    "gymnasium",
    "numpy",
    "scikit-learn",
    "opencv-python-headless",
    "pillow",
    "simplejpeg",
    "stable-baselines3",
)


def machine(device: torch.device, *, threads: int | None = None) -> dict[str, Any]:
    """Describe where a number was measured.

    Args:
        device: Where the network was.
        threads: Of each process; by default as many as torch uses in this one.

    Returns:
        Device, processor, cores, threads, versions of Python and of the libraries.
    """
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads() if threads is None else threads,
        "python": platform.python_version(),
        "versions": versions(),
    }


def note_machine(machines: list[dict[str, Any]], now: dict[str, Any], update: int, job: Path) -> None:
    """Add this machine and checkout to those of a job if they differ from the last; warn if the machine differs.

    Args:
        machines: Those of the job so far, each with the updates before it; changed in place.
        now: This one, see `machine`.
        update: Updates so far.
        job: Its folder, for the warning.
    """
    if machines:
        before, here = flat(machines[-1]["machine"]), flat(now)
        changed = [name for name in here if here[name] != before.get(name)]
        if changed:
            changes = "; ".join(f"{name} {here[name]}, before {before.get(name)}" for name in changed)
            log.warning("%s goes on elsewhere, which may change its numbers: %s", job, changes)
        elif machines[-1].get("checkout") == checkout():
            return
    machines.append({"update": update, "machine": now, "checkout": checkout()})


def machines_of(machines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a file says of them: where the job ran last, and everywhere."""
    return {"machine": machines[-1]["machine"], "machines": machines}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that numbers depend on."""
    return {name: version(name) for name in _LIBRARIES}


@functools.cache
def checkout(folder: Path = ROOT) -> dict[str, Any] | None:
    """Return the commit of a checkout when this process first asked.

    Args:
        folder: The top of the checkout.

    Returns:
        "commit", in full, and "changed": whether tracked files differ from it. None where git knows of none.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    # the folder of an installed package may lie in the checkout of something else
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    commit, *changed = done.stdout.strip().split("-")
    return {"commit": commit, "changed": bool(changed)}


def keep_freed_memory() -> None:
    """Configure glibc to keep freed memory for this process; without glibc, do nothing.

    By default glibc returns large blocks to the system at once. Every iteration on a CPU then has to fetch fresh
    pages, and a larger batch needs more of them.
    """
    most_mapped_blocks, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(most_mapped_blocks, 0)
        mallopt(trim_threshold, -1)  # never


def _processor() -> str:
    """Return the processor's name and the instruction sets that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", "").split())
    wide = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    return " ".join([fields.get("model name", platform.machine()), *wide])
