"""RMS norms and rotary embeddings by the fused Triton kernels of Liger-Kernel: `pip install 'neurotally[fused]'`.

Hugging Face's go over memory up to ten times, Liger's once. They round otherwise, so that hidden states differ in their
last bits; what was replaced is part of a store's identity. Each is held against the model's own, on what a short batch
gives it, and one that differs by more than rounding stays the model's own, as does what there is no kernel for. Sums of
residuals stay, too: they stand in the forward methods of each family's layers, which are left as they are.
"""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from operator import itemgetter
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neurotally.profiler.errors import InputError
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.overrides import in_place
from neurotally.profiler.model.stacks import Stack
from neurotally.profiler.model.verify import probe_ids

_ROTATE = "apply_rotary_pos_emb"
"""What transformers' families call the function that rotates queries and keys."""
_EPSILONS = ("variance_epsilon", "eps", "epsilon")
_VARIANTS = (("llama", 0.0), ("gemma", 1.0), ("gemma", 0.0))
"""Of RMS norms: where they round, in Liger's words, and what is added to the weight."""

Rotation = tuple[Tensor, Tensor]
"""Queries and keys."""


class Seen(NamedTuple):
    """What a short batch gave the parts that could be replaced, and what these made of it."""

    norms: dict[nn.Module, tuple[Tensor, Tensor]]
    rotations: dict[ModuleType, tuple[tuple[Tensor, ...], Rotation]]
    """By the module of the family's code."""


@torch.inference_mode()
def fuse(model: HookedModel) -> str:
    """Put fused kernels in place of a model's norms and rotary embeddings; returns what was replaced, in words.

    Raises InputError where Liger-Kernel isn't installed, where the model
    isn't on GPUs, and where nothing of it can be replaced.
    """
    rms_norm, rotate = _kernels(model.stacks)
    seen = _watch(model)
    num_norms = 0
    for module, (x, y) in seen.norms.items():
        if (fused := _nearest_norm(module, rms_norm, x, y)) is not None:
            module.forward = fused  # type: ignore[method-assign]
            num_norms += 1
    rotated = [code for code, (given, made) in seen.rotations.items() if _rotates_alike(rotate, given, made)]
    for stack in model.stacks:
        for code in rotated:
            _rotate_by(rotate, code, stack.module)
    if not num_norms and not rotated:
        raise InputError(
            f"--fused: {model.name} has no norms and no rotary embeddings for which Liger-Kernel has a kernel"
        )
    rotary = ", rotary embeddings" if rotated else ""
    return f"liger-kernel {version('liger-kernel')}: {num_norms} of {len(seen.norms)} norms{rotary}"


def _kernels(stacks: tuple[Stack, ...]) -> tuple[Callable[..., Tensor], Callable[..., Rotation]]:
    try:
        from liger_kernel.transformers.functional import liger_rms_norm, liger_rope
        from triton import knobs
    except ImportError as error:
        raise InputError(f"--fused: {error}; pip install 'neurotally[fused]'") from error
    types = {parameter.device.type for stack in stacks for parameter in stack.module.parameters()}
    if types != {"cuda"} and not knobs.runtime.interpret:
        raise InputError(f"--fused needs a model that is whole on GPUs: this one is on {' and '.join(sorted(types))}")
    return liger_rms_norm, liger_rope


def _watch(model: HookedModel) -> Seen:
    """What a short batch gives the parts."""
    seen, ids_BT = Seen({}, {}), probe_ids(model.vocabulary)
    parts = [part for stack in model.stacks for part in stack.module.modules()]

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if len(args) == 1 and not kwargs and isinstance(output, Tensor):
            seen.norms.setdefault(module, (args[0].clone(), output.clone()))

    def watched(code: ModuleType, own: Callable[..., Rotation], *args: Any, **kwargs: Any) -> Rotation:
        given = tuple(one.clone() for one in args) if _is_plain(args, kwargs) else None
        made = own(*args, **kwargs)
        if given is not None:
            seen.rotations.setdefault(code, (given, made))
        return made

    with ExitStack() as watching:
        for part in parts:
            if _may_be_norm(part):
                watching.enter_context(part.register_forward_hook(keep, with_kwargs=True))
        for code in {sys.modules[type(part).__module__] for part in parts}:
            if (own := getattr(code, _ROTATE, None)) is not None:
                watching.enter_context(in_place(code, _ROTATE, partial(watched, code, own)))
        model.run_body(ids_BT, decoder_ids_BT=ids_BT)
    return seen


def _may_be_norm(module: nn.Module) -> bool:
    """Whether a weight for each column is all that it has; offloaded ones (accelerate's hooks) stay as they are."""
    names = [name for name, _ in module.named_parameters()]
    return names == ["weight"] and module.weight.dim() == 1 and not hasattr(module, "_hf_hook")  # type: ignore[operator]


def _nearest_norm(
    module: nn.Module, rms_norm: Callable[..., Tensor], x: Tensor, y: Tensor
) -> Callable[[Tensor], Tensor] | None:
    """Of the fused norms that agree with a module's own the one that differs in fewest elements."""
    epsilon = next((value for name in _EPSILONS if isinstance(value := getattr(module, name, None), float)), None)
    if epsilon is None or x.dtype != y.dtype or x.shape != y.shape or x.shape[-1:] != module.weight.shape:  # type: ignore[union-attr]
        return None
    found: list[tuple[int, Callable[[Tensor], Tensor]]] = []
    for mode, offset in _VARIANTS:

        def fused(x: Tensor, mode: str = mode, offset: float = offset) -> Tensor:
            return rms_norm(x, module.weight, epsilon, offset, mode, False)

        made = fused(x)
        if _only_round(made, y, y.abs()):
            found.append((int((made != y).sum()), fused))
    return min(found, key=itemgetter(0))[1] if found else None


def _rotates_alike(rotate: Callable[..., Rotation], given: tuple[Tensor, ...], made: Rotation) -> bool:
    q, k, cos, sin = given
    if q.shape[-1] != cos.shape[-1] or cos.dim() != 3:
        return False
    return all(
        _only_round(ours, theirs, before.abs().amax(-1, keepdim=True))
        for ours, theirs, before in zip(rotate(q.clone(), k.clone(), cos, sin), made, (q, k), strict=True)
    )


def _only_round(ours: Tensor, theirs: Tensor, size: Tensor) -> bool:
    """Whether two results differ by no more than rounding of numbers of this size."""
    units = 16 if theirs.dtype == torch.float32 else 2  # a norm's sum over a row is taken in another order
    limit = units * torch.finfo(theirs.dtype).eps * size.double()
    return ours.dtype == theirs.dtype and bool(((ours.double() - theirs.double()).abs() <= limit).all())


def _rotate_by(rotate: Callable[..., Rotation], code: ModuleType, body: nn.Module) -> None:
    """While a body runs, its family's code rotates by the fused kernel; other models of the family don't."""
    own = getattr(code, _ROTATE)

    def rotated(*args: Any, **kwargs: Any) -> Rotation:
        return rotate(*args) if _is_plain(args, kwargs) else own(*args, **kwargs)

    body.register_forward_pre_hook(lambda *_: setattr(code, _ROTATE, rotated))
    body.register_forward_hook(lambda *_: setattr(code, _ROTATE, own), always_call=True)


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether queries, keys, cosines and sines are all that a rotation is given."""
    return len(args) == 4 and not kwargs and all(isinstance(one, Tensor) for one in args)
