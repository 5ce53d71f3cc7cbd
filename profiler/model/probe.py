"""Find the hook points of a model: one short batch goes through, and watchers see how its networks are put together.

A decoder layer has one activation module: act in `down(act(gate(x)) · up(x))` or in `fc2(act(fc1(x)))`. It is found by
its class wherever the layer keeps it (OPT has no module for the network at all). What it is given tells the keys, as
the matrix product, or the part of one, whose memory it is. Its result is marked, and the mark goes on from op to op:
to a product with a tensor of the same shape, which makes the network gated and tells `up`, and to the weight matrix
that reads it, the down projection. A layer with experts may have further networks: a shared expert, a dense one; of its
other activations those count that are given a matrix product and read by one.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.decoder import find_experts, is_activation, weight_matrices
from neurotally.profiler.model.experts import experts_hook_point, is_experts
from neurotally.profiler.model.hook_points import PRODUCTS, HookPoint


def find_hook_points(decoder: nn.Module, blocks: nn.ModuleList, run: Callable[[], object]) -> list[HookPoint]:
    """The hook points of the blocks' networks, by layer; nothing is installed. `run` passes a short batch through.

    Raises UnsupportedModelError, naming the layer, where a network isn't one we can read.
    """
    names = {module: name for name, module in decoder.named_modules()}
    by_block = [_candidates(layer, block, names) for layer, block in enumerate(blocks)]
    with ExitStack() as stack:
        for candidate in itertools.chain.from_iterable(by_block):
            if isinstance(candidate, _Watcher):
                stack.enter_context(candidate.watching())
        run()
    return [point for layer, candidates in enumerate(by_block) for point in _points_of(layer, candidates, names)]


def _points_of(
    layer: int, candidates: Sequence["_Watcher | nn.Module"], names: dict[nn.Module, str]
) -> Iterator[HookPoint]:
    """The networks among a block's candidates; the rest are a router's or a mixer's activations."""
    watchers = [candidate for candidate in candidates if isinstance(candidate, _Watcher)]
    is_alone = len(candidates) == 1  # then it must be a network, and says why where it is none
    networks = {watcher for watcher in watchers if is_alone or watcher.is_network}
    if len(watchers) == len(candidates) and len(networks) != 1:  # without experts
        what = ", ".join(watcher.name for watcher in watchers)
        raise UnsupportedModelError(
            f"layer {layer}: expected one feed-forward network, found {len(networks)} among the activation modules "
            f"{what}; this layer isn't supported"
        )
    first = 0
    for candidate in candidates:
        if not isinstance(candidate, _Watcher):
            point: HookPoint = experts_hook_point(layer, names[candidate], first, candidate)
        elif candidate in networks:
            point = candidate.hook_point(first)
        else:
            continue
        yield point
        first += point.width


def _candidates(layer: int, block: nn.Module, names: dict[nn.Module, str]) -> list["_Watcher | nn.Module"]:
    """What may be networks of a block, in the order of its modules: experts, and other activations, each watched."""
    experts = [module for module in block.modules() if is_experts(module)]
    if not experts and (others := find_experts(block)):
        raise UnsupportedModelError(
            f"layer {layer} ({names[block]}.{others[0]}): its neurons are in experts that don't go through "
            "transformers' experts interface (mixture of experts), which isn't supported yet"
        )
    within = {part for module in experts for part in module.modules()}
    places = [
        (parent, attribute)
        for parent in block.modules()
        for attribute, child in parent.named_children()
        if is_activation(child) and parent not in within
    ]
    if not experts and not places:
        raise UnsupportedModelError(
            f"layer {layer} ({names[block]}): expected one activation module, found none; "
            "this feed-forward network isn't supported"
        )
    order = list(block.modules())
    found: list[tuple[int, _Watcher | nn.Module]] = [(order.index(module), module) for module in experts]
    found += [(order.index(getattr(*place)), _Watcher(layer, block, place, names)) for place in places]
    return [candidate for _, candidate in sorted(found, key=lambda entry: entry[0])]


class _Watcher(nn.Module):
    """Stands in for a block's activation module while the probe runs, and looks at the block's weight matrices."""

    def __init__(self, layer: int, block: nn.Module, place: tuple[nn.Module, str], names: dict[nn.Module, str]):
        super().__init__()
        self.layer = layer
        self.place = place
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

    @property
    def is_network(self) -> bool:
        """Whether a weight matrix reads what became of it: its product with one of a matrix, or that of its own.

        In a gated network the keys may have been scaled, or some of them cut off.
        """
        return bool(self.found_down) and (self.up if self.gated else self.keys) is not None

    def hook_point(self, first: int) -> HookPoint:
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
            up=self.up, down=self.found_down[0], width=self.width, device=self.device, first=first,
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
