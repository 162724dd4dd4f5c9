"""Progress bars: in a terminal and in a notebook, none in a log file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")


def progress_bar(
    items: Iterable[T] | None = None, *, total: int | None = None, label: str, unit: str, show: bool = True
) -> tqdm[T]:
    """Return a bar of tqdm, to iterate over or to update.

    Args:
        items: What to iterate over, if anything.
        total: Their number, where it is not their length.
        label: What stands before the bar.
        unit: What is counted, in the singular.
        show: False for no bar anywhere.
    """
    disable: bool | None = not show
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm
    else:
        from tqdm import tqdm

        disable = disable or None  # None: unless stderr is a terminal
    return tqdm(items, total=total, desc=label, unit=unit, disable=disable)
