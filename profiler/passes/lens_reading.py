"""What is read of a layer's lens at each position: its top-10 tokens, the gold token, and the mass of token sets.

probability = exp(logit - logsumexp(logits)), over the full vocabulary, in float32
rank        = 1 + tokens with a larger logit
mass        = the sum of a set's probabilities; mass_top: of those among the top-10 tokens
rank_top    = the place of the set's first token among the top 10; 11 if there is none

Of random sets, of which there are many, only sums over positions are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from neurotally.profiler.model.staging import DeviceTables
from neurotally.profiler.passes.lens import TOP, Lens, Vectors, cache_parts, top_tokens


@dataclass(frozen=True)
class Readings:
    """N positions, L layers, the K = 10 top tokens, S token sets. Probabilities and masses are float32."""

    top_id_NLK: np.ndarray
    """uint32; larger logit first, then smaller id."""
    top_probability_NLK: np.ndarray
    gold_probability_NL: np.ndarray
    gold_rank_NL: np.ndarray
    """uint32."""
    mass_NLS: np.ndarray
    mass_top_NLS: np.ndarray
    rank_top_NLS: np.ndarray
    """uint8."""


class SetColumns(DeviceTables):
    """Token sets as columns: tokens that are in any set [U], float32 members [U, S], bool members [V, S]."""

    def __init__(self, sets: Sequence[np.ndarray], vocabulary: int):
        member_VS = np.zeros((vocabulary, len(sets)), bool)
        for number, ids in enumerate(sets):
            member_VS[ids, number] = True
        used_U = np.flatnonzero(member_VS.any(1))
        super().__init__(used_U, member_VS[used_U].astype(np.float32), member_VS)


class DrawColumns(DeviceTables):
    """The draws of all sets as columns: D of each set, a set's side by side. R columns, U tokens in any of them."""

    def __init__(self, draws: Sequence[np.ndarray], vocabulary: int):
        sets = [ids for draws_Dm in draws for ids in draws_Dm]
        member_I = np.concatenate([np.empty(0, np.int64), *sets])
        size_R = np.array([len(ids) for ids in sets], np.int64)
        used_U, place_I = np.unique(member_I, return_inverse=True)
        place_V = np.full(vocabulary, len(used_U), np.int64)
        place_V[used_U] = np.arange(len(used_U))
        member_UR = np.zeros((len(used_U) + 1, len(sets)), bool)  # the last row: tokens that are in no draw
        member_UR[place_I, np.repeat(np.arange(len(sets)), size_R)] = True
        self.number = len(sets)
        super().__init__(used_U, place_I, np.cumsum(size_R) - size_R, place_V, member_UR)

    def read(self, logits_NV: Tensor, top_id_NK: Tensor, top_NK: Tensor) -> tuple[Tensor, ...]:
        """mass, mass_top, rank_top and hit, whether there is a token among the top 10: float32 [N, R] each."""
        used_U, place_I, start_R, place_V, member_UR = self.on(logits_NV.device)
        with torch.inference_mode():
            total_N1 = logits_NV.logsumexp(1, keepdim=True)
            probability_UN = logits_NV.index_select(1, used_U).sub_(total_N1).exp_().t().contiguous()
            mass_RN = functional.embedding_bag(place_I, probability_UN, start_R, mode="sum")
            member_NKR = member_UR[place_V[top_id_NK]]
            mass_top_NR = torch.bmm(top_NK[:, None], member_NKR.float())[:, 0]
            place_K1 = torch.arange(1, top_id_NK.shape[1] + 1, device=top_id_NK.device, dtype=torch.uint8)[:, None]
            rank_top_NR = torch.where(member_NKR, place_K1, TOP + 1).amin(1)
            return mass_RN.t(), mass_top_NR, rank_top_NR.float(), (rank_top_NR <= TOP).float()


class DrawSums:
    """Sums over the positions of each of P prompts: float64 [P, L, 4, R] (mass, mass_top, rank_top, hit)."""

    def __init__(self, columns: DrawColumns, num_prompts: int, num_layers: int):
        self.columns = columns
        self.sum_PL4R = np.zeros((num_prompts, num_layers, 4, columns.number))


def read_layers(
    lens: Lens, vectors: Vectors, gold_N: np.ndarray, columns: SetColumns, draws: DrawSums, prompt_N: np.ndarray
) -> Readings:
    """The lens of every layer at every position. `gold_N`: the id of the token that comes next.

    What the draws have at a position is added to the sums of its prompt.
    """
    layers = [
        _read_layer(lens, vector_ND, gold_N, columns, draws, layer, prompt_N)
        for layer, vector_ND in enumerate(vectors.residual_LND)
    ]
    ids, top, gold, rank, mass, mass_top, rank_top = (np.stack(tables, axis=1) for tables in zip(*layers, strict=True))
    return Readings(ids.astype(np.uint32), top, gold, rank.astype(np.uint32), mass, mass_top, rank_top.astype(np.uint8))


def _read_layer(
    lens: Lens, vector_ND: Tensor, gold_N: np.ndarray, columns: SetColumns, draws: DrawSums, layer: int,
    prompt_N: np.ndarray,
) -> tuple[np.ndarray, ...]:  # fmt: skip
    parts = []
    is_of_PN = torch.from_numpy(np.arange(len(draws.sum_PL4R))[:, None] == prompt_N).double()
    sum_4PR: list[Tensor] | None = None
    for vector_nD, gold_n, is_of_nP in zip(
        *(torch.split(of, lens.chunk) for of in (vector_ND, torch.from_numpy(gold_N), is_of_PN.t())), strict=True
    ):
        logits_nV = lens.logits(lens.normed(vector_nD))
        device = logits_nV.device
        for logits, gold, is_of in cache_parts(logits_nV, gold_n.to(device)[:, None], is_of_nP.to(device)):
            read = read_logits(logits, gold, columns)
            parts.append(read)
            if draws.columns.number:
                found = [is_of.t() @ drawn.double() for drawn in draws.columns.read(logits, *read[:2])]
                sum_4PR = found if sum_4PR is None else [a + b for a, b in zip(sum_4PR, found, strict=True)]
    if sum_4PR is not None:
        draws.sum_PL4R[:, layer] += torch.stack(sum_4PR, dim=1).cpu().numpy()
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
