"""Run the body of a model over batches with its neurons read.

The captured model is the model: on the CPU its hidden states are bitwise those of the bare model.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from torch import Tensor

from neurotally.kernels import tally
from neurotally.kernels.tally import LayerTally, RowMaxima, Statistics
from neurotally.profiler.batches import Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.hook_points import Computed, HookPoint, reading
from neurotally.profiler.hooked_model import HookedModel
from neurotally.profiler.neurons import NeuronRecorder
from neurotally.profiler.offloading import is_offloaded
from neurotally.profiler.staging import StagedBatch, staged

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
        for batch in staged(batches, self._model.input_device, self._model.devices):
            self._run(batch, None, to_the_end)

    def read(self, batch: Batch, on_layer: OnLayer | None = None) -> Tensor:
        """Run one batch to the end; returns the last hidden states [B, T, D].

        `on_layer` is shown each layer in turn.
        """
        (one,) = staged([batch], self._model.input_device, self._model.devices)
        hidden_BTD = self._run(one, on_layer, to_the_end=True)
        assert hidden_BTD is not None
        return hidden_BTD

    def _run(self, batch: StagedBatch, on_layer: OnLayer | None, to_the_end: bool) -> Tensor | None:
        seen: list[int] = []

        def read(point: HookPoint, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
            # Some families run the FFN on [B·T, F].
            shape = pre_BTF.shape
            rows = (*batch.ids_BT.shape, -1)
            pre_BTF, up_BTF = pre_BTF.view(rows), None if up_BTF is None else up_BTF.view(rows)
            read_BTF = self._read(point, pre_BTF, up_BTF, batch)
            seen.append(point.layer)
            if on_layer is not None:
                read_BTF = on_layer(point, pre_BTF, up_BTF, read_BTF)
            if not to_the_end and len(seen) == len(self._model.hook_points):
                raise _LastPointRead
            return read_BTF.view(shape)

        hidden_BTD = None
        with suppress(_LastPointRead), reading(self._model.hook_points, read):
            hidden_BTD = self._model.run_body(batch.ids_BT)
        runs = Counter(seen)
        for point in self._model.hook_points:
            if (times := runs[point.layer]) != 1:
                raise UnsupportedModelError(
                    f"{point} runs {times} times in a forward pass, expected once; this model isn't supported"
                )
        return hidden_BTD

    def _read(self, point: HookPoint, pre_BTF: Tensor, up_BTF: Tensor | None, batch: StagedBatch) -> Tensor:
        """Tally one layer of a batch; the coefficients that the down projection reads."""
        kind_BT, document_BT, position_BT = batch.tables[pre_BTF.device]
        into = self._recorder.tallies[point.layer]
        before = None
        if point.interventions:
            computed = point.computed(pre_BTF, up_BTF)
            before = into.of(point.touched_n)
        read_BTF, maxima = tally.tally_layer(point.activation, pre_BTF, up_BTF, kind_BT, into, self._statistics)
        if before is not None:
            read_BTF, maxima = _tally_touched(
                computed, point.touched_n, before, kind_BT, into, self._statistics, read_BTF, maxima
            )
        if self._statistics == Statistics.EVERYTHING:
            self._recorder.offer(point.layer, maxima, document_BT, position_BT)
        return read_BTF


def _tally_touched(
    computed: Computed, index_n: Tensor, before: LayerTally, kind_BT: Tensor, into: LayerTally, statistics: Statistics,
    read_BTF: Tensor, maxima: RowMaxima,
) -> tuple[Tensor, RowMaxima]:  # fmt: skip
    """Put the neurons `index_n` of interventions in their place, in a layer that was tallied as if it had none.

    `before`: their tallies before this batch. Returns what the down projection reads and the row maxima; neurons
    that no intervention touches keep theirs, bitwise.
    """
    pre_BTn, activation_BTn, coefficient_BTn = (values_BTF[..., index_n] for values_BTF in computed)
    maxima_n = tally.tally_reference(pre_BTn, activation_BTn, coefficient_BTn, kind_BT, before, statistics)
    for name, sums_F in into.items():
        sums_F[index_n] = before[name]
    columns = (values.index_copy(-1, index_n, new) for values, new in zip(maxima, maxima_n, strict=True))
    return read_BTF.index_copy(-1, index_n, coefficient_BTn), RowMaxima(*columns)


class _LastPointRead(Exception):
    """Ends a forward pass that has nothing left to tell."""
