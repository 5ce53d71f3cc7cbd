"""How many CPU threads share one forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MIN_ROWS_A_THREAD = 64
"""Tokens. MKL splits the rows of a product over its threads, and takes other kernels, which round otherwise, where a
thread gets a few of them: fewer than 4 on the CPUs tried."""


@contextmanager
def few_enough_threads(rows: int, device: torch.device) -> Iterator[None]:
    """Within this context a product of `rows` rows isn't shared by more CPU threads than its bits allow."""
    before = torch.get_num_threads()
    fewer = max(1, min(before, rows // MIN_ROWS_A_THREAD))
    if device.type != "cpu" or fewer == before:
        yield
        return
    torch.set_num_threads(fewer)
    try:
        yield
    finally:
        torch.set_num_threads(before)
