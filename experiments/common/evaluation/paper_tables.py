"""Tables 1 to 4 of the paper: its networks and ours in the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.common.evaluation.evaluations import in_percent
from experiments.common.evaluation.paper_numbers import JIGSAW, LABELS, OPN, OURS, PAPER, RANDOM
from experiments.common.evaluation.protocols import PROTOCOLS

TABLES: Mapping[str, Sequence[str]] = {
    "Table 1": ("retrieval-videos", "retrieval-objects", "retrieval-images"),
    "Table 2": ("linear", "nonlinear"),
    "Table 3": ("actions",),
    "Table 4": ("classification", "detection", "segmentation"),
}
"""By name, its protocols."""
COUNTERPARTS = {
    "untrained": RANDOM,
    "jigsaw": JIGSAW,
    "order-prediction": OPN,
    "joint": OURS,
    "supervised": LABELS,
}
"""By network of `experiments/studies/features.py`, the paper's that it is compared with; "temporal" has none."""


def paper_table(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Return one of the paper's tables in Markdown, the paper's numbers and ours in percent.

    Args:
        name: A key of `TABLES`.
        rows: "protocol", "source" and by repetition "figures", of all networks and some protocols.
    """
    protocols = [each for each in TABLES[name] if any(row["protocol"] == each for row in rows)]
    head, cells = ["network"], {row["source"]: [row["source"]] for row in rows}
    for protocol in protocols:
        metric = PROTOCOLS[protocol].metric
        for data, networks in PAPER.get(protocol, {}).items():
            head.append(f"paper: {protocol}, {data}")
            for source, own in cells.items():
                number = networks.get(COUNTERPARTS.get(source, ""), {}).get(metric)
                own.append("" if number is None else f"{number:.1f}")
        head.append(f"ours: {protocol}")
        figures = {row["source"]: row["figures"] for row in rows if row["protocol"] == protocol}
        for source, own in cells.items():
            own.append(in_percent(figures[source], metric))
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells.values()))
