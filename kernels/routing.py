"""Whose the rows of a mixture's product are: which expert's, which token's, and of which row of the batch."""

from typing import NamedTuple

import torch
from torch import Tensor


class Runs(NamedTuple):
    """The parts of an expert's tokens that come from one row of the batch, R of them in order; int64, on the CPU."""

    first_R: Tensor
    """The run's first token among S."""
    tokens_R: Tensor
    expert_R: Tensor


class Routing(NamedTuple):
    """S tokens by expert, then by their place in the batch: a token comes k times."""

    expert_S: Tensor
    """int64."""
    cell_S: Tensor
    """int64: b·T + t, its cell of the batch [B, T]."""
    row_S: Tensor
    """int64: its row in the layer's product."""
    weight_S: Tensor
    """float32: the routing weight."""
    runs: Runs


def route(expert_S: Tensor, cell_S: Tensor, weight_S: Tensor, row_cells: int) -> Routing:
    """The routing of a product's rows, in whatever order they are; `row_cells`: T, the cells of a row of the batch."""
    num_cells = int(cell_S.max()) + 1 if len(cell_S) else 1
    row_S = torch.argsort(expert_S * num_cells + cell_S, stable=True)
    expert_S, cell_S, weight_S = expert_S[row_S], cell_S[row_S], weight_S[row_S]
    num_rows = num_cells // row_cells + 1
    run_R, tokens_R = torch.unique_consecutive(expert_S * num_rows + cell_S // row_cells, return_counts=True)
    run_R, tokens_R = run_R.cpu(), tokens_R.cpu()
    runs = Runs(tokens_R.cumsum(0) - tokens_R, tokens_R, run_R // num_rows)
    return Routing(expert_S, cell_S, row_S, weight_S.float(), runs)
