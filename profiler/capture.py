"""Run the body of a model over a batch with its neurons read, or with some of them switched off.

The captured model is the model: on the CPU its hidden states equal the bare model's to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels import tally
from neurotally.profiler.batches import Batch
from neurotally.profiler.model import LoadedModel
from neurotally.profiler.neurons import NeuronRecorder
from neurotally.profiler.sites import Site


class NeuronReader:
    """Runs batches through a model's body and lets a recorder add up what its neurons do."""

    def __init__(
        self, model: LoadedModel, recorder: NeuronRecorder, statistics: tally.Statistics = tally.Statistics.EVERYTHING
    ):
        self._model = model
        self._recorder = recorder
        self._statistics = statistics

    def read(self, batch: Batch, on_layer: Callable[[Tensor], None] | None = None) -> Tensor:
        """Run one batch; returns the last hidden states [B, T, D].

        `on_layer` is shown each layer's coefficients [B, T, F], in the order of the layers.
        """
        tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}
        seen: list[int] = []

        def sink(site: Site, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
            if pre_BTF.device not in tables:
                host = (batch.kind_BT, batch.document_BT, batch.position_BT)
                tables[pre_BTF.device] = tuple(torch.from_numpy(table).to(pre_BTF.device) for table in host)  # type: ignore[assignment]
            kind_BT, document_BT, position_BT = tables[pre_BTF.device]
            # Some families run the FFN on [B·T, F].
            shape, pre_BTF = pre_BTF.shape, pre_BTF.view(*kind_BT.shape, -1)
            into = self._recorder.tallies[site.layer]
            if up_BTF is None:
                read_BTF, maxima = tally.plain(site.act, pre_BTF, kind_BT, into, self._statistics)
            else:
                read_BTF, maxima = tally.gated(
                    site.act, pre_BTF, up_BTF.view_as(pre_BTF), kind_BT, into, self._statistics
                )
            if self._statistics == tally.Statistics.EVERYTHING:
                self._recorder.offer(site.layer, maxima, document_BT, position_BT)
            seen.append(site.layer)
            if on_layer is not None:
                on_layer(read_BTF)
            return read_BTF.view(shape)

        for site in self._model.sites:
            site.sink = sink
        try:
            hidden_BTD = self._model.run_body(torch.from_numpy(batch.ids_BT))
        finally:
            for site in self._model.sites:
                site.sink = None
        if sorted(seen) != list(range(len(self._model.sites))):
            raise RuntimeError(f"expected each of {len(self._model.sites)} layers to be read once, read {seen}")
        return hidden_BTD


@contextmanager
def switched_off(model: LoadedModel, neurons: Mapping[int, Sequence[int]]) -> Iterator[None]:
    """Within this context the activations of `neurons` (layer: their numbers) are zero."""
    try:
        for layer, indices in neurons.items():
            model.sites[layer].off = torch.from_numpy(np.asarray(indices, np.int64)).to(model.site_devices[layer])
        yield
    finally:
        for site in model.sites:
            site.off = None
