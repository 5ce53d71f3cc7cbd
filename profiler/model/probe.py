"""Find the hook points of a model: one short batch goes through, and watchers see how its networks are put together.

A decoder layer has one activation module: act in `down(act(gate(x)) · up(x))` or in `fc2(act(fc1(x)))`. It is found by
its class wherever the layer keeps it (OPT has no module for the network at all). What it is given tells the keys, as
the matrix product, or the part of one, whose memory it is. Its result is marked, and the mark goes on from op to op:
to a product with a tensor of the same shape, which makes the network gated and tells `up`, and to the weight matrix
that reads it, the down projection. A layer with experts may have further networks: a shared expert, a dense one; of its
other activations those count that are given a matrix product and read by one.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.decoder import find_experts, is_activation, norms, weight_matrices
from neurotally.profiler.model.experts import has_interface, interface_experts
from neurotally.profiler.model.functional import FunctionHookPoint, find_functional
from neurotally.profiler.model.hook_points import PRODUCTS, HookPoint
from neurotally.profiler.model.own_experts import has_own_experts, own_experts

_NO_NETWORK = re.compile(r"(norm|adapter|residual|router)$", re.IGNORECASE)
"""Classes of modules that may have two matrices and an activation, and are no layer's network: gates of norms (AXK2),
adapters (X-MOD), gates of residuals (Qwen 4), routers (Zaya)."""
_NETWORK = re.compile(r"mlp|ffn|feed_?forward|intermediate|experts", re.IGNORECASE)
"""Names of networks, and of their classes: a layer without a network has none such."""
_NETWORK_CLASS = re.compile(r"(mlp|ffn|feed_?forward|experts)$", re.IGNORECASE)
"""Classes of networks: each in a layer must be read."""


def find_hook_points(decoder: nn.Module, blocks: nn.ModuleList, run: Callable[[], object]) -> list[HookPoint]:
    """The hook points of the blocks' networks, by layer; nothing is installed. `run` passes a short batch through.

    Raises UnsupportedModelError, naming the layer, where a network isn't one we can read, and where there is none at
    all; some layers may have none.
    """
    names = {module: name for name, module in decoder.named_modules()}
    layers = [_Layer(layer, block, names) for layer, block in enumerate(blocks)]
    with ExitStack() as stack:
        for watcher in itertools.chain.from_iterable(layer.watchers for layer in layers):
            stack.enter_context(watcher.watching())
        run()
    functional = find_functional(blocks, names, run)
    by_layer = [layer.points(others) for layer, others in zip(layers, functional, strict=True)]
    for layer, points in zip(layers, by_layer, strict=True):
        if not points and any(by_layer) and layer.may_have_one:
            raise UnsupportedModelError(
                f"{layer}: expected a feed-forward network, found none: {layer.why}; this model isn't supported"
            )
    if not any(by_layer):
        raise UnsupportedModelError(
            f"expected feed-forward networks, found none in any layer ({layers[0]}: {layers[0].why}); this model isn't "
            "supported"
        )
    if all(_is_network_alone(block, points) for block, points in zip(blocks, by_layer, strict=True)):
        raise UnsupportedModelError(
            f"{layers[0]} is a feed-forward network and nothing else: what are taken for layers are parts of them; "
            "this model isn't supported"
        )
    return list(itertools.chain.from_iterable(by_layer))


def is_experts(module: nn.Module) -> bool:
    """Whether a module holds experts that we know how to read."""
    return has_interface(module) or has_own_experts(module)


def _is_network_alone(block: nn.Module, points: list[HookPoint]) -> bool:
    """Whether all matrices of a block are those of its network."""
    parts = {part for point in points for part in (point.down, *(of[0] for of in (point.keys, point.up) if of))}
    own = {parameter for part in parts for parameter in part.parameters()}
    return all(parameter.dim() < 2 or parameter in own for parameter in block.parameters())


class _Layer:
    """A decoder layer, and what may be networks of it: experts, and other activation modules, each watched."""

    def __init__(self, layer: int, block: nn.Module, names: dict[nn.Module, str]):
        self._layer, self._block, self._names = layer, block, names
        self._order = list(block.modules())
        self._experts = [module for module in self._order if is_experts(module)]
        if not self._experts and (others := find_experts(block)):
            raise UnsupportedModelError(
                f"{self}.{others[0]}: its neurons are in a mixture of experts of a kind that isn't known; it isn't "
                "supported yet"
            )
        apart = [*self._experts, *(module for module in self._order if _NO_NETWORK.search(type(module).__name__))]
        self._apart = {part for module in apart for part in module.modules()}
        self.watchers = [
            _Watcher(layer, block, (parent, attribute), names)
            for parent in self._order
            for attribute, child in parent.named_children()
            if is_activation(child) and parent not in self._apart
        ]

    def __str__(self) -> str:
        return f"layer {self._layer} ({self._names[self._block]})"

    @property
    def may_have_one(self) -> bool:
        """Whether it looks as if it had a network that wasn't found."""
        is_named = any(_NETWORK.search(f"{name}.{type(part).__name__}") for name, part in self._block.named_modules())
        return is_named or any(watcher.may_be_network for watcher in self.watchers)

    @property
    def why(self) -> str:
        """Why no network that we can read was found."""
        if len(self.watchers) != 1:
            return "no activation stands between two weight matrices"
        return f"{self.watchers[0].name}: {self.watchers[0].why}"

    def points(self, functional: list[FunctionHookPoint]) -> list[HookPoint]:
        """Its networks, in the order of its modules; those of `functional` that have no activation module."""
        watchers = [watcher for watcher in self.watchers if watcher.is_network]
        by_down = {point.down: point for point in functional if point.down not in self._apart}
        for watcher in watchers:
            by_down.pop(watcher.down, None)
        if not self._experts and len(watchers) + len(by_down) > 1:
            what = ", ".join(watcher.name for watcher in self.watchers)
            raise UnsupportedModelError(
                f"layer {self._layer}: expected one feed-forward network, found {len(watchers) + len(by_down)} among "
                f"the activation modules {what}; this layer isn't supported"
            )
        parts: list[tuple[int, _Watcher | FunctionHookPoint | nn.Module]] = [
            *((self._order.index(module), module) for module in self._experts),
            *((self._order.index(watcher.act), watcher) for watcher in watchers),
            *((self._order.index(down), point) for down, point in by_down.items()),
        ]
        points: list[HookPoint] = []
        for _, part in sorted(parts, key=lambda entry: entry[0]):
            first = points[-1].first + points[-1].width if points else 0
            points.append(self._point(part, first))
        self._refuse_missed(points)
        return points

    def _refuse_missed(self, points: list[HookPoint]) -> None:
        """Raise UnsupportedModelError where a layer that is read has a further network by its class that isn't."""
        read = {point.down for point in points}
        within_experts = {part for module in self._experts for part in module.modules()}
        for module in self._order:
            has_matrices = sum(parameter.dim() > 1 for parameter in module.parameters()) > 1
            if not (points and has_matrices and _NETWORK_CLASS.search(type(module).__name__)):
                continue
            if module not in self._apart | within_experts and read.isdisjoint(module.modules()):
                raise UnsupportedModelError(
                    f"layer {self._layer} ({self._names[module]}): {type(module).__name__} seems to be a feed-forward "
                    "network beside those that are read, of a kind that isn't known; this layer isn't supported"
                )

    def _point(self, part: "_Watcher | FunctionHookPoint | nn.Module", first: int) -> HookPoint:
        if isinstance(part, _Watcher):
            return part.hook_point(first)
        if isinstance(part, FunctionHookPoint):
            part.first = first
            return part
        if has_own_experts(part):
            return own_experts(self._layer, self._names[part], first, part, self._block)
        return interface_experts(self._layer, self._names[part], first, part)


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
        self.norms = tuple(norms(block))
        self.products: list[tuple[nn.Module, Tensor]] = []
        self.keys: tuple[nn.Module, int] | None = None
        self.up: tuple[nn.Module, int] | None = None
        self.found_down: tuple[nn.Module, ...] = ()
        """One at most; in a tuple, since it is no part of this module."""
        self.norm: nn.Module | None = None
        """Between coefficients and down projection."""
        self.gated: bool | None = None
        self.is_half = False
        """Whether the product is with another part of what it is given a part of."""
        self.width = self.storage = 0
        self.device = torch.device("meta")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context it stands in the activation's place."""
        with ExitStack() as hooks:
            for module in self.matrices:
                hooks.enter_context(module.register_forward_hook(self._keep_product))
                hooks.enter_context(module.register_forward_pre_hook(self._look_at_input))
            for module in self.norms:
                hooks.enter_context(module.register_forward_pre_hook(self._begin_norm))
                hooks.enter_context(module.register_forward_hook(self._end_norm))
            setattr(*self.place, self)
            try:
                yield
            finally:
                setattr(*self.place, self.act)

    def forward(self, pre_BTF: Tensor) -> Tensor:
        self.width, self.device = pre_BTF.shape[-1], pre_BTF.device
        self.storage = pre_BTF.untyped_storage().data_ptr()
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
            up_BTF = operands[isinstance(operands[0], _Marked)]
            self.up = self._product(up_BTF)
            self.is_half = up_BTF.untyped_storage().data_ptr() == self.storage
            return self._marked(result)
        self.gated = bool(self.gated)
        return result

    @property
    def is_network(self) -> bool:
        """Whether a weight matrix reads what became of it: its product with one of a matrix, or that of its own.

        In a gated network the keys may have been scaled, or some of them cut off; keys and `up` may be the halves of
        the sum of two matrices' products (Zamba 2).
        """
        if not self.found_down:
            return False
        return self.up is not None or self.is_half if self.gated else self.keys is not None

    @property
    def may_be_network(self) -> bool:
        """Whether it is given a matrix product, and isn't multiplied by something that is none, as a mixer's."""
        return self.is_half or (self.keys is not None and not (self.gated and self.up is None))

    @property
    def why(self) -> str:
        """Why it is no network."""
        if not self.width:
            return "that activation module isn't run"
        if self.gated is None:
            return "the activation never reached a matrix product"
        return "no weight matrix reads what we take for the neurons' coefficients"

    @property
    def down(self) -> nn.Module:
        """Of a network: what reads the coefficients."""
        return self.found_down[0]

    def hook_point(self, first: int) -> HookPoint:
        """A network's."""
        return HookPoint(
            layer=self.layer, name=self.name, activation=self.act, place=self.place, gated=bool(self.gated),
            keys=self.keys, up=self.up, down=self.down, width=self.width, device=self.device, first=first,
            norm=self.norm,
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

    def _begin_norm(self, norm: nn.Module, args: tuple) -> tuple | None:
        """A norm of the coefficients reads them."""
        if not args or getattr(args[0], "_watcher", None) is not self or self.norm is not None:
            return None
        self.norm = norm
        return (args[0].as_subclass(Tensor), *args[1:])

    def _end_norm(self, norm: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return self._marked(output) if norm is self.norm else output

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
