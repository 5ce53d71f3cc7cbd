"""How many CPU threads share one forward pass."""

from contextlib import AbstractContextManager, nullcontext

import torch

from neurotally.kernels.activations import cpu_threads

MIN_ROWS_A_THREAD = 64
"""Tokens. MKL splits the rows of a product over its threads, and takes other kernels, which round otherwise, where a
thread gets a few of them: fewer than 4 on the CPUs tried."""


def few_enough_threads(rows: int, device: torch.device) -> AbstractContextManager[None]:
    """Within this context a product of `rows` rows isn't shared by more CPU threads than its bits allow."""
    allowed = max(1, rows // MIN_ROWS_A_THREAD)
    return cpu_threads(allowed) if device.type == "cpu" and allowed < torch.get_num_threads() else nullcontext()
