"""Triggers: for every neuron, the K places where its coefficient is largest.

A trigger is (value, document, position). The order is total: larger value, then smaller document, then
smaller position; so the list is the same in whatever order candidates arrive. A document has one candidate
a neuron, its largest coefficient at its first position, also when the document spans several rows.

The lists are kept on the device: by `tally.cpp` on the CPU, by `triton_triggers.py` on a GPU, and in PyTorch where
neither is there.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from neurotally.kernels.compiled import Offer, addresses, library
from neurotally.kernels.layer_tally import RowMaxima
from neurotally.kernels.routing import Runs
from neurotally.kernels.tally import kernels_for
from neurotally.kernels.trigger_lists import UnitTriggers


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

    def add(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor, runs: Runs | None = None) -> None:
        """Offer a batch's row maxima; the two tables tell which document and position each cell is.

        `runs`: of a mixture's experts. The maxima are then those of the runs, [R, F], the tables [S] go by the tokens
        as the routing sorts them, and the lists are those of the E·F neurons.
        """
        if runs is None:
            self._check_shapes(maxima, document_BT, position_BT)
        numbers = (maxima.position_BF, document_BT, position_BT)
        column_BF, document_BT, position_BT = (x.to(torch.int32).contiguous() for x in numbers)
        offered = (maxima.value_BF.float().contiguous(), column_BF, document_BT, position_BT)
        lists = (self._threshold_F, self._value_FK, self._document_FK, self._position_FK)
        if runs is None:
            self._offer(*offered, *lists)
        elif self._offer is _offer_compiled:
            _offer_compiled(*offered, *lists, runs)
        elif len(runs.expert_R):
            self._offer(*_side_by_side(*offered, runs, len(self._threshold_F)), *lists)

    def best(self) -> UnitTriggers:
        """The K best of each neuron among all that was offered, on the host."""
        lists = [self._value_FK, self._document_FK, self._position_FK]
        if self._offer not in (_offer_compiled, offer_plainly):  # theirs are in order, Triton's aren't
            lists = _ordered(_ordered(lists, by=1), by=0, descending=True)
        is_used_FK = lists[0] > 0
        used = is_used_FK.nonzero(as_tuple=True)
        return UnitTriggers.of_tensors(is_used_FK.sum(1), *(list_FK[used] for list_FK in lists))

    def _check_shapes(self, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        num_rows, num_neurons = len(document_BT), len(self._threshold_F)
        if maxima.value_BF.shape != (num_rows, num_neurons) or document_BT.shape != position_BT.shape:
            raise ValueError(
                f"expected row maxima [B, F] with B = {num_rows} (documents) and F = {num_neurons}, got "
                f"{list(maxima.value_BF.shape)}"
            )


def _side_by_side(
    value_RF: Tensor, column_RF: Tensor, document_S: Tensor, position_S: Tensor, runs: Runs, num_neurons: int
) -> tuple[Tensor, ...]:
    """The runs' maxima as if they were one network's, of all experts: the r-th run of each makes a row.

    Documents and positions are then those of each maximum, and a maximum's column is its neuron.
    """
    device, num_experts = value_RF.device, num_neurons // value_RF.shape[1]
    cell_RF = runs.first_R.to(device)[:, None] + column_RF
    first_E = torch.searchsorted(runs.expert_R, torch.arange(num_experts))
    row_R = torch.arange(len(runs.expert_R)) - first_E[runs.expert_R]
    at = row_R.to(device), runs.expert_R.to(device)

    def spread(of_RF: Tensor) -> Tensor:
        rows = of_RF.new_zeros((int(row_R.max()) + 1, num_experts, of_RF.shape[1]))
        rows[at] = of_RF
        return rows.flatten(1)

    value_BF, document_BF, position_BF = map(spread, (value_RF, document_S[cell_RF], position_S[cell_RF]))
    itself_F = torch.arange(num_neurons, dtype=torch.int32, device=device)
    return value_BF, itself_F.expand_as(value_BF).contiguous(), document_BF, position_BF


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
    by_run = {}
    if runs is not None:
        by_run = {"run_first": runs.first_R, "run_neuron": runs.expert_R * value_BF.shape[1]}
    tensors = {
        "row_value": value_BF, "row_position": column_BF, "document": document_BT, "position": position_BT,
        "threshold": threshold_F, "value": value_FK, "list_document": document_FK, "list_position": position_FK,
        **by_run,
    }  # fmt: skip
    tokens = 0 if runs is not None else document_BT.shape[1]
    shape = (len(value_BF), tokens, value_BF.shape[1], value_FK.shape[1])
    compiled.offer(Offer(*shape, threads=torch.get_num_threads(), **addresses(tensors)))


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
