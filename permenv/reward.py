"""The reward: how far the error stays below its own trend (Eq. 7, appendix E)."""

from __future__ import annotations

from collections.abc import Sequence


def extrapolate(history: Sequence[tuple[int, float]], iteration: int) -> float:
    """Read the line through the last two validations at an iteration: of errors, the baseline E^BL (appendix E).

    With u the number of SGD iterations, unequal distances between validations are right too; equal distances give
    E^BL_{t+1} = 2 E_t - E_{t-1}. Before a second validation exists the line is flat. Cross-entropies have such a line
    as well.

    Args:
        history: (u, E) of the validations so far, u ascending, at least one. Where the last two have the same u, the
            line is flat.
        iteration: u at which to read the line.

    Returns:
        The value of the line, E^BL of errors. It is not clipped to [0, 1].

    Raises:
        ValueError: If there is no validation yet.
    """
    if not history:
        raise ValueError("nothing to extrapolate: validate once before asking for a baseline")
    last_iteration, last_value = history[-1]
    earlier = [point for point in history[-2:] if point[0] < last_iteration]
    if not earlier:
        return last_value
    first_iteration, first_value = earlier[0]
    slope = (last_value - first_value) / (last_iteration - first_iteration)
    return first_value + (iteration - first_iteration) * slope


def reward(baseline_error: float, error: float) -> float:
    """r_t = E^BL_{t+1} - E_{t+1}: positive where the error fell below its trend (Eq. 7)."""
    return baseline_error - error
