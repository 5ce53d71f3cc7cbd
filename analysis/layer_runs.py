"""Layers in a few runs, for tables that are to fit a line."""

import numpy as np


def layer_runs(num_layers: int, most: int) -> dict[str, np.ndarray]:
    """The layers in up to `most` runs of nearly one length, from the first, by what a column calls them."""
    runs = np.array_split(np.arange(num_layers), min(most, num_layers))
    return {f"layers {run[0]}-{run[-1]}" if len(run) > 1 else f"layer {run[0]}": run for run in runs}
