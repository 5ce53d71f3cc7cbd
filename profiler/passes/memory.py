"""When a batch doesn't fit in memory: begin again with half the token budget."""

import re
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|_ALLOC_FAILED", re.IGNORECASE)
"""In the messages of PyTorch's allocators, of CUDA, Triton, cuBLAS, cuDNN and cuSPARSE."""


def halving(
    token_budget: int, compute: Callable[[int], T], failure: str = "a single row doesn't fit in memory"
) -> tuple[T, int]:
    """What `compute` gives for the token budget, halved until it fits, and how often it was halved.

    `compute` begins from nothing each time, so that nothing is counted twice. Raises MemoryError(`failure`) where a
    single token doesn't fit.
    """
    for halvings in range(token_budget.bit_length()):
        try:
            return compute(token_budget >> halvings), halvings
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
        # Out here the error is gone, and with it the frames that held the batch.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise MemoryError(failure)
