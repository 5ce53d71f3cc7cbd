"""A causal language model with hook points at its feed-forward networks, found once and verified."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.decoder import decoder_layers, find_decoder, run_decoder
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.offloading import input_device


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
    """By layer."""

    @property
    def devices(self) -> list[torch.device]:
        """Where each layer computes."""
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

    def hook_point(self, layer: int) -> HookPoint:
        """That of a layer; InputError where there is no such layer."""
        if not 0 <= layer < len(self.hook_points):
            raise InputError(f"{self.name} has no layer {layer}; expected 0 to {len(self.hook_points) - 1}")
        return self.hook_points[layer]

    def run_body(self, ids_BT: Tensor) -> Tensor:
        """The last hidden states [B, T, D] of right-padded rows."""
        return run_decoder(self.model, self.decoder, ids_BT)


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
