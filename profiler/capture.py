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

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels import tally
from neurotally.kernels.tally import LayerTally, RowMaxima, Statistics
from neurotally.profiler.batches import Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model import LoadedModel
from neurotally.profiler.neurons import NeuronRecorder
from neurotally.profiler.offloading import is_offloaded, parameter_of
from neurotally.profiler.sites import Edit, Edited, Site, decoder_layers, editing, reading, weight_matrices
from neurotally.profiler.staging import StagedBatch, staged
from neurotally.profiler.verify import probe_ids

WAYS = ("activation", "coefficient", "weights", "weights-no-bias", "mean")
"""How a neuron can be switched off."""

OnLayer = Callable[[Site, Tensor, "Tensor | None", Tensor], Tensor]
"""Called with the site, its pre-activations, `up` (None in a plain FFN) and coefficients, [B, T, F] each; returns what
the down projection reads instead."""


class NeuronReader:
    """Runs batches through a model's body and lets a recorder add up what its neurons do."""

    def __init__(self, model: LoadedModel, recorder: NeuronRecorder, statistics: Statistics = Statistics.EVERYTHING):
        self._model = model
        self._recorder = recorder
        self._statistics = statistics

    def tally(self, batches: Iterable[Batch]) -> None:
        """Run batches, each as far as the last site: nothing that comes after it decides a statistic."""
        # Weights that accelerate brings in are put back by hooks at the end of a module's forward pass.
        to_the_end = is_offloaded(self._model.model)
        for batch in staged(batches, self._model.input_device, self._model.site_devices):
            self._run(batch, None, to_the_end)

    def read(self, batch: Batch, on_layer: OnLayer | None = None) -> Tensor:
        """Run one batch to the end; returns the last hidden states [B, T, D].

        `on_layer` is shown each layer in turn.
        """
        (one,) = staged([batch], self._model.input_device, self._model.site_devices)
        hidden_BTD = self._run(one, on_layer, to_the_end=True)
        assert hidden_BTD is not None
        return hidden_BTD

    def _run(self, batch: StagedBatch, on_layer: OnLayer | None, to_the_end: bool) -> Tensor | None:
        seen: list[int] = []

        def read(site: Site, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
            # Some families run the FFN on [B·T, F].
            shape = pre_BTF.shape
            rows = (*batch.ids_BT.shape, -1)
            pre_BTF, up_BTF = pre_BTF.view(rows), None if up_BTF is None else up_BTF.view(rows)
            read_BTF = self._read(site, pre_BTF, up_BTF, batch)
            seen.append(site.layer)
            if on_layer is not None:
                read_BTF = on_layer(site, pre_BTF, up_BTF, read_BTF)
            if not to_the_end and len(seen) == len(self._model.sites):
                raise _LastSiteRead
            return read_BTF.view(shape)

        hidden_BTD = None
        with suppress(_LastSiteRead), reading(self._model.sites, read):
            hidden_BTD = self._model.run_body(batch.ids_BT)
        runs = Counter(seen)
        for site in self._model.sites:
            if (times := runs[site.layer]) != 1:
                raise UnsupportedModelError(
                    f"layer {site.layer} ({site.name}) runs {times} times in a forward pass, expected once; "
                    "this model isn't supported"
                )
        return hidden_BTD

    def _read(self, site: Site, pre_BTF: Tensor, up_BTF: Tensor | None, batch: StagedBatch) -> Tensor:
        """Tally one layer of a batch; the coefficients that the down projection reads."""
        kind_BT, document_BT, position_BT = batch.tables[pre_BTF.device]
        into = self._recorder.tallies[site.layer]
        edited = site.edited(pre_BTF, up_BTF) if site.edits else None
        before = None if edited is None else LayerTally(*(sums_F[site.edited_n] for sums_F in into))
        if up_BTF is None:
            read_BTF, maxima = tally.plain(site.act, pre_BTF, kind_BT, into, self._statistics)
        else:
            read_BTF, maxima = tally.gated(site.act, pre_BTF, up_BTF, kind_BT, into, self._statistics)
        if edited is not None and before is not None:
            read_BTF, maxima = _tally_edited(
                edited, site.edited_n, before, kind_BT, into, self._statistics, read_BTF, maxima
            )
        if self._statistics == Statistics.EVERYTHING:
            self._recorder.offer(site.layer, maxima, document_BT, position_BT)
        return read_BTF


def _tally_edited(
    edited: Edited, index_n: Tensor, before: LayerTally, kind_BT: Tensor, into: LayerTally, statistics: Statistics,
    read_BTF: Tensor, maxima: RowMaxima,
) -> tuple[Tensor, RowMaxima]:  # fmt: skip
    """Put the edited neurons `index_n` in their place, in a layer that was tallied as if it had no edits.

    `before`: their tallies before this batch. Returns what the down projection reads and the row maxima; neurons
    that no edit touches keep theirs, bitwise.
    """
    pre_BTn, activation_BTn, coefficient_BTn = (values_BTF[..., index_n] for values_BTF in edited)
    maxima_n = tally.tally_reference(pre_BTn, activation_BTn, coefficient_BTn, kind_BT, before, statistics)
    for sums_F, sums_n in zip(into, before, strict=True):
        sums_F[index_n] = sums_n
    columns = (values.index_copy(-1, index_n, new) for values, new in zip(maxima, maxima_n, strict=True))
    return read_BTF.index_copy(-1, index_n, coefficient_BTn), RowMaxima(*columns)


class _LastSiteRead(Exception):
    """Ends a forward pass that has nothing left to tell."""


@contextmanager
def switched_off(
    model: LoadedModel, neurons: Mapping[int, Sequence[int]], how: str = "activation", value_LF: Any = None
) -> Iterator[None]:
    """Within this context `neurons` (layer: their numbers) are switched off: one of `WAYS`.

    `value_LF[layer]` [F]: what they become; see `replacements`. Weights are never touched. Contexts may be nested, and
    a reader reads the masked model, whichever was entered first.
    """
    if how not in WAYS:
        raise ValueError(f"how {how!r}: expected one of {', '.join(WAYS)}")
    sites = [model.sites[layer] for layer in neurons]
    edits = [_edit(site, indices, how, value_LF) for site, indices in zip(sites, neurons.values(), strict=True)]
    with editing(sites, edits):
        yield


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
                bias = parameter_of(module, "bias")
                # Gate and up may be the two halves of one product.
                first = pre_BTF.storage_offset() - output.storage_offset()
                zeros_F = pre_BTF.new_zeros(site.num_neurons)
                found[site.layer] = zeros_F if bias is None else bias[first : first + site.num_neurons]
        products.clear()

    return hook


_STAGES: dict[str, Literal["pre", "activation", "coefficient"]] = {
    "activation": "activation", "coefficient": "coefficient", "mean": "coefficient", "weights": "pre",
    "weights-no-bias": "pre",
}  # fmt: skip


def _edit(site: Site, indices: Sequence[int], how: str, value_LF: Any) -> Edit:
    index_n = torch.from_numpy(np.unique(np.asarray(indices, np.int64))).to(site.device)
    value_n = torch.zeros(len(index_n), device=site.device) if value_LF is None else value_LF[site.layer][index_n]
    return Edit(_STAGES[how], index_n, value_n)
