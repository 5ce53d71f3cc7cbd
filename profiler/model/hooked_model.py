"""A causal language model with hook points at its feed-forward networks, found once and verified."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.decoder import decoder_layers, find_decoder, run_decoder
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.offloading import input_device
from neurotally.profiler.networks import Network, Networks, are_alike


@dataclass(frozen=True)
class HookedModel:
    """A model with a hook point at each of its feed-forward networks, ready to run."""

    model: Any
    """As transformers has it."""
    name: str
    decoder: nn.Module
    """Its body."""
    blocks: nn.ModuleList
    """The decoder's layers."""
    hook_points: list[HookPoint]
    """By layer, then by first neuron."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.blocks)

    @property
    def num_neurons(self) -> int:
        """Neurons of the widest layer."""
        return max(point.first + point.width for point in self.hook_points)

    @property
    def has_experts(self) -> bool:
        """Whether some neurons are in a mixture's experts."""
        return any(isinstance(point, ExpertsHookPoint) for point in self.hook_points)

    @property
    def networks(self) -> Networks:
        """Where its neurons are; empty where every layer is one network of the same width."""
        networks = tuple(_network(point) for point in self.hook_points)
        return () if are_alike(networks, self.num_layers) else networks

    @property
    def devices(self) -> list[torch.device]:
        """Where each network computes."""
        return [point.device for point in self.hook_points]

    @property
    def input_device(self) -> torch.device:
        """Where token ids go."""
        return input_device(self.model)

    @property
    def vocabulary(self) -> int:
        """Token ids that the model knows: the rows of its input embedding."""
        size: int = self.model.get_input_embeddings().weight.shape[0]
        return size

    def places(self, layer: int, neurons: Sequence[int]) -> list[tuple[HookPoint, np.ndarray, Tensor]]:
        """The hook points of a layer that have some of these neurons, with int64 [n] twice.

        Which of `neurons` they have, and their numbers in the network, on its device. InputError where there is no such
        layer or neuron.
        """
        if not 0 <= layer < self.num_layers:
            raise InputError(f"{self.name} has no layer {layer}; expected 0 to {self.num_layers - 1}")
        points = [point for point in self.hook_points if point.layer == layer]
        number_n, width = np.asarray(neurons, np.int64), sum(point.width for point in points)
        if wrong := [number for number in number_n.tolist() if not 0 <= number < width]:
            raise InputError(f"layer {layer} has no neuron {wrong[0]}; expected 0 to {width - 1}")
        found = []
        for point in points:
            which_n = np.flatnonzero((number_n >= point.first) & (number_n < point.first + point.width))
            if len(which_n):
                found.append((point, which_n, torch.from_numpy(number_n[which_n] - point.first).to(point.device)))
        return found

    def run_body(self, ids_BT: Tensor) -> Tensor:
        """The last hidden states [B, T, D] of right-padded rows."""
        return run_decoder(self.model, self.decoder, ids_BT)


def _network(point: HookPoint) -> Network:
    experts = point.num_experts if isinstance(point, ExpertsHookPoint) else None
    return Network(point.layer, point.first, point.width // (experts or 1), experts, point.name)


def find_body(model: Any, name: str) -> tuple[nn.Module, nn.ModuleList]:
    """The decoder of a model, and its layers."""
    config = model.config.get_text_config()
    num_layers = getattr(config, "num_hidden_layers", None)
    if not num_layers:
        raise UnsupportedModelError(
            f"{name} ({config.model_type}): its config says num_hidden_layers={num_layers!r}, expected 1 or more; "
            "this model isn't supported"
        )
    decoder = find_decoder(model, num_layers)
    return decoder, decoder_layers(decoder, num_layers)
