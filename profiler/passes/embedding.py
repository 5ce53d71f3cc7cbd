"""Embeddings of texts: one vector a text and layer, made of the residual stream.

Layer 0 is what the first block reads (the token embeddings), layer l what block l leaves, and the last one the same
after the model's final norm: Hugging Face's `hidden_states`, one more than there are blocks. With h_t the state at
the t-th of a text's n tokens that count:

    weighted   Σ t·h_t / Σ t,  t = 1 … n      the position-weighted mean of MEXA (arXiv 2410.05873)
    last       h_n

Of an encoder-decoder these are the encoder's layers, which read the text. Sums are taken in float64. Each block's input
is reduced where it is, as the model runs: no layer's states are kept.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.layer_tally import PAD, SPECIAL
from neurotally.profiler.corpus.batches import Batch, TokenRows
from neurotally.profiler.model.hooked_model import batch_mask
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.staging import DeviceTables

BOS_RULES = ("counted", "read", "none")
"""counted: the model reads a BOS and it counts, as in the papers; read: read, but not counted; none: not read."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N texts at every layer (one more than blocks), float32 [N, L, D]."""

    weighted_NLD: np.ndarray
    last_NLD: np.ndarray


def embed_rows(model: LoadedModel, rows: TokenRows, count_bos: bool, token_budget: int) -> Embeddings:
    """The embeddings of texts laid out one a row, each with a token that counts, in the order of their numbers.

    Texts are numbered from 0. Without `count_bos` a row's first token doesn't count if it is a special one. For the
    budget see `padded_batches`.
    """
    shape = (len(rows.bounds_R2), len(model.stacks[0].blocks) + 1, model.facts.width)
    weighted_NLD, last_NLD = np.empty(shape, np.float32), np.empty(shape, np.float32)
    for batch in model.batches(rows, token_budget):
        is_text_B = (batch.kind_BT != PAD).any(axis=1)
        pooled_BL2D = _embed_batch(model, batch, count_bos).numpy()[is_text_B]
        numbers_B = batch.document_BT[is_text_B, 0]
        weighted_NLD[numbers_B], last_NLD[numbers_B] = pooled_BL2D[:, :, 0], pooled_BL2D[:, :, 1]
    return Embeddings(weighted_NLD, last_NLD)


def position_weights(kind_BT: np.ndarray, count_bos: bool = True) -> np.ndarray:
    """float64 [B, T]: the weight of each token in its row's mean; pads weigh nothing, wherever they are."""
    counts_BT = kind_BT != PAD
    if not count_bos:
        counts_BT = counts_BT.copy()
        counts_BT[:, 0] &= kind_BT[:, 0] != SPECIAL
    position_BT = np.cumsum(counts_BT, axis=1) * counts_BT
    weight_BT: np.ndarray = position_BT / np.maximum(position_BT.sum(axis=1, keepdims=True), 1)
    return weight_BT


def _embed_batch(model: LoadedModel, batch: Batch, count_bos: bool) -> Tensor:
    """float32 [B, L, 2, D] on the host: weighted mean and last token of each row at each layer."""
    is_last_BT = np.zeros(batch.kind_BT.shape)
    is_last_BT[np.arange(len(is_last_BT)), (batch.kind_BT != PAD).sum(axis=1) - 1] = 1
    weights = DeviceTables(np.stack([position_weights(batch.kind_BT, count_bos), is_last_BT], axis=1))
    pooled: dict[int, Tensor] = {}

    def pool(layer: int, hidden_BTD: Tensor) -> None:
        (weight_B2T,) = weights.on(hidden_BTD.device)
        pooled[layer] = (weight_B2T @ hidden_BTD.double()).float()

    def look_at_input(layer: int, _module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        pool(layer, args[0] if args else kwargs["hidden_states"])

    blocks = model.stacks[0].blocks
    with ExitStack() as hooks:
        for layer, block in enumerate(blocks):
            hooks.enter_context(block.register_forward_pre_hook(partial(look_at_input, layer), with_kwargs=True))
        final_BTD = model.run_first_stack(torch.from_numpy(batch.ids_BT), batch_mask(batch))
    pool(len(blocks), final_BTD)
    return torch.stack([pooled[layer].cpu() for layer in range(len(blocks) + 1)], dim=1)
