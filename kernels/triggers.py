"""Triggers: for every neuron, the K places where its coefficient is largest.

A trigger is (value, document, position). The order is total: larger value, then smaller document, then
smaller position; so the list is the same in whatever order candidates arrive. A document has one candidate
a neuron, its largest coefficient at its first position, also when the document spans several rows.

The lists are kept on the device: by `tally.cpp` on the CPU, by `triton_triggers.py` on a GPU, and in PyTorch where
neither is there.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from neurotally.kernels.compiled import Offer, library
from neurotally.kernels.tally import RowMaxima, kernels_for


class Triggers(NamedTuple):
    """A sparse list of triggers, sorted by neuron, then best first."""

    neuron_N: Tensor
    """int64: the neuron's number within its layer."""
    value_N: Tensor
    """float32, > 0."""
    document_N: Tensor
    """int64: the document's number in its corpus."""
    position_N: Tensor
    """int64: counted from the document's first token."""


class LayerTriggers:
    """The best candidates of one layer so far: K entries a neuron, on its device, changed in place.

    `bar_F` (float32), if given, holds for each neuron the K-th value of documents that all come before those
    seen here: a candidate must exceed it. The merged list is the same without it; the result is smaller.
    """

    def __init__(self, num_neurons: int, num_triggers: int, device: torch.device | str, bar_F: Tensor | None):
        shape = (num_neurons, num_triggers)
        bar_F = torch.zeros(num_neurons, device=device) if bar_F is None else bar_F.to(device, torch.float32)
        self._bar_F = bar_F.contiguous()
        self._value_FK = torch.zeros(shape, device=device)
        self._document_FK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._position_FK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._offer = _offer_for(self._bar_F.device)

    def add(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        """Offer a batch's row maxima; the two tables tell which document and position each cell is."""
        if maxima.value_BF.shape != (len(document_BT), len(self._bar_F)) or document_BT.shape != position_BT.shape:
            raise ValueError(
                f"expected row maxima [B, F] with B = {len(document_BT)} (documents) and F = {len(self._bar_F)}, "
                f"got {list(maxima.value_BF.shape)}"
            )
        self._offer(
            maxima.value_BF.float().contiguous(),
            *(x.to(torch.int32).contiguous() for x in (maxima.position_BF, document_BT, position_BT)),
            self._bar_F,
            self._value_FK,
            self._document_FK,
            self._position_FK,
        )

    def best(self) -> Triggers:
        """The K best of each neuron among all that was offered."""
        neuron_N, rank_N = (self._value_FK > 0).nonzero(as_tuple=True)
        held = (table_FK[neuron_N, rank_N] for table_FK in (self._value_FK, self._document_FK, self._position_FK))
        value_N, document_N, position_N = held
        return top_triggers(
            [Triggers(neuron_N, value_N, document_N.long(), position_N.long())], self._value_FK.shape[1]
        )


def _offer_for(device: torch.device) -> Callable[..., None]:
    """What lets candidates into the lists [F, K]; its arguments are those of `offer_plainly`."""
    kernels = kernels_for(device, torch.float32)
    if kernels == "compiled":
        return _offer_compiled
    if kernels == "triton":
        from neurotally.kernels import triton_triggers

        return triton_triggers.offer
    return offer_plainly


def _offer_compiled(*tensors: Tensor) -> None:
    """By `tally.cpp`: always in order, an entering candidate moves the worse ones down."""
    compiled = library()
    assert compiled is not None
    document_BT, value_FK = tensors[2], tensors[5]
    pointers = (x.data_ptr() for x in tensors)
    compiled.offer(Offer(*document_BT.shape, *value_FK.shape, *pointers, torch.get_num_threads()))


def offer_plainly(
    value_BF: Tensor, column_BF: Tensor, document_BT: Tensor, position_BT: Tensor,
    bar_F: Tensor, value_FK: Tensor, document_FK: Tensor, position_FK: Tensor,
) -> None:  # fmt: skip
    """In PyTorch: what may enter and the lists that it may enter are sorted together. Always in order."""
    # An equal value may come from an earlier document (rows are sorted by length).
    may_enter_BF = (value_BF > bar_F) & (value_BF >= value_FK[:, -1])
    row_N, neuron_N = may_enter_BF.nonzero(as_tuple=True)
    column_N = column_BF[row_N, neuron_N]
    new = Triggers(neuron_N, value_BF[row_N, neuron_N], document_BT[row_N, column_N], position_BT[row_N, column_N])
    tables = (value_FK, document_FK, position_FK)
    changed_n, num_triggers = torch.unique(neuron_N), value_FK.shape[1]
    held = Triggers(changed_n.repeat_interleave(num_triggers), *(table_FK[changed_n].flatten() for table_FK in tables))
    best_neuron_N, *best = top_triggers([held, new], num_triggers)
    rank_N = _rank_within(best_neuron_N)
    for table_FK, best_N in zip(tables, best, strict=True):
        table_FK[best_neuron_N, rank_N] = best_N


def top_triggers(parts: list[Triggers], num_triggers: int) -> Triggers:
    """The `num_triggers` best of each neuron over all parts, one a document; unused entries (-1) are one document's."""
    every = Triggers(*(torch.cat(column) for column in zip(*parts, strict=True)))
    order = torch.argsort(every.position_N, stable=True)
    order = order[torch.argsort(every.value_N[order], descending=True, stable=True)]
    place_N = every.neuron_N * (every.document_N.max() + 2 if len(every.document_N) else 1) + every.document_N
    order = order[torch.argsort(place_N[order], stable=True)]
    one_a_document = _take(every, order[_is_first(place_N[order])])
    order = torch.argsort(one_a_document.value_N, descending=True, stable=True)
    order = order[torch.argsort(one_a_document.neuron_N[order], stable=True)]
    ranked = _take(one_a_document, order)
    return _take(ranked, (_rank_within(ranked.neuron_N) < num_triggers).nonzero()[:, 0])


def _take(triggers: Triggers, index_N: Tensor) -> Triggers:
    return Triggers(*(column[index_N] for column in triggers))


def _is_first(sorted_N: Tensor) -> Tensor:
    """Whether each element of a sorted tensor differs from the one before."""
    first_N = torch.ones_like(sorted_N, dtype=torch.bool)
    first_N[1:] = sorted_N[1:] != sorted_N[:-1]
    return first_N


def _rank_within(sorted_N: Tensor) -> Tensor:
    """The place of each element of a sorted tensor among its equals, from 0."""
    index_N = torch.arange(len(sorted_N), device=sorted_N.device)
    start_N = torch.where(_is_first(sorted_N), index_N, 0).cummax(0).values if len(sorted_N) else index_N
    return index_N - start_N
