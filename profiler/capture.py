"""Run the body of a model over a batch with its neurons read, or with some of them switched off.

The captured model is the model: on the CPU its hidden states equal the bare model's to the bit.

Ways to switch a neuron off, none of which touches a weight:

    activation        act(gate) or act(fc1) becomes 0
    coefficient       what multiplies its value vector becomes 0; the same, up to rounding, as `activation`
    weights           what a zeroed key gives: its row of the gate or fc1 with its bias, so act(0), which is 0 for
                      every common activation (the row of `up` stays)
    weights-no-bias   what a key whose row alone is zeroed gives: act(bias), a constant
    mean              the coefficient becomes a given mean
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels import tally
from neurotally.kernels.activations import activate
from neurotally.profiler.batches import Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model import LoadedModel
from neurotally.profiler.neurons import NeuronRecorder
from neurotally.profiler.sites import Site, decoder_layers, weight_matrices
from neurotally.profiler.staging import StagedBatch, staged
from neurotally.profiler.verify import probe_ids

WAYS = ("activation", "coefficient", "weights", "weights-no-bias", "mean")
"""How a neuron can be switched off."""


class NeuronReader:
    """Runs batches through a model's body and lets a recorder add up what its neurons do."""

    def __init__(
        self, model: LoadedModel, recorder: NeuronRecorder, statistics: tally.Statistics = tally.Statistics.EVERYTHING
    ):
        self._model = model
        self._recorder = recorder
        self._statistics = statistics

    def tally(self, batches: Iterable[Batch]) -> None:
        """Run batches, each as far as the last site: nothing that comes after it decides a statistic."""
        for batch in staged(batches, self._input_device, self._model.site_devices):
            # Weights that accelerate moves in and out of the device are put back by hooks at the end of a layer.
            self._run(batch, None, to_the_end=self._is_offloaded)

    def read(self, batch: Batch, on_layer: Callable[[Tensor], None] | None = None) -> Tensor:
        """Run one batch to the end; returns the last hidden states [B, T, D].

        `on_layer` is shown each layer's coefficients [B, T, F], in the order of the layers.
        """
        (one,) = staged([batch], self._input_device, self._model.site_devices)
        hidden_BTD = self._run(one, on_layer, to_the_end=True)
        assert hidden_BTD is not None
        return hidden_BTD

    @property
    def _input_device(self) -> torch.device:
        device = self._model.input_device
        return device

    @property
    def _is_offloaded(self) -> bool:
        places = getattr(self._model.model, "hf_device_map", {}).values()
        return self._model.facts.device_type != "cpu" and any(str(place) in ("cpu", "disk") for place in places)

    def _run(self, batch: StagedBatch, on_layer: Callable[[Tensor], None] | None, to_the_end: bool) -> Tensor | None:
        seen: list[int] = []

        def sink(site: Site, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
            kind_BT, document_BT, position_BT = batch.tables[pre_BTF.device]
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
            if not to_the_end and len(seen) == len(self._model.sites):
                raise _LastSiteRead
            return read_BTF.view(shape)

        for site in self._model.sites:
            site.sink = sink
        hidden_BTD = None
        try:
            hidden_BTD = self._model.run_body(batch.ids_BT)
        except _LastSiteRead:
            pass
        finally:
            for site in self._model.sites:
                site.sink = None
        if sorted(seen) != list(range(len(self._model.sites))):
            raise RuntimeError(f"expected each of {len(self._model.sites)} layers to be read once, read {seen}")
        return hidden_BTD


class _LastSiteRead(Exception):
    """Ends a forward pass that has nothing left to tell."""


@contextmanager
def switched_off(
    model: LoadedModel, neurons: Mapping[int, Sequence[int]], how: str = "activation", value_LF: Any = None
) -> Iterator[None]:
    """Within this context `neurons` (layer: their numbers) are switched off: one of `WAYS`.

    `value_LF[layer]` [F]: what they become; see `replacements`. Weights are never touched.
    """
    if how not in WAYS:
        raise ValueError(f"how {how!r}: expected one of {', '.join(WAYS)}")
    sinks = {layer: _replacing(model, layer, indices, how, value_LF) for layer, indices in neurons.items()}
    try:
        for layer, sink in sinks.items():
            model.sites[layer].sink = sink
        yield
    finally:
        for site in model.sites:
            site.sink = None


def replacements(model: LoadedModel, how: str, mean_LF: np.ndarray | None = None) -> Any:
    """What neurons switched off in this way become, as `switched_off` takes it; None: zero.

    `mean_LF`: for `mean`, the coefficients to put in their place.
    """
    if how == "weights-no-bias":
        return key_biases(model)
    if how == "mean":
        assert mean_LF is not None
        return [torch.from_numpy(mean_F).to(at) for mean_F, at in zip(mean_LF, model.site_devices, strict=True)]
    return None


def key_biases(model: LoadedModel) -> list[Tensor]:
    """By layer [F]: the bias of the keys, which the product that feeds the activation adds; zeros where none is.

    Found by watching which matrix product's result the activation is given. Raises UnsupportedModelError, naming the
    layer, where it is given something else.
    """
    found: dict[int, Tensor] = {}
    handles = []
    for site, layer in zip(model.sites, decoder_layers(model.decoder, len(model.sites)), strict=True):
        products: list[tuple[Any, Tensor]] = []
        for module in weight_matrices(layer):
            handles.append(module.register_forward_hook(_keep_product(products)))
        handles.append(site.register_forward_pre_hook(_find_bias(products, found)))
    try:
        model.run_body(probe_ids(model.vocabulary))
    finally:
        for handle in handles:
            handle.remove()
    for site in model.sites:
        if site.layer not in found:
            raise UnsupportedModelError(
                f"layer {site.layer} ({site.name}): the activation isn't given a matrix product as it is, so its "
                "bias can't be told; switch neurons off in another way"
            )
    return [found[site.layer] for site in model.sites]


def _keep_product(products: list[tuple[Any, Tensor]]) -> Callable[..., None]:
    def hook(module: Any, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            products.append((module, output))

    return hook


def _find_bias(products: list[tuple[Any, Tensor]], found: dict[int, Tensor]) -> Callable[..., None]:
    def hook(site: Site, args: tuple[Tensor, ...]) -> None:
        pre_BTF = args[0]
        for module, output in products:
            if output.untyped_storage().data_ptr() == pre_BTF.untyped_storage().data_ptr():
                bias: Tensor | None = getattr(module, "bias", None)
                # Gate and up may be the two halves of one product.
                first = pre_BTF.storage_offset() - output.storage_offset()
                zeros_F = pre_BTF.new_zeros(site.num_neurons)
                found[site.layer] = zeros_F if bias is None else bias[first : first + site.num_neurons].clone()
        products.clear()

    return hook


def _replacing(
    model: LoadedModel, layer: int, indices: Sequence[int], how: str, value_LF: Any
) -> Callable[[Site, Tensor, Tensor | None], Tensor]:
    """A sink for a site: the layer's coefficients with some neurons replaced where `how` says."""
    index_n = torch.from_numpy(np.asarray(indices, np.int64)).to(model.site_devices[layer])
    value_n = torch.zeros(len(index_n), device=index_n.device) if value_LF is None else value_LF[layer][index_n]

    def replaced(values: Tensor) -> Tensor:
        # Out of place: an activation may return its own input.
        return values.index_copy(-1, index_n, value_n.to(values.dtype).expand(*values.shape[:-1], -1))

    def sink(site: Site, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        if how.startswith("weights"):
            pre_BTF = replaced(pre_BTF)
        activation_BTF: Tensor = activate(site.act, pre_BTF)
        if how == "activation":
            activation_BTF = replaced(activation_BTF)
        coefficient_BTF = activation_BTF if up_BTF is None else activation_BTF * up_BTF
        return replaced(coefficient_BTF) if how in ("coefficient", "mean") else coefficient_BTF

    return sink
