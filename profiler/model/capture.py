"""Run the body of a model over batches with its neurons read.

The captured model is the model: on the CPU its hidden states are bitwise those of the bare model.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import torch
from torch import Tensor

from neurotally.kernels import tally
from neurotally.kernels.layer_tally import PAD, RowMaxima, Statistics
from neurotally.kernels.reference import tally_reference, tally_routed_reference
from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.hook_points import Computed, HookPoint, reading
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.model.offloading import is_offloaded
from neurotally.profiler.model.staging import StagedBatch, staged

OnLayer = Callable[[HookPoint, Tensor, "Tensor | None", Tensor], Tensor]
"""Called with the hook point, its pre-activations, `up` (None in a plain FFN) and coefficients, [B, T, F] each; returns
what the down projection reads instead."""


class NeuronReader:
    """Runs batches through a model's body and lets a recorder add up what its neurons do."""

    def __init__(self, model: HookedModel, recorder: NeuronRecorder, statistics: Statistics = Statistics.EVERYTHING):
        self._model = model
        self._recorder = recorder
        self._statistics = statistics

    def tally(self, batches: Iterable[Batch]) -> None:
        """Run batches, each as far as the last hook point: nothing that comes after it decides a statistic."""
        # Weights that accelerate brings in are put back by hooks at the end of a module's forward pass.
        to_the_end = is_offloaded(self._model.model)
        for batch in self._staged(batches):
            self._run(batch, None, to_the_end)

    def read(self, batch: Batch, on_layer: OnLayer | None = None) -> Tensor:
        """Run one batch to the end; returns the last hidden states [B, T, D].

        `on_layer` is shown each layer in turn.
        """
        (one,) = self._staged([batch])
        hidden_BTD = self._run(one, on_layer, to_the_end=True)
        assert hidden_BTD is not None
        return hidden_BTD

    def _staged(self, batches: Iterable[Batch]) -> Iterator[StagedBatch]:
        model = self._model
        return staged(batches, model.input_device, model.devices, model.sees_later_tokens)

    def _run(self, batch: StagedBatch, on_layer: OnLayer | None, to_the_end: bool) -> Tensor | None:
        seen: list[HookPoint] = []

        def read(point: HookPoint, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
            shape = pre_BTF.shape
            of_stack = point.read_of(batch)
            if isinstance(point, ExpertsHookPoint):
                read_BTF = self._read_experts(point, pre_BTF, up_BTF, of_stack)
            else:
                # Some families run the FFN on [B·T, F].
                if shape[:-1] not in (of_stack.ids_BT.shape, (of_stack.ids_BT.numel(),)):
                    raise UnsupportedModelError(
                        f"{point}: it is given {tuple(shape)} pre-activations of a batch of "
                        f"{tuple(of_stack.ids_BT.shape)} tokens, expected a row for each token, row by row; this model "
                        "isn't supported"
                    )
                rows = (*of_stack.ids_BT.shape, -1)
                pre_BTF, up_BTF = pre_BTF.view(rows), None if up_BTF is None else up_BTF.view(rows)
                read_BTF = self._read(point, pre_BTF, up_BTF, of_stack)
            if not (isinstance(point, ExpertsHookPoint) and point.calls_left):
                seen.append(point)
            if on_layer is not None:
                read_BTF = on_layer(point, pre_BTF, up_BTF, read_BTF)
            if not to_the_end and len(seen) == len(self._model.hook_points):
                raise LastPointRead
            return read_BTF.view(shape)

        hidden_BTD = None
        with suppress(LastPointRead), reading(self._model.hook_points, read):
            decoder_ids_BT = None if batch.decoder is None else batch.decoder.ids_BT
            hidden_BTD = self._model.run_body(batch.ids_BT, batch.mask_BT, decoder_ids_BT)
        runs = Counter(seen)
        for point in self._model.hook_points:
            if (times := runs[point]) != 1:
                raise UnsupportedModelError(
                    f"{point} runs {times} times in a forward pass, expected once; this model isn't supported"
                )
        return hidden_BTD

    def _read(self, point: HookPoint, pre_BTF: Tensor, up_BTF: Tensor | None, batch: StagedBatch) -> Tensor:
        """Tally one layer of a batch; the coefficients that the down projection reads."""
        kind_BT, document_BT, position_BT = batch.tables[pre_BTF.device]
        into = self._recorder.tallies[point]
        self._recorder.count(point, kind_BT)
        touched_n = point.touched_n
        if point.interventions:
            touched = Computed(*(values_BTF[..., touched_n] for values_BTF in point.computed(pre_BTF, up_BTF)))
            before = into.of(touched_n)
        read_BTF, maxima = tally.tally_layer(point.activation, pre_BTF, up_BTF, kind_BT, into, self._statistics)
        if point.interventions:  # they were tallied as if there were none; all other neurons keep theirs, bitwise
            maxima_n = tally_reference(*touched, kind_BT, before, self._statistics)
            for name, sums_F in into.items():
                sums_F[touched_n] = before[name]
            read_BTF = read_BTF.index_copy(-1, touched_n, touched.coefficient_BTF)
            maxima = RowMaxima(
                *(of_F.index_copy(-1, touched_n, new) for of_F, new in zip(maxima, maxima_n, strict=True))
            )
        if self._statistics == Statistics.EVERYTHING:
            self._recorder.offer(point, maxima, document_BT, position_BT)
        return read_BTF

    def _read_experts(
        self, point: ExpertsHookPoint, pre_SF: Tensor, up_SF: Tensor | None, batch: StagedBatch
    ) -> Tensor:
        """Tally the experts of a layer; the coefficients [S, F] that their second product reads."""
        tables = (table_BT.flatten() for table_BT in batch.tables[pre_SF.device])
        routing = point.routing(batch.ids_BT.shape[1])
        # By token as the routing sorts them.
        kind_S, document_S, position_S = (table_N[routing.cell_S] for table_N in tables)
        rows = point.rows
        assert rows is not None
        if rows.is_routed_S is not None:  # what an expert makes of other tokens counts as little as pads
            kind_S = torch.where(rows.is_routed_S[routing.row_S], kind_S, PAD)
        into = self._recorder.tallies[point]
        if point.has_own_formula or point.interventions:
            computed = point.computed(pre_SF, up_SF)
            maxima = tally_routed_reference(*computed, kind_S, into, self._statistics, routing)
            read_SF = computed.coefficient_BTF
        else:
            read_SF, maxima = tally.tally_layer(
                point.activation, pre_SF, up_SF, kind_S, into, self._statistics, routing
            )
        self._recorder.count_routed(point, routing.expert_S, rows.score_S[routing.row_S], kind_S)
        if self._statistics == Statistics.EVERYTHING:
            self._recorder.offer(point, maxima, document_S, position_S, routing.runs)
        return read_SF


class LastPointRead(Exception):
    """Ends a forward pass that has nothing left to tell."""
