"""Find the hook points of a model's layers, each network once.

A layer may have one feed-forward network, none (a Mamba layer of a hybrid), or with a mixture of experts several: the
experts, a shared one, dense ones. They are found in three ways: experts by the class that holds them; networks with an
activation module by what becomes of its result (`watcher`); networks whose activation is a function by what their down
projection reads (`functional`). What looks like a network and is none that we can read is refused, and so is never
taken for none.
"""

import itertools
import re
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from torch import nn

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.experts import ExpertsHookPoint, has_interface, interface_experts
from neurotally.profiler.model.functional import ProductWatcher
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.overrides import Functions
from neurotally.profiler.model.own_experts import has_own_experts, own_experts
from neurotally.profiler.model.stacks import find_experts, is_activation, weight_matrices
from neurotally.profiler.model.watcher import ActivationWatcher, Marks

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
    marks = Marks()
    layers = [_Layer(layer, block, names, marks) for layer, block in enumerate(blocks)]
    with ExitStack() as stack:
        for layer in layers:
            for watcher in layer.watchers:
                stack.enter_context(watcher.watching())
            stack.enter_context(layer.functional.watching())
        stack.enter_context(Functions(marks.see))
        run()
    by_layer = [layer.points() for layer in layers]
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
    inside = {module for part in parts for module in part.modules()}
    is_apart = any(parameter.dim() > 1 and parameter not in own for parameter in block.parameters())
    return not is_apart and inside.issuperset(weight_matrices(block))  # packed ones are no parameters


class _Layer:
    """A decoder layer, and what may be networks of it: experts, and other activation modules, each watched."""

    def __init__(self, layer: int, block: nn.Module, names: dict[nn.Module, str], marks: Marks):
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
            ActivationWatcher(layer, block, (parent, attribute), names, marks)
            for parent in self._order
            for attribute, child in parent.named_children()
            if is_activation(child) and parent not in self._apart
        ]
        self.functional = ProductWatcher(layer, block, names)

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

    def points(self) -> list[HookPoint]:
        """Its networks, in the order of its modules."""
        watchers = [watcher for watcher in self.watchers if watcher.is_network]
        others = {*self._apart, *(watcher.down for watcher in watchers)}
        by_down = {point.down: point for point in self.functional.points if point.down not in others}
        if not self._experts and len(watchers) + len(by_down) > 1:
            what = ", ".join(watcher.name for watcher in self.watchers)
            raise UnsupportedModelError(
                f"layer {self._layer}: expected one feed-forward network, found {len(watchers) + len(by_down)} among "
                f"the activation modules {what}; this layer isn't supported"
            )
        found: list[tuple[nn.Module, HookPoint]] = [
            *((part, experts_hook_point(self._layer, self._names[part], part, self._block)) for part in self._experts),
            *((watcher.act, watcher.hook_point()) for watcher in watchers),
            *by_down.items(),
        ]
        points = [point for _, point in sorted(found, key=lambda pair: self._order.index(pair[0]))]
        number_neurons(points)
        self._refuse_missed(points)
        return points

    def _refuse_missed(self, points: list[HookPoint]) -> None:
        """Raise UnsupportedModelError where a layer that is read has a further network by its class that isn't."""
        read = {point.down for point in points}
        for module in self._order:
            num_matrices = max(sum(of.dim() > 1 for of in module.parameters()), len(weight_matrices(module)))
            if not (points and num_matrices > 1 and _NETWORK_CLASS.search(type(module).__name__)):
                continue
            if module not in self._apart and read.isdisjoint(module.modules()):
                raise UnsupportedModelError(
                    f"layer {self._layer} ({self._names[module]}): {type(module).__name__} seems to be a feed-forward "
                    "network beside those that are read, of a kind that isn't known; this layer isn't supported"
                )


def experts_hook_point(layer: int, name: str, experts: nn.Module, block: nn.Module) -> ExpertsHookPoint:
    """The hook point of a module of experts in a layer's block; UnsupportedModelError where it can't be read."""
    if has_own_experts(experts):
        return own_experts(layer, name, experts, block)
    return interface_experts(layer, name, experts)


def number_neurons(points: Iterable[HookPoint]) -> None:
    """Number the neurons of a layer's hook points through, in this order."""
    first = 0
    for point in points:
        point.first = first
        first += point.width
