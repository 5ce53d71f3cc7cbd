"""Values by layer: in a few runs, for tables that are to fit a line, and as lines of a chart."""

from collections.abc import Mapping, Sequence

import numpy as np


def layer_runs(num_layers: int, most: int) -> dict[str, np.ndarray]:
    """The layers in up to `most` runs of nearly one length, from the first, by what a column calls them."""
    runs = np.array_split(np.arange(num_layers), min(most, num_layers))
    return {f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {run[0]}": run for run in runs}


def run_means(values: Sequence[float | None], runs: Mapping[str, np.ndarray]) -> list[float | None]:
    """The mean over each run of layers."""
    return [known_mean([values[layer] for layer in run]) for run in runs.values()]


def known_mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def interval(
    values: Sequence[float | None], halves: Sequence[float | None] | None
) -> tuple[Sequence[float], Sequence[float]]:
    """`low` and `high` of a line, given half of each value's interval; none without these."""
    if halves is None:
        return (), ()
    value_L, half_L = np.array(values, np.float64), np.array(halves, np.float64)
    return (value_L - half_L).tolist(), (value_L + half_L).tolist()
