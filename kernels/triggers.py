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
from neurotally.kernels.layer_tally import RowMaxima
from neurotally.kernels.routing import Runs
from neurotally.kernels.tally import kernels_for


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

    `threshold_F` (float32), if given, holds for each neuron the K-th value of any documents of the same corpus: what is
    below it can't enter the corpus's list and is left out, what equals it may come from an earlier document. The merged
    list is the same without it; the result is smaller.
    """

    def __init__(self, num_neurons: int, num_triggers: int, device: torch.device | str, threshold_F: Tensor | None):
        shape = (num_neurons, num_triggers)
        none = torch.zeros(num_neurons, device=device)
        self._threshold_F = none if threshold_F is None else threshold_F.to(device, torch.float32).contiguous()
        self._value_FK = torch.zeros(shape, device=device)
        self._document_FK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._position_FK = torch.full(shape, -1, dtype=torch.int32, device=device)
        self._offer = _offer_for(self._threshold_F.device)

    def add_routed(self, maxima: RowMaxima, document_S: Tensor, position_S: Tensor, runs: Runs) -> None:
        """Offer the runs' maxima [R, F] of E experts; the lists are those of E·F neurons.

        The two tables tell which document and position each of the S rows is.
        """
        num_neurons = maxima.value_BF.shape[1]
        tables = (document_S.to(torch.int32).contiguous(), position_S.to(torch.int32).contiguous())
        lists = (self._value_FK, self._document_FK, self._position_FK)
        if self._offer is _offer_compiled:
            _offer_compiled(*maxima, *tables, self._threshold_F, *lists, runs)
            return
        if not len(runs.expert_R):
            return
        device, num_experts = document_S.device, len(self._threshold_F) // num_neurons
        cell_RF = runs.first_R.to(device)[:, None] + maxima.position_BF
        # The r-th run of every expert side by side, as if they were one network's maxima of a row.
        first_E = torch.searchsorted(runs.expert_R, torch.arange(num_experts))
        row_R = torch.arange(len(runs.expert_R)) - first_E[runs.expert_R]
        at = row_R.to(device), runs.expert_R.to(device)

        def side_by_side(of_RF: Tensor) -> Tensor:
            spread = of_RF.new_zeros((int(row_R.max()) + 1, num_experts, num_neurons))
            spread[at] = of_RF
            return spread.flatten(1)

        value_BF, document_BF, position_BF = map(side_by_side, (maxima.value_BF, *(table[cell_RF] for table in tables)))
        itself_F = torch.arange(value_BF.shape[1], dtype=torch.int32, device=device)
        itself_BF = itself_F.expand_as(value_BF).contiguous()
        self._offer(value_BF, itself_BF, document_BF, position_BF, self._threshold_F, *lists)

    def add(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        """Offer a batch's row maxima; the two tables tell which document and position each cell is."""
        if (
            maxima.value_BF.shape != (len(document_BT), len(self._threshold_F))
            or document_BT.shape != position_BT.shape
        ):
            raise ValueError(
                f"expected row maxima [B, F] with B = {len(document_BT)} (documents) and F = {len(self._threshold_F)}, "
                f"got {list(maxima.value_BF.shape)}"
            )
        self._offer(
            maxima.value_BF.float().contiguous(),
            *(x.to(torch.int32).contiguous() for x in (maxima.position_BF, document_BT, position_BT)),
            self._threshold_F,
            self._value_FK,
            self._document_FK,
            self._position_FK,
        )

    def best(self) -> Triggers:
        """The K best of each neuron among all that was offered."""
        lists = [self._value_FK, self._document_FK, self._position_FK]
        if self._offer not in (_offer_compiled, offer_plainly):  # theirs are in order, Triton's aren't
            lists = _ordered(_ordered(lists, by=1), by=0, descending=True)
        value_FK, document_FK, position_FK = lists
        neuron_N, rank_N = (value_FK > 0).nonzero(as_tuple=True)
        return Triggers(
            neuron_N,
            value_FK[neuron_N, rank_N],
            document_FK[neuron_N, rank_N].long(),
            position_FK[neuron_N, rank_N].long(),
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


def _offer_compiled(
    value_BF: Tensor, column_BF: Tensor, document_BT: Tensor, position_BT: Tensor,
    threshold_F: Tensor, value_FK: Tensor, document_FK: Tensor, position_FK: Tensor, runs: Runs | None = None,
) -> None:  # fmt: skip
    """By `tally.cpp`: always in order, an entering candidate moves the worse ones down.

    With `runs` the rows are runs, and the tables [S].
    """
    compiled = library()
    assert compiled is not None
    run_neuron_R = None if runs is None else runs.expert_R * value_BF.shape[1]
    offer = Offer(
        rows=len(value_BF),
        tokens=0 if runs is not None else document_BT.shape[1],
        neurons=value_BF.shape[1],
        num_triggers=value_FK.shape[1],
        row_value=value_BF.data_ptr(),
        row_position=column_BF.data_ptr(),
        document=document_BT.data_ptr(),
        position=position_BT.data_ptr(),
        run_first=None if runs is None else runs.first_R.data_ptr(),
        run_neuron=None if run_neuron_R is None else run_neuron_R.data_ptr(),
        threshold=threshold_F.data_ptr(),
        value=value_FK.data_ptr(),
        list_document=document_FK.data_ptr(),
        list_position=position_FK.data_ptr(),
        threads=torch.get_num_threads(),
    )
    compiled.offer(offer)


def offer_plainly(
    value_BF: Tensor, column_BF: Tensor, document_BT: Tensor, position_BT: Tensor,
    threshold_F: Tensor, value_FK: Tensor, document_FK: Tensor, position_FK: Tensor,
) -> None:  # fmt: skip
    """In PyTorch: lists and candidates are sorted together, where one may enter. Always in order."""
    # An equal value may come from an earlier document (rows are sorted by length).
    may_enter_BF = (value_BF > 0) & (value_BF >= threshold_F)
    changes_F = (may_enter_BF & (value_BF >= value_FK[:, -1])).any(0)
    column_BF = column_BF.long()
    offered = (
        torch.where(may_enter_BF, value_BF, 0.0),
        document_BT.gather(1, column_BF),
        position_BT.gather(1, column_BF),
    )
    tables = (value_FK, document_FK, position_FK)
    lists = [torch.cat([held_FK, new_BF.T], dim=1)[changes_F] for held_FK, new_BF in zip(tables, offered, strict=True)]
    for by, descending in ((2, False), (0, True), (1, False)):
        lists = _ordered(lists, by, descending)
    # A document's best comes first now; the others are none.
    lists[0][:, 1:].masked_fill_(lists[1][:, 1:] == lists[1][:, :-1], 0.0)
    for table_FK, best in zip(tables, _ordered(lists, by=0, descending=True), strict=True):
        table_FK[changes_F] = best[:, : table_FK.shape[1]]


def _ordered(lists: list[Tensor], by: int, descending: bool = False) -> list[Tensor]:
    """Value, document and position of each neuron's entries, sorted by one of them; equals stay as they are."""
    order = lists[by].argsort(dim=1, descending=descending, stable=True)
    return [column.gather(1, order) for column in lists]
