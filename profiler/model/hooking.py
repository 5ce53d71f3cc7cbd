"""Install hook points in a model, found once and verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from neurotally.profiler.errors import InputError, UnsupportedModelError, first_line
from neurotally.profiler.model import verify
from neurotally.profiler.model.hook_points import HookPoint, StandIn
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.probe import find_hook_points
from neurotally.profiler.model.stacks import Stack, find_stacks
from neurotally.profiler.networks import DECODER, ENCODER


def hook_model(model: Any, name: str) -> HookedModel:
    """Install hook points in a `PreTrainedModel` and verify them; one that has them keeps them.

    Raises InputError, naming model or layer, where it isn't one we can read; nothing is installed then.
    """
    stacks = find_stacks(model, name)
    parts = [part for stack in stacks for part in stack.blocks.modules()]
    installed = [point for part in parts if (point := _installed_at(part)) is not None]
    if installed:
        installed = sorted(set(installed), key=lambda point: (point.layer, point.first))
        return HookedModel(model, name, stacks, installed)
    ids_BT = verify.probe_ids(model.get_input_embeddings().weight.shape[0])
    with _evaluating(model), _refused_if_it_fails(name):
        points = points_of(model, stacks, ids_BT)
        made = HookedModel(model, name, stacks, points)
        if len(stacks) == 1 and verify.sees_later_tokens(made, ids_BT):
            for point in points:
                point.stack = ENCODER
        if made.sees_later_tokens:
            verify.verify_masks(made, ids_BT)
        if made.is_encoder_decoder:
            verify.verify_decoder(made, ids_BT)
        try:
            for point in points:
                point.install()
            verify.verify_hook_points(made, ids_BT)
        except BaseException:
            for point in points:
                point.take_out()
            raise
    return made


def points_of(model: Any, stacks: tuple[Stack, ...], ids_BT: torch.Tensor) -> list[HookPoint]:
    """The hook points of all stacks, layers numbered through."""
    bare = HookedModel(model, "", stacks, [])
    points: list[HookPoint] = []
    first = 0
    for stack in stacks:
        for point in find_hook_points(*stack, lambda: bare.run_body(ids_BT, decoder_ids_BT=ids_BT)):
            point.layer += first
            if len(stacks) > 1:
                is_encoder = stack is stacks[0]
                point.name = f"{'encoder' if is_encoder else 'decoder'}.{point.name}"
                point.stack = ENCODER if is_encoder else DECODER
            points.append(point)
        first += len(stack.blocks)
    return points


def hooked(model: HookedModel | Any) -> HookedModel:
    """The model with its hook points; a plain `PreTrainedModel` that has none gets them."""
    if isinstance(model, HookedModel):
        return model
    return hook_model(model, getattr(model.config, "name_or_path", "") or type(model).__name__)


def _installed_at(module: nn.Module) -> HookPoint | None:
    """The hook point that stands at a module already."""
    if isinstance(module, StandIn):
        return module.hook_point
    held = (getattr(hook, "__self__", None) for hook in module._forward_pre_hooks.values())
    return next((point for point in held if isinstance(point, HookPoint)), None)


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
