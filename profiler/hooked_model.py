"""A causal language model with hook points at its feed-forward networks, found once and verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.profiler.decoder import decoder_layers, find_decoder, run_decoder
from neurotally.profiler.errors import InputError, UnsupportedModelError, first_line
from neurotally.profiler.hook_points import HookPoint, StandIn
from neurotally.profiler.offloading import input_device
from neurotally.profiler.probe import find_hook_points


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


def hook_model(model: Any, name: str) -> HookedModel:
    """Install hook points in a causal `PreTrainedModel` and verify them; one that has them keeps them.

    Raises InputError, naming model or layer, where it isn't one we can read; nothing is installed then.
    """
    from neurotally.profiler import verify

    decoder, blocks = find_body(model, name)
    installed = [part.hook_point for part in blocks.modules() if isinstance(part, StandIn)]
    if installed:
        return HookedModel(model, name, decoder, blocks, installed)
    ids_BT = verify.probe_ids(model.get_input_embeddings().weight.shape[0])
    with _evaluating(model), _refused_if_it_fails(name):
        points = find_hook_points(decoder, blocks, lambda: run_decoder(model, decoder, ids_BT))
        made = HookedModel(model, name, decoder, blocks, points)
        verify.verify_causal(made, ids_BT)
        try:
            for point in points:
                point.install()
            verify.verify_hook_points(made, ids_BT)
        except BaseException:
            for point in points:
                point.take_out()
            raise
    return made


def hooked(model: HookedModel | Any) -> HookedModel:
    """The model with its hook points; a plain `PreTrainedModel` that has none gets them."""
    if isinstance(model, HookedModel):
        return model
    return hook_model(model, getattr(model.config, "name_or_path", "") or type(model).__name__)


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


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context the model is in eval mode."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
        for part in model.modules():
            if isinstance(part, StandIn):
                part.training = part.hook_point.activation.training


@contextmanager
def _refused_if_it_fails(name: str) -> Iterator[None]:
    """Within this context a short batch goes through code that isn't ours; where that fails the model is refused."""
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise UnsupportedModelError(
            f"{name} isn't supported: a short batch of token ids through its body ended in "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
