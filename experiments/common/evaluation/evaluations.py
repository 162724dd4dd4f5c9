"""One evaluation of a trunk by a protocol, and the table of several."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from experiments.common.evaluation.paper_numbers import PAPER
from experiments.common.evaluation.protocols import PROTOCOLS, Data, GivenSetting, Job, resolve_setting
from experiments.common.evaluation.sources import Source
from experiments.common.reports.statistics import OF_MEANS, mean_of
from permenv import ConfigurationError, DataError


def evaluate(
    protocol: str,
    source: Source,
    data: Data,
    setting: GivenSetting,
    statistics: str,
    share: float,
    seed: int,
    device: str,
) -> dict[str, Any]:
    """Evaluate one source by one protocol.

    Returns:
        "figures" by name, None where features are not finite, and "seconds". If the evaluation diverged there are no
        metrics, and "diverged" says where: it would diverge again, and the others need not be lost with it.

    Raises:
        ConfigurationError: If the protocol does not allow the trunk.
        DataError: If data cannot be used.
    """
    start, trunk = time.perf_counter(), source.load(seed)
    measure = statistics == "measured" or (statistics == "auto" and source.is_untrained)
    metrics: Mapping[str, float | None] = {}
    diverged = None
    try:
        metrics = PROTOCOLS[protocol].run(
            Job(trunk, data, resolve_setting(setting, trunk), seed, torch.device(device), share, measure)
        )
    except FloatingPointError as error:
        diverged = str(error)
    except (ConfigurationError, DataError):
        raise
    except ValueError as error:  # a trunk that cannot be folded, or is too deep for the images
        raise ConfigurationError(f"protocol {protocol!r} of {source.name}: {error}") from error
    return {"figures": metrics, "seconds": time.perf_counter() - start, "diverged": diverged}


def in_columns(results: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return what `evaluate` returned of the repetitions of an evaluation, by name."""
    return {name: [each.get(name) for each in results] for name in ("figures", "seconds", "diverged")}


def columns_of(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Return the names of all metrics of rows, whose sources may have different ones: layers, for instance."""
    return list(dict.fromkeys(name for row in rows for metrics in row["figures"] for name in metrics))


def value_of(metrics: Mapping[str, float | None], name: str) -> float:
    """Return a metric; NaN if there is none, because features are not finite or the evaluation diverged."""
    value = metrics.get(name)
    return math.nan if value is None else value


def exit_if_diverged(rows: Sequence[dict[str, Any]]) -> None:
    """Say which evaluations diverged, when the results of all are written.

    Raises:
        SystemExit: With code 1, if one has.
    """
    found = [(row, reason) for row in rows for reason in row["diverged"] if reason is not None]
    for row, reason in found:
        print(f"diverged: {row['protocol']} of {row['source']}: {reason}", file=sys.stderr)
    if found:
        raise SystemExit(1)


def as_table(protocol: str, rows: Sequence[dict[str, Any]], data: Data, share: float) -> str:
    """Return the Markdown table of a protocol, with the paper's rows below.

    The title says on which data and at which sizes our rows were measured, and each of the paper's rows is named with
    its own data: they are the same protocol only where both agree.

    Args:
        protocol: Its name.
        rows: "source", "setting", and of each repetition "figures" and "seconds", of one or more sources.
        data: What the metrics are of.
        share: Of the protocol's iterations.
    """
    about = PROTOCOLS[protocol]
    columns = columns_of(rows) or [about.metric]
    repetitions = f", mean [{OF_MEANS}]" if len(rows[0]["figures"]) > 1 else ""
    shortened = "" if share == 1 else f", {share:.1%} of its iterations"
    lines = [
        f"**{protocol}**: {about.title} ({about.table}) on {about.on(data)}; {_settings(rows)}{shortened}; "
        f"percent{repetitions}",
        "",
        "| | " + " | ".join(columns) + " | seconds |",
        "|---" * (2 + len(columns)) + "|",
    ]
    for row in rows:
        shown = [in_percent(row["figures"], column) for column in columns]
        seconds = sum(row["seconds"]) / len(row["seconds"])
        lines.append(f"| {row['source']} | " + " | ".join(shown) + f" | {seconds:.0f} |")
    for of, networks in PAPER.get(protocol, {}).items():
        for name, numbers in networks.items():
            shown = [f"{numbers[column]:.1f}" if column in numbers else "" for column in columns]
            lines.append(f"| *{name} in the paper ({of})* | " + " | ".join(shown) + " | |")
    return "\n".join(lines)


def _settings(rows: Sequence[dict[str, Any]]) -> str:
    """Say the setting of all rows, or of each if they differ."""
    settings = {row["setting"] for row in rows}
    if len(settings) == 1:
        return f"setting {settings.pop()}"
    return "settings: " + ", ".join(f"{row['source']} {row['setting']}" for row in rows)


def in_percent(repetitions: Sequence[Mapping[str, float | None]], name: str) -> str:
    """Return a metric in percent: the mean of the repetitions and its interval, or why there is none.

    Args:
        repetitions: Metrics by name; none of one that diverged.
        name: Of the metric.
    """
    diverged = sum(not metrics for metrics in repetitions)
    if diverged:
        return "diverged" if diverged == len(repetitions) else f"{diverged} of {len(repetitions)} diverged"
    if name not in repetitions[0]:
        return ""
    values = [value_of(metrics, name) for metrics in repetitions]
    if any(math.isnan(value) for value in values):
        return "not finite"
    found = mean_of(values)
    interval = f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if len(values) > 1 else ""
    return f"{100 * found.value:.1f}{interval}"
