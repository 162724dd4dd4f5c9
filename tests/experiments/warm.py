"""A process that has imported everything and forks a run of a script for each line that it reads.

Starting Python with torch takes seconds, a fork milliseconds. Nothing here has started a thread, so that a fork is a
whole process. What would take most of the time of so small a run is left out of it: options are parsed once, and
pictures are drawn empty, though written all the same.

Lines of standard input are JSON. {"script": ..., "arguments": [...], "changes": {...}, "log": ...} starts a script with
these arguments, changed options and its output in a file, and is answered with the id of the process; {"wait": id} is
answered with its exit code.
"""

import dataclasses
import functools
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from matplotlib.figure import Figure

from experiments.common import options, script
from experiments.common.reports import figures
from permenv import render

SCRIPTS = ("reinforce", "sb3", "across_runs", "leaderboard", "search")
SLOW = (
    *("agents.sb3", "agents.sb3_across", "permenv.transfer.retrieval", "cv2", "sklearn.cluster", "sklearn.neighbors"),
    *("matplotlib.backends.backend_agg", "torch.utils.tensorboard", "torch._dynamo"),
)
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Answer until standard input ends."""
    scripts = {name: importlib.import_module(f"experiments.{name}") for name in SCRIPTS}
    for name in SLOW:
        importlib.import_module(name)
    for module, name in ((render, "dashboard"), *((figures, each) for each in vars(figures) if "_" in each[1:])):
        if callable(getattr(module, name)):
            setattr(module, name, lambda *_, **__: Figure(figsize=(0.1, 0.1)))
    assert threading.active_count() == 1
    threads = Path("/proc/self/task")  # those of libraries too
    assert not threads.is_dir() or len(list(threads.iterdir())) == 1, "set the environment as test_kills.py does"
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until a child is ready for them
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, status = os.waitpid(order["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        module = scripts[order["script"]]
        config = parsed(module.Config, tuple(order["arguments"]))
        child = os.fork()
        if child == 0:
            run(module, config, order)
        print(child, flush=True)


@functools.cache
def parsed(kind: type, arguments: tuple[str, ...]) -> Any:
    """Parse a command line, which takes a second."""
    return options.parse(kind, arguments=arguments)


def run(module: ModuleType, config: Any, order: dict[str, Any]) -> NoReturn:
    """Run a script as its command line would, and leave without the second that Python takes to clean up."""
    output = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number, descriptor in enumerate((os.open(os.devnull, os.O_RDONLY), output, output)):
        os.dup2(descriptor, number)
    changes = {name: Path(value) if isinstance(value, str) else value for name, value in order["changes"].items()}
    script.parse = lambda *_: dataclasses.replace(config, **changes)
    code: Any = 0
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        script.run_script(module.main, module.Config, module.__doc__)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
