"""Check, each time a model is loaded, that what we read is what the model computes.

One short batch of random tokens goes through the bare and the captured model:

- changing later tokens changes no bit of earlier ones (so pads on the right are harmless);
- the hidden states agree (on the CPU to the bit);
- what we call the coefficient is what some weight matrix of the layer reads, after the activation;
- the counts equal those of a plain hook on the activation.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.tally import PAD, TOKEN
from neurotally.profiler.batches import Batch
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.neurons import NeuronRecorder

if TYPE_CHECKING:
    from neurotally.profiler.model import LoadedModel

_ROWS, _COLUMNS, _PADS = 2, 40, 8


def probe_ids(vocabulary: int) -> Tensor:
    """Random token ids [2, 40], always the same."""
    return torch.randint(0, vocabulary, (_ROWS, _COLUMNS), generator=torch.Generator().manual_seed(0))


def verify_causal(run: Callable[[Tensor], Tensor], ids_BT: Tensor, vocabulary: int, model_id: str) -> None:
    """Raise InputError if a token's hidden state depends on a later token."""
    changed_BT = ids_BT.clone()
    changed_BT[:, -_PADS:] = (changed_BT[:, -_PADS:] + 1) % vocabulary
    before = slice(0, _COLUMNS - _PADS)
    if not torch.equal(run(ids_BT)[:, before], run(changed_BT)[:, before]):
        raise InputError(
            f"{model_id} is no causal language model: changing a later token changes an earlier one's hidden state"
        )


def verify_sites(model: "LoadedModel", ids_BT: Tensor) -> None:
    """Raise UnsupportedModelError, naming the layer, where the captured model isn't the bare model."""
    from neurotally.profiler.capture import NeuronReader

    kind_BT = np.full((_ROWS, _COLUMNS), TOKEN, np.uint8)
    kind_BT[1, -_PADS:] = PAD
    zeros_BT = np.zeros((_ROWS, _COLUMNS), np.int32)
    batch = Batch(ids_BT.numpy(), kind_BT, zeros_BT, zeros_BT)
    recorder = NeuronRecorder(model.facts.num_neurons, model.site_devices, num_triggers=0)
    coefficients: list[Tensor] = []
    captured_BTD = NeuronReader(model, recorder).read(batch, on_layer=coefficients.append)
    bare = _BareRun(model, coefficients)
    bare_BTD = bare.run(ids_BT)
    if not _agree(bare_BTD, captured_BTD):
        raise UnsupportedModelError(
            f"{model.facts.id}: hidden states of the captured and the bare model differ; this model isn't supported"
        )
    counted = torch.from_numpy(kind_BT == TOKEN)
    for site, tally in zip(model.sites, recorder.tallies, strict=True):
        pre_BTF = bare.pre[site.layer].view(_ROWS, _COLUMNS, -1)
        expected_F = (pre_BTF[counted.to(pre_BTF.device)] > 0).sum(0)
        if model.facts.device_type == "cpu" and not torch.equal(expected_F, tally.active_F):
            raise UnsupportedModelError(f"layer {site.layer} ({site.name}): counts differ from a plain hook's")
        if not bare.is_read[site.layer]:
            raise UnsupportedModelError(
                f"layer {site.layer} ({site.name}): no weight matrix reads the neurons' coefficients; "
                "this feed-forward network isn't supported"
            )


class _BareRun:
    """The model as it is, with plain hooks that look on."""

    def __init__(self, model: "LoadedModel", coefficients: list[Tensor]):
        self._model = model
        self._coefficients = coefficients
        self.pre: dict[int, Tensor] = {}
        self.is_read = [False] * len(model.sites)

    def run(self, ids_BT: Tensor) -> Tensor:
        """Run the bare model; fills `pre` and `is_read`."""
        from neurotally.profiler.sites import decoder_layers, weight_matrices

        handles = []
        layers = decoder_layers(self._model.decoder, len(self._model.sites))
        for site, layer in zip(self._model.sites, layers, strict=True):
            handles.append(site.register_forward_hook(self._keep_pre(site.layer)))
            for module in weight_matrices(layer):
                handles.append(module.register_forward_pre_hook(self._look_at_input(site.layer)))
        try:
            return self._model.run_body(ids_BT)
        finally:
            for handle in handles:
                handle.remove()

    def _keep_pre(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple, _output: Any) -> None:
            self.pre[layer] = args[0]

        return hook

    def _look_at_input(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, args: tuple) -> None:
            expected_BTF = self._coefficients[layer]
            if layer in self.pre and args and args[0].numel() == expected_BTF.numel():
                read_BTF = args[0].view_as(expected_BTF)
                self.is_read[layer] = self.is_read[layer] or _agree(read_BTF, expected_BTF)

        return hook


def _agree(bare: Tensor, captured: Tensor) -> bool:
    """Equal to the bit on the CPU; on a GPU up to 1 element in 10,000 may differ, by one unit in the last place."""
    if bare.device.type == "cpu":
        return torch.equal(bare.nan_to_num(), captured.nan_to_num())
    close = torch.isclose(bare.float(), captured.float(), rtol=2 * torch.finfo(bare.dtype).eps, atol=1e-6)
    return bool(close.float().mean() > 0.999)
