"""The logit lens: what a layer's vector says about the next token, read with the model's own head.

    lens(h) = head(norm(h)), h the residual stream after a block, norm the model's own final norm (at every layer)

After the last block this is bitwise the model's own output. `head` is all that the model does after its body (the
module `head`): the output embedding, its bias, logit scaling, soft-capping. The norm is found by watching one short
batch go through, and the result is compared with the model's logits; a model that differs is refused by name.

Logits are made for as many vectors at a time as fit a byte budget: no [tokens, vocabulary] tensor of all positions, let
alone of all layers, is ever held. Tokens of equal logits (the normal case in 16 bits) come in the order of their ids.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from neurotally.profiler.corpus.batches import TokenRows
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.plain_tensors import is_plain
from neurotally.profiler.model.verify import probe_ids
from neurotally.profiler.passes.head import head_logits, of_many_rows

TOP = 10
"""Tokens kept of each layer and position."""
_LOGIT_BYTES = 2**26
"""What the float32 logits of one vocabulary product may take."""
_CACHE_BYTES = 2**23
"""What is read several times stays in a CPU's cache: at V = 50,000 in one piece, ranks took 7 times as long."""
_VECTOR_BYTES = 2**30
"""What the vectors of all layers of one batch may take."""
_BLOCK = 64
"""Logits are first compared by the largest of so many: at V = 50,000 a third of the time of `torch.topk`."""


@dataclass(frozen=True)
class Vectors:
    """What a model's body leaves at N chosen positions, layer by layer."""

    residual_LND: list[Tensor]
    """After each block; never normed."""
    ffn_LND: list[Tensor]
    """What each down projection gives, its bias included; empty if not asked for."""
    final_ND: Tensor
    """What the body gives: the last residual, normed."""


