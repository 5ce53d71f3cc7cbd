"""What is read of a layer's lens at each position: its first tokens, the gold token, and the mass of token sets.

probability = exp(logit - logsumexp(logits)), over the full vocabulary, in float32
rank        = 1 + tokens with a larger logit
mass        = the sum of a set's probabilities; mass_top: of those among the first 10 tokens
rank_top    = the place of the set's first token among the first 10; 11 if there is none
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurotally.profiler.lens import TOP, Lens, Vectors, cache_parts, top_tokens


@dataclass(frozen=True)
class Readings:
    """N positions, L layers, the K = 10 first tokens, S token sets."""

    top_id_NLK: np.ndarray
    """uint32; larger logit first, then smaller id."""
    top_probability_NLK: np.ndarray
    """float32."""
    gold_probability_NL: np.ndarray
    """float32."""
    gold_rank_NL: np.ndarray
    """uint32."""
    mass_NLS: np.ndarray
    """float32."""
    mass_top_NLS: np.ndarray
    """float32."""
    rank_top_NLS: np.ndarray
    """uint8."""


class SetColumns:
    """Token sets as columns: whose token is whose."""

    def __init__(self, sets: Sequence[np.ndarray], vocabulary: int):
        member_VS = np.zeros((vocabulary, len(sets)), bool)
        for number, ids in enumerate(sets):
            member_VS[ids, number] = True
        used_U = np.flatnonzero(member_VS.any(1))
        self._host = (used_U, member_VS[used_U].astype(np.float32), member_VS)
        self._on: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """(the tokens that are in any set [U], float32 members [U, S], bool members [V, S])."""
        if device not in self._on:
            self._on[device] = tuple(torch.from_numpy(table).to(device) for table in self._host)
        return self._on[device]


def read_layers(lens: Lens, vectors: Vectors, gold_N: np.ndarray, columns: SetColumns) -> Readings:
    """The lens of every layer at every position. `gold_N`: the id of the token that comes next."""
    layers = [_read_layer(lens, vector_ND, gold_N, columns) for vector_ND in vectors.residual_LND]
    ids, top, gold, rank, mass, mass_top, rank_top = (np.stack(tables, axis=1) for tables in zip(*layers, strict=True))
    return Readings(ids.astype(np.uint32), top, gold, rank.astype(np.uint32), mass, mass_top, rank_top.astype(np.uint8))


def _read_layer(lens: Lens, vector_ND: Tensor, gold_N: np.ndarray, columns: SetColumns) -> tuple[np.ndarray, ...]:
    parts = []
    for vector_nD, gold_n in zip(
        *(torch.split(of, lens.chunk) for of in (vector_ND, torch.from_numpy(gold_N))), strict=True
    ):
        logits_nV = lens.logits(lens.normed(vector_nD))
        pieces = cache_parts(logits_nV, gold_n.to(logits_nV.device)[:, None])
        parts += [read_logits(logits, gold, columns) for logits, gold in pieces]
    return tuple(torch.cat(tables).cpu().numpy() for tables in zip(*parts, strict=True))


def read_logits(logits_NV: Tensor, gold_N1: Tensor, columns: SetColumns) -> tuple[Tensor, ...]:
    """The fields of `Readings`, in their order, of one layer at N positions."""
    used_U, member_US, member_VS = columns.on(logits_NV.device)
    with torch.inference_mode():
        total_N1 = logits_NV.logsumexp(1, keepdim=True)
        id_NK = top_tokens(logits_NV, min(TOP, logits_NV.shape[1]))
        top_NK = (logits_NV.gather(1, id_NK) - total_N1).exp()
        gold_logit_N1 = logits_NV.gather(1, gold_N1)
        # Comparisons as float32, which sums several times as fast as bool and is exact up to 16 million tokens.
        larger_NV = torch.gt(logits_NV, gold_logit_N1, out=torch.empty_like(logits_NV))
        mass_NS = (logits_NV.index_select(1, used_U) - total_N1).exp() @ member_US
        member_NKS = member_VS[id_NK]
        mass_top_NS = torch.einsum("nk,nks->ns", top_NK, member_NKS.float())
        place_K1 = torch.arange(1, id_NK.shape[1] + 1, device=id_NK.device)[:, None]
        rank_top_NS = torch.where(member_NKS, place_K1, TOP + 1).amin(1)
        return (
            id_NK, top_NK, (gold_logit_N1 - total_N1).exp()[:, 0], larger_NV.sum(1) + 1,
            mass_NS, mass_top_NS, rank_top_NS,
        )  # fmt: skip
