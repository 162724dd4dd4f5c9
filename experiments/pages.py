"""Write the tables of the pages anew from the files in `experiments/results`.

    python experiments/pages.py

A page says with a comment, `<!-- figure-4.json -->`, where a table stands that the command of that file prints, or
`<!-- table-f1.json 2 -->` where it prints several. So a page shows what the file holds, whose command is in the page as
well. What stands between the tables is written by hand, and is to be read again whenever one changes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import leaderboard
from experiments.common.machine import ROOT
from experiments.common.script import run_script
from experiments.paper import (
    figure_4,
    figure_6,
    figure_c1,
    figure_d1,
    figure_h1,
    figures_g1_g2,
    table_5_figure_5,
    table_f1,
)
from experiments.studies import conditions, curricula, downstream, features, headroom, nano, noise, within_run
from permenv import DataError
from permenv.atomic import write_bytes

RESULTS = ROOT / "experiments" / "results"
PAGES = tuple(
    ROOT / page for page in ("docs/results.md", "experiments/paper/README.md", "experiments/results/README.md")
)
IN_WORDS: Mapping[str, Callable[[dict[str, Any]], str]] = MappingProxyType(
    {
        "conditions": conditions.in_words,
        "conditions-images": conditions.in_words,
        "curricula": curricula.in_words,
        "downstream": downstream.in_words,
        "features": features.in_words,
        "figure-4": figure_4.in_words,
        "figure-6": figure_6.in_words,
        "figure-c1": figure_c1.in_words,
        "figure-d1": figure_d1.in_words,
        "figure-h1": figure_h1.in_words,
        "figures-g1-g2": figures_g1_g2.in_words,
        "headroom": headroom.in_words,
        "leaderboard": leaderboard.in_words,
        "nano": nano.in_words,
        "nano-rates": nano.in_words,
        "noise": noise.in_words,
        "table-5-figure-5": table_5_figure_5.in_words,
        "table-f1": table_f1.in_words,
        "table-f1-learned": table_f1.in_words,
        "within-run": within_run.in_words,
    }
)
"""By name of a file without its ending, what its command prints of it."""
_MARKED = re.compile(r"(<!-- (?P<file>[\w.-]+)\.json(?: (?P<number>\d+))? -->\n)(?P<table>(?:\|.*\n)*)")
_TABLE = re.compile(r"(?:^\|.*\n?)+", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The options."""

    pages: tuple[Path, ...] = PAGES
    """Which pages."""


def main(config: Config) -> None:
    """Write the pages.

    Raises:
        DataError: If a page names a file that is not here, or a table that its command does not print.
    """
    for page in config.pages:
        old = page.read_text(encoding="utf-8")
        new = with_tables(old)
        if new != old:
            write_bytes(page, new.encode())
        print(f"{page}: {'written anew' if new != old else 'nothing has changed'}")


def with_tables(text: str) -> str:
    """Return a page with its marked tables as the files have them.

    Raises:
        DataError: If it names a file that is not here, or a table that its command does not print.
    """

    def table(found: re.Match[str]) -> str:
        tables = tables_of(found["file"])
        number = int(found["number"] or 1)
        if not 1 <= number <= len(tables):
            raise DataError(f"{found['file']}.json has {len(tables)} tables, and none of number {number}")
        return found[1] + tables[number - 1]

    return _MARKED.sub(table, text)


def tables_of(name: str) -> list[str]:
    """Return the Markdown tables that the command of a file prints of it.

    Raises:
        DataError: If there is no such file, or it is not in `IN_WORDS`.
    """
    file = RESULTS / f"{name}.json"
    if name not in IN_WORDS or not file.is_file():
        raise DataError(
            f"a page shows a table of {file.name}, which is not in {RESULTS} or not in IN_WORDS: remove it there"
        )
    words = IN_WORDS[name](json.loads(file.read_text(encoding="utf-8")))
    return [found.rstrip("\n") + "\n" for found in _TABLE.findall(words)]


if __name__ == "__main__":
    run_script(main, Config, __doc__)