class Lens:
    """A model's final norm and head, found and verified."""

    def __init__(self, model: LoadedModel):
        if model.sees_later_tokens:
            raise UnsupportedModelError(
                f"{model.facts.id} is no causal language model: the lens, and the agreement of layers, read what a "
                "layer says of the next token"
            )
        self.model = model
        self._head = model.model.get_output_embeddings()
        weight = getattr(self._head, "weight", None)
        if not isinstance(weight, Tensor) or weight.is_meta or not is_plain(weight):
            raise UnsupportedModelError(f"{model.facts.id}: its output embedding is offloaded or quantised: no lens")
        self.vocabulary, embedding_width = self._head.weight.shape
        """Logits a position."""
        self.reads_raw: bool = embedding_width == model.facts.width
        """Whether the output embedding is as wide as the residual stream (not in OPT-350m)."""
        self.chunk = max(1, _LOGIT_BYTES // (4 * self.vocabulary))
        """Vectors of one vocabulary product."""
        ids_BT = probe_ids(model.vocabulary)
        self._tail = _final_modules(model, ids_BT)
        self._verify(ids_BT)

    def vectors(self, ids_BT: Tensor, at_BT: Tensor, ffn: bool = False) -> Vectors:
        """Run the body over a padded batch and keep the vectors at the positions of `at_BT` (bool, on the CPU)."""
        shape = (*ids_BT.shape, -1)
        residual_LND: list[Tensor] = []
        ffn_LND: list[Tensor] = []

        def keep(into: list[Tensor], _module: nn.Module, _args: Any, output: Any) -> None:
            values = output if isinstance(output, Tensor) else output[0]
            into.append(values.reshape(shape)[at_BT.to(values.device)])

        with ExitStack() as hooks:
            for block in self.model.blocks:
                hooks.enter_context(block.register_forward_hook(partial(keep, residual_LND)))
            for point in self.model.hook_points if ffn else ():
                hooks.enter_context(point.down.register_forward_hook(partial(keep, ffn_LND)))
            final_BTD = self.model.run_body(ids_BT)
        return Vectors(residual_LND, ffn_LND, final_BTD[at_BT.to(final_BTD.device)])

    def normed(self, vector_ND: Tensor) -> Tensor:
        """The model's final norm of any layer's vectors."""
        with torch.inference_mode():
            for module in self._tail:  # a projection among them in some OPT
                vector_ND = of_many_rows(module, vector_ND.to(_device_of(module, vector_ND)))
        return vector_ND

    def logits(self, final_ND: Tensor) -> Tensor:
        """float32 [N, V]: what the model makes of vectors as its body gives them. At most `chunk` of them."""
        return head_logits(self.model, final_ND).float()

    def embedding_logits(self, vector_ND: Tensor, bias: bool) -> Tensor:
        """float32 [N, V]: vectors times the output embedding, with the head's bias or without. At most `chunk`."""
        weight_VD = self._head.weight
        bias_V = getattr(self._head, "bias", None) if bias else None
        with torch.inference_mode():
            vector_ND = vector_ND.to(weight_VD.device)
            return of_many_rows(lambda rows_ND: functional.linear(rows_ND, weight_VD, bias_V), vector_ND).float()

    def batches(self, rows: TokenRows, at_N: np.ndarray, token_budget: int) -> Iterator["Positions"]:
        """Padded batches of rows with the chosen ones among their tokens; those without any are passed over.

        `at_N`: bool, for each token of `rows`. The size depends on model, rows and budget alone.
        """
        facts = self.model.facts
        # A position has two vectors a layer at most, of 4 bytes a number.
        budget = max(1, min(token_budget, _VECTOR_BYTES // (8 * facts.num_layers * facts.width)))
        for batch in self.model.batches(rows, budget):
            token_BT = np.searchsorted(rows.document_N, batch.document_BT) + batch.position_BT
            at_BT = at_N[token_BT] & (batch.kind_BT != 0)
            if at_BT.any():
                yield Positions(torch.from_numpy(batch.ids_BT), torch.from_numpy(at_BT), token_BT[at_BT])

    def _verify(self, ids_BT: Tensor) -> None:
        """Raise UnsupportedModelError where the last layer's lens isn't the model's own output."""
        model = self.model.model
        found = self.vectors(ids_BT, torch.ones(ids_BT.shape, dtype=torch.bool))
        with torch.inference_mode():
            ids_BT = ids_BT.to(self.model.input_device)
            expected_NV = model(input_ids=ids_BT, use_cache=False).logits.float().flatten(0, 1)
        lens_NV = self.logits(self.normed(found.residual_LND[-1]))
        if not _agree(lens_NV, expected_NV.to(lens_NV.device), self.model.facts.dtype):
            raise UnsupportedModelError(
                f"{self.model.facts.id} ({self.model.facts.architecture}): norm and head after the last layer don't "
                "give the model's own logits; the lens doesn't support this model"
            )


@dataclass(frozen=True)
class Positions:
    """A padded batch and n chosen positions in it."""

    ids_BT: Tensor
    at_BT: Tensor
    """bool."""
    token_n: np.ndarray
    """int64: which token of the rows each position is, in the order of `Vectors`."""


def top_tokens(logits_NV: Tensor, k: int) -> Tensor:
    """int64 [N, k]: the ids of the k largest float32 logits, larger first; of equal ones the smaller id first."""
    vocabulary = logits_NV.shape[1]
    whole = vocabulary - vocabulary % _BLOCK
    largest_NB = logits_NV[:, :whole].view(len(logits_NV), whole // _BLOCK, _BLOCK).amax(2)
    if whole < vocabulary:
        largest_NB = torch.cat([largest_NB, logits_NV[:, whole:].amax(1, keepdim=True)], 1)
    # The k largest lie in the k blocks whose largest are largest.
    block_N = _order(largest_NB, torch.arange(largest_NB.shape[1], device=logits_NV.device))
    block_Nk = _place(block_N.topk(min(k, largest_NB.shape[1]), dim=1).values)
    id_NC = (block_Nk[:, :, None] * _BLOCK + torch.arange(_BLOCK, device=logits_NV.device)).flatten(1)
    order_NC = _order(logits_NV.gather(1, id_NC.clamp(max=vocabulary - 1)), id_NC)
    order_NC = order_NC.masked_fill(id_NC >= vocabulary, torch.iinfo(torch.int64).min)
    return _place(order_NC.topk(k, dim=1).values)


def cache_parts(logits_NV: Tensor, *beside: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The logits, and what lies beside them, in parts of so few rows that a CPU's cache holds them."""
    size = len(logits_NV) if logits_NV.is_cuda else max(1, _CACHE_BYTES // (4 * logits_NV.shape[1]))
    return zip(*(torch.split(of, size) for of in (logits_NV, *beside)), strict=True)


def _order(value_NC: Tensor, place_C: Tensor) -> Tensor:
    """int64 numbers in the order of (value, then the smaller place)."""
    bits = (value_NC + 0.0).view(torch.int32).long()  # + 0.0: no negative zero
    return ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | (0xFFFFFFFF - place_C)


def _place(order: Tensor) -> Tensor:
    return 0xFFFFFFFF - (order & 0xFFFFFFFF)


def _final_modules(model: LoadedModel, ids_BT: Tensor) -> list[nn.Module]:
    """What the decoder does after its last block: its final norm; none, or a projection too, in some OPT."""
    called: list[nn.Module] = []
    with ExitStack() as hooks:
        hooks.enter_context(model.blocks[-1].register_forward_hook(lambda *_: called.clear()))
        for child in model.body.children():
            if child is not model.blocks:
                hooks.enter_context(child.register_forward_hook(lambda module, *_: called.append(module)))
        model.run_body(ids_BT)
    return called


def _agree(lens_NV: Tensor, expected_NV: Tensor, dtype: str) -> bool:
    """Bitwise equal on the CPU; on a GPU, where products may be cut otherwise, up to the dtype's rounding."""
    if lens_NV.device.type == "cpu":
        return torch.equal(lens_NV, expected_NV)
    relative = 8 * torch.finfo(getattr(torch, dtype)).eps
    return torch.allclose(lens_NV, expected_NV, rtol=relative, atol=relative * float(expected_NV.abs().max()))


def _device_of(module: nn.Module, like: Tensor) -> torch.device:
    parameter = next(module.parameters(), None)
    return like.device if parameter is None or parameter.is_meta else parameter.device
