"""Triggers: for every neuron, the K places where its coefficient is largest.

A trigger is (value, document, position). The order is total: larger value, then smaller document, then
smaller position; so the list is the same in whatever order candidates arrive. A document has one candidate
a neuron, its largest coefficient at its first position, also when the document spans several rows.

The lists are kept on the device: by `tally.cpp` on the CPU, by `triton_triggers.py` on a GPU, and in PyTorch where
neither is there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from neurotally.kernels.compiled import Library, Offer, library
from neurotally.kernels.tally import RowMaxima, has_triton

_COMPACT_ABOVE = 8
"""A layer's buffer is cut back to its K best when it holds this many candidates a list entry."""


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
    """The best candidates of one layer so far.

    `bar_F` (float32), if given, holds for each neuron the K-th value of documents that all come before those
    seen here: a candidate must exceed it. The merged list is the same without it; the result is smaller.
    """

    def __init__(self, num_neurons: int, num_triggers: int, device: torch.device | str, bar_F: Tensor | None):
        bar_F = torch.zeros(num_neurons, device=device) if bar_F is None else bar_F.to(device, torch.float32)
        self._lists = _lists_for(num_triggers, bar_F)

    def add(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        """Offer a batch's row maxima; the two tables tell which document and position each cell is."""
        self._lists.add(maxima, document_BT, position_BT)

    def best(self) -> Triggers:
        """The K best of each neuron among all that was offered."""
        return self._lists.best()


def _lists_for(num_triggers: int, bar_F: Tensor) -> "_Lists | _Buffer":
    if bar_F.device.type == "cpu" and (compiled := library()) is not None:
        return _CompiledLists(compiled, num_triggers, bar_F)
    if bar_F.device.type == "cuda" and has_triton(bar_F.device):
        return _TritonLists(num_triggers, bar_F)
    return _Buffer(num_triggers, bar_F)


class _Lists:
    """K entries a neuron, on the device of `bar_F`, changed in place."""

    def __init__(self, num_triggers: int, bar_F: Tensor):
        shape, device = (len(bar_F), num_triggers), bar_F.device
        self._bar_F = bar_F.contiguous()
        self._value_FK = torch.zeros(shape, device=device)
        self._document_FK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._position_FK = torch.full(shape, -1, dtype=torch.int32, device=device)

    def add(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        if maxima.value_BF.shape != (len(document_BT), len(self._bar_F)) or document_BT.shape != position_BT.shape:
            raise ValueError(
                f"expected row maxima [B, F] with B = {len(document_BT)} (documents) and F = {len(self._bar_F)}, "
                f"got {list(maxima.value_BF.shape)}"
            )
        offered = (
            maxima.value_BF.float().contiguous(),
            *(x.to(torch.int32).contiguous() for x in (maxima.position_BF, document_BT, position_BT)),
        )
        self._offer(offered, (self._bar_F, self._value_FK, self._document_FK, self._position_FK))

    def _offer(self, offered: tuple[Tensor, ...], held: tuple[Tensor, ...]) -> None:
        raise NotImplementedError

    def best(self) -> Triggers:
        neuron_N, rank_N = (self._value_FK > 0).nonzero(as_tuple=True)
        return Triggers(
            neuron_N,
            self._value_FK[neuron_N, rank_N],
            self._document_FK[neuron_N, rank_N].long(),
            self._position_FK[neuron_N, rank_N].long(),
        )


class _CompiledLists(_Lists):
    """Always in order: an entering candidate moves the worse ones down, in `tally.cpp`."""

    def __init__(self, compiled: Library, num_triggers: int, bar_F: Tensor):
        super().__init__(num_triggers, bar_F)
        self._compiled = compiled

    def _offer(self, offered: tuple[Tensor, ...], held: tuple[Tensor, ...]) -> None:
        shape = (*offered[2].shape, *self._value_FK.shape)
        self._compiled.offer(Offer(*shape, *(x.data_ptr() for x in offered + held), torch.get_num_threads()))


class _TritonLists(_Lists):
    """In no order until they are read, by the kernel of `triton_triggers.py`."""

    def _offer(self, offered: tuple[Tensor, ...], held: tuple[Tensor, ...]) -> None:
        from neurotally.kernels import triton_triggers

        triton_triggers.offer(*offered, *held)

    def best(self) -> Triggers:
        return top_triggers([super().best()], self._value_FK.shape[1])


class _Buffer:
    """Candidates in the order they came, cut back to the K best of each neuron when they are many."""

    def __init__(self, num_triggers: int, bar_F: Tensor):
        self._num_triggers = num_triggers
        self._bar_F = bar_F
        self._kth_F = torch.zeros_like(bar_F)
        self._limit = _COMPACT_ABOVE * num_triggers * len(bar_F)
        self._held: list[Triggers] = []
        self._num_held = 0

    def add(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        # An equal value may come from an earlier document (rows are sorted by length): >= against our own list.
        enters_BF = (maxima.value_BF > self._bar_F) & (maxima.value_BF >= self._kth_F)
        row_N, neuron_N = enters_BF.nonzero(as_tuple=True)
        column_N = maxima.position_BF[row_N, neuron_N].long()
        self._held.append(
            Triggers(
                neuron_N,
                maxima.value_BF[row_N, neuron_N],
                document_BT[row_N, column_N].long(),
                position_BT[row_N, column_N].long(),
            )
        )
        self._num_held += len(neuron_N)
        if self._num_held > self._limit:
            best = self.best()
            is_last_N = _rank_within(best.neuron_N) == self._num_triggers - 1
            self._kth_F[best.neuron_N[is_last_N]] = best.value_N[is_last_N]

    def best(self) -> Triggers:
        self._held = [top_triggers(self._held, self._num_triggers)] if self._held else []
        self._num_held = len(self._held[0].neuron_N) if self._held else 0
        if self._held:
            return self._held[0]
        none = torch.empty(0, dtype=torch.int64, device=self._bar_F.device)
        return Triggers(none, none.float(), none, none)


def top_triggers(parts: list[Triggers], num_triggers: int) -> Triggers:
    """The `num_triggers` best of each neuron over all parts, one a document."""
    every = Triggers(*(torch.cat(column) for column in zip(*parts, strict=True)))
    order = torch.argsort(every.position_N, stable=True)
    order = order[torch.argsort(every.value_N[order], descending=True, stable=True)]
    place_N = every.neuron_N * (every.document_N.max() + 1 if len(every.document_N) else 1) + every.document_N
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
