"""How long it takes to start: from the command to the end of the first iteration, in a new process.

    python experiments/benchmarks/start.py --images path/to/images

prints the seconds from `import permenv` to then; `measure` runs this command and times all of it. What is read is in
the system's cache of files, and folders and embedded data are in that of permenv, because the first start does not
count.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from experiments.benchmarks.timing import time_process, wait_for
from experiments.common.options import EnvOptions
from experiments.common.script import run_script
from permenv.device import resolve_device


def main(config: EnvOptions) -> None:
    """Start, and print the seconds since the imports."""
    begin = time.perf_counter()
    config.pretraining(seed=0).iterate()
    wait_for(resolve_device(config.device))
    print(time.perf_counter() - begin)


def measure(config: EnvOptions, starts: int) -> dict[str, Any]:
    """Start in new processes, once before they are timed.

    Args:
        config: The options of the run, data included.
        starts: Starts that are timed.

    Returns:
        Medians of "seconds", "cpu_seconds" and "seconds_after_import", and what was started.
    """
    command = [sys.executable, __file__, *config.environment.arguments]
    _, *timed = [time_process(command) for _ in range(1 + starts)]
    return {
        "task": config.task,
        "data": config.data,
        "seconds": statistics.median(each.seconds for each in timed),
        "cpu_seconds": statistics.median(each.cpu_seconds for each in timed),
        "seconds_after_import": statistics.median(float(each.output.splitlines()[-1]) for each in timed),
    }


if __name__ == "__main__":
    run_script(main, EnvOptions, __doc__)
