"""Models larger than their devices: accelerate keeps some weights elsewhere, and brings each in while it is used.

Meanwhile a parameter is on the device `meta`, which has no values: neither its device nor its contents say anything.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def is_offloaded(model: nn.Module) -> bool:
    """Whether some of the model's weights are brought in only while they are used."""
    return any(parameter.is_meta for parameter in model.parameters())


def input_device(model: Any) -> torch.device:
    """Where token ids go; `meta` where the model has no weights at all."""
    embedding = model.get_input_embeddings()
    device: torch.device = embedding.weight.device
    if device.type != "meta":
        return device
    return next((torch.device(hook.execution_device) for hook in _hooks(embedding) if hook.execution_device), device)


def own_tensors(module: nn.Module) -> tuple[Tensor, ...]:
    """A module's own parameters and buffers, without those of its parts."""
    return (*module.parameters(recurse=False), *module.buffers(recurse=False))


@contextmanager
def brought_in(module: nn.Module) -> Iterator[None]:
    """Within this context the module's own parameters and buffers have values."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None or not any(tensor.is_meta for tensor in own_tensors(module)):
        yield
        return
    hook.pre_forward(module)
    try:
        yield
    finally:
        hook.post_forward(module, None)


def parameter_of(module: nn.Module, name: str) -> Tensor | None:
    """A copy of one of the module's own parameters; None where it has none of that name."""
    with brought_in(module):
        parameter: Tensor | None = getattr(module, name, None)
        return None if parameter is None else parameter.detach().clone()


def _hooks(module: nn.Module) -> list[Any]:
    """accelerate's hooks on a module: none, one, or several in a sequence."""
    hook: Any = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
