"""Find the hook points of a model: one short batch goes through, and watchers see how its networks are put together.

A decoder layer has one activation module: act in `down(act(gate(x)) · up(x))` or in `fc2(act(fc1(x)))`. It is found by
its class wherever the layer keeps it (OPT has no module for the network at all). What it is given tells the keys, as
the matrix product, or the part of one, whose memory it is. Its result is marked, and the mark goes on from op to op:
to a product with a tensor of the same shape, which makes the network gated and tells `up`, and to the weight matrix
that reads it, the down projection.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.decoder import find_experts, is_activation, weight_matrices
from neurotally.profiler.model.hook_points import PRODUCTS, HookPoint


def find_hook_points(decoder: nn.Module, blocks: nn.ModuleList, run: Callable[[], object]) -> list[HookPoint]:
    """The hook point of each block's network; nothing is installed. `run` passes a short batch through the model.

    Raises UnsupportedModelError, naming the layer, where a network isn't one we can read.
    """
    names = {module: name for name, module in decoder.named_modules()}
    watchers = [_Watcher(layer, block, names) for layer, block in enumerate(blocks)]
    with ExitStack() as stack:
        for watcher in watchers:
            stack.enter_context(watcher.watching())
        run()
    points = [watcher.hook_point() for watcher in watchers]
    for point in points:
        if point.width != points[0].width:
            raise UnsupportedModelError(
                f"{point} has {point.width} neurons, layer 0 has {points[0].width}; models whose layers differ in "
                "width aren't supported"
            )
    return points


class _Watcher(nn.Module):
    """Stands in for a block's activation module while the probe runs, and looks at the block's weight matrices."""

    def __init__(self, layer: int, block: nn.Module, names: dict[nn.Module, str]):
        super().__init__()
        self.layer = layer
        self.place = _only_activation(layer, block, names)
        parent, attribute = self.place
        self.name = f"{names[parent]}.{attribute}"
        self.act = getattr(parent, attribute)
        self.matrices = tuple(weight_matrices(block))
        self.products: list[tuple[nn.Module, Tensor]] = []
        self.keys: tuple[nn.Module, int] | None = None
        self.up: tuple[nn.Module, int] | None = None
        self.found_down: tuple[nn.Module, ...] = ()
        """One at most; in a tuple, since it is no part of this module."""
        self.gated: bool | None = None
        self.width = 0
        self.device = torch.device("meta")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context it stands in the activation's place."""
        with ExitStack() as hooks:
            for module in self.matrices:
                hooks.enter_context(module.register_forward_hook(self._keep_product))
                hooks.enter_context(module.register_forward_pre_hook(self._look_at_input))
            setattr(*self.place, self)
            try:
                yield
            finally:
                setattr(*self.place, self.act)

    def forward(self, pre_BTF: Tensor) -> Tensor:
        self.width, self.device = pre_BTF.shape[-1], pre_BTF.device
        self.keys = self._product(pre_BTF)
        return self._marked(self.act(pre_BTF))

    def follow(self, func: Any, operands: list[Tensor], result: Tensor) -> Tensor:
        """See what a marked tensor went into; the result is marked if it is still what the down projection reads."""
        if self.found_down:
            return result
        if len(operands) < 2:  # a view, a dropout that is off: still the same values
            return self._marked(result)
        is_product = func in PRODUCTS and len(operands) == 2 and operands[0].shape == operands[1].shape
        if self.gated is None and is_product:
            self.gated = True
            self.up = self._product(operands[isinstance(operands[0], _Marked)])
            return self._marked(result)
        self.gated = bool(self.gated)
        return result

    def hook_point(self) -> HookPoint:
        """What was seen; UnsupportedModelError where it is no network that we can read."""
        if self.gated is None or not self.found_down:
            why = "no weight matrix reads what we take for the neurons' coefficients"
            if self.gated is None:
                why = "the activation never reached a matrix product"
            raise UnsupportedModelError(
                f"layer {self.layer} ({self.name}): {why}; this feed-forward network isn't supported"
            )
        return HookPoint(
            layer=self.layer, name=self.name, activation=self.act, place=self.place, gated=self.gated, keys=self.keys,
            up=self.up, down=self.found_down[0], width=self.width, device=self.device,
        )  # fmt: skip

    def _marked(self, tensor: Tensor) -> Tensor:
        marked: Tensor = tensor.as_subclass(_Marked)
        marked._watcher = self  # type: ignore[attr-defined]
        return marked

    def _keep_product(self, module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not self.found_down:
            self.products.append((module, output))

    def _look_at_input(self, module: nn.Module, args: tuple) -> None:
        if args and getattr(args[0], "_watcher", None) is self and not self.found_down:
            self.found_down = (module,)
            self.gated = bool(self.gated)
            self.products.clear()

    def _product(self, values_BTF: Tensor) -> tuple[nn.Module, int] | None:
        """The matrix in whose product's memory a tensor is, and the first of its columns there."""
        for module, output in reversed(self.products):
            if output.untyped_storage().data_ptr() == values_BTF.untyped_storage().data_ptr():
                return module, int(values_BTF.storage_offset()) - int(output.storage_offset())
        return None


class _Marked(Tensor):
    """A tensor that tells its watcher what becomes of it."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        operands = [arg for arg in args if isinstance(arg, Tensor)]
        watcher = next((arg._watcher for arg in operands if hasattr(arg, "_watcher")), None)
        return watcher.follow(func, operands, result) if watcher is not None and isinstance(result, Tensor) else result


def _only_activation(layer: int, block: nn.Module, names: dict[nn.Module, str]) -> tuple[nn.Module, str]:
    """Which module of a block has its one activation, and under which name."""
    if experts := find_experts(block):
        raise UnsupportedModelError(
            f"layer {layer} ({names[block]}.{experts[0]}): its neurons are in experts (mixture of experts), which "
            "isn't supported yet"
        )
    places = [
        (parent, attribute)
        for parent in block.modules()
        for attribute, child in parent.named_children()
        if is_activation(child)
    ]
    if len(places) != 1:
        what = ", ".join(f"{names[parent]}.{attribute}" for parent, attribute in places) or "none"
        raise UnsupportedModelError(
            f"layer {layer} ({names[block]}): expected one activation module, found {what}; "
            "this feed-forward network isn't supported"
        )
    return places[0]
