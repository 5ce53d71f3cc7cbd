"""Hook points: the place in each feed-forward network where its neurons are read, and what stands around it.

    activation = act(keys)          coefficient = activation · up, or the activation in a plain network
    output     = down(coefficient)

A hook point stands in for the activation module and nothing else: weights, their names, hooks and offloading stay as
they are. At a hook point interventions and a reader compose: interventions replace what some neurons compute, in the
order in which they were entered, and the reader sees what the down projection then reads, whichever was entered first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from neurotally.kernels.activations import activate
from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.offloading import parameter_of
from neurotally.profiler.model.staging import StagedBatch
from neurotally.profiler.networks import DECODER, Network

PRODUCTS = frozenset(
    {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply}  # type: ignore[attr-defined]
)
"""Functions by which a model may multiply activation and up."""
Stage = Literal["pre", "activation", "coefficient"]
ReadBatch = TypeVar("ReadBatch", Batch, StagedBatch)


@dataclass(frozen=True, eq=False)
class Intervention:
    """Some neurons of one network compute something else, from one stage of their computation on."""

    stage: Stage
    index_n: Tensor
    """int64, each neuron once."""
    value_n: Tensor
    """What they compute at that stage, or"""
    is_factor: bool = False
    """what they compute is multiplied by."""

    def applied(self, values_BTF: Tensor) -> Tensor:
        """`values_BTF` with these neurons changed; out of place, since an activation may return its own input."""
        value_n = self.value_n.to(values_BTF.dtype)
        value_BTn = values_BTF[..., self.index_n] * value_n if self.is_factor else value_n
        return values_BTF.index_copy(-1, self.index_n, value_BTn.expand(*values_BTF.shape[:-1], -1))


class Computed(NamedTuple):
    """What a network with interventions computes, [B, T, F] each."""

    pre_BTF: Tensor
    """With the value that was given to an activation, so that the neuron counts as active where that is positive."""
    activation_BTF: Tensor
    coefficient_BTF: Tensor


@dataclass(eq=False)
class HookPoint:
    """One feed-forward network: its parts, and the interventions and the reader at its neurons."""

    layer: int
    name: str
    """Of its activation module in the decoder."""
    activation: nn.Module
    place: tuple[nn.Module, str]
    """The module that has the activation, and under which name."""
    gated: bool
    keys: tuple[nn.Module, int] | None
    """The matrix whose product the activation is given (gate or fc1), and the first of its columns, since gate and up
    may be one product; None where it is given no product as it is."""
    up: tuple[nn.Module, int] | None
    """The same of what the activation is multiplied by; None in a plain network, too."""
    down: nn.Module
    """The matrix of the value vectors, which reads the coefficients."""
    width: int
    """Its neurons, F."""
    norm: nn.Module | None = field(default=None, kw_only=True)
    """What reads the coefficients first, where they are normed on their way to the down projection (BitNet)."""
    first: int = field(default=0, kw_only=True)
    """The number of its first neuron in the layer, which may have several networks."""
    device: torch.device
    """Where it computes; its weights may lie elsewhere meanwhile."""
    stack: int = DECODER
    """DECODER or ENCODER: see `networks.Network`."""
    num_experts: int | None = None
    """Of a mixture, whose experts share its neurons evenly; each sees the tokens that are routed to it. None: it is no
    mixture, and all tokens reach it."""
    interventions: list[Intervention] = field(default_factory=list)
    """In the order in which they were entered."""
    touched_n: Tensor = field(init=False)
    """int64: the neurons of an intervention; all others compute what they would without."""
    reader: "Reader | None" = None

    def __post_init__(self) -> None:
        self.touched_n = torch.empty(0, dtype=torch.int64, device=self.device)

    def __str__(self) -> str:
        return f"layer {self.layer} ({self.name})"

    @property
    def is_idle(self) -> bool:
        """Whether nothing is read or changed here: the model computes what it would without the hook point."""
        return self.reader is None and not self.interventions

    @property
    def neurons(self) -> slice:
        """Its neurons among its layer's."""
        return slice(self.first, self.first + self.width)

    @property
    def network(self) -> Network:
        """Where its neurons are."""
        width = self.width // (self.num_experts or 1)
        return Network(self.layer, self.first, width, self.num_experts, self.name, self.stack)

    def read_of(self, batch: "ReadBatch") -> "ReadBatch":
        """The part of a batch that reaches it: of an encoder-decoder what its stack reads."""
        return batch.decoder if batch.decoder is not None and self.stack == DECODER else batch

    def key_bias(self) -> Tensor:
        """The bias of its keys, [F]; zeros where there is none. UnsupportedModelError where it can't be told."""
        if self.keys is None:
            raise UnsupportedModelError(
                f"{self}: the activation isn't given a matrix product as it is, so its bias can't be told; switch "
                "neurons off in another way"
            )
        matrix, first = self.keys
        bias = parameter_of(matrix, "bias")
        return torch.zeros(self.width, device=self.device) if bias is None else bias[first : first + self.width]

    def coefficient(self, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        """What the down projection reads. `up_BTF` is None in a plain network."""
        if self.reader is not None:
            return self.reader(self, pre_BTF, up_BTF)
        return self.computed(pre_BTF, up_BTF).coefficient_BTF

    def computed(self, pre_BTF: Tensor, up_BTF: Tensor | None) -> Computed:
        """What the network computes with its interventions."""
        for one in self._at("pre"):
            pre_BTF = self.changed(one, pre_BTF)
        activation_BTF: Tensor = activate(self.activation, pre_BTF)
        for one in self._at("activation"):
            activation_BTF, pre_BTF = self.changed(one, activation_BTF), self.changed(one, pre_BTF)
        coefficient_BTF = activation_BTF if up_BTF is None else activation_BTF * up_BTF
        for one in self._at("coefficient"):
            coefficient_BTF = self.changed(one, coefficient_BTF)
        return Computed(pre_BTF, activation_BTF, coefficient_BTF)

    def changed(self, intervention: Intervention, values_BTF: Tensor) -> Tensor:
        """`values_BTF` with an intervention's neurons changed, out of place."""
        return intervention.applied(values_BTF)

    def intervene(self, interventions: list[Intervention]) -> None:
        """Let these be in force, in this order."""
        # Here and not where they are applied: finding distinct numbers waits for a GPU.
        self.touched_n = torch.unique(torch.cat([self.touched_n[:0], *(one.index_n for one in interventions)]))
        self.interventions = interventions

    def install(self) -> None:
        """Stand in for the activation module."""
        setattr(*self.place, StandIn(self))

    def take_out(self) -> None:
        """Put the activation module back."""
        setattr(*self.place, self.activation)

    def _at(self, stage: Stage) -> list[Intervention]:
        return [one for one in self.interventions if one.stage == stage]


Reader = Callable[[HookPoint, Tensor, "Tensor | None"], Tensor]
"""Called with the hook point, and pre_BTF and up_BTF (None in a plain network) before any intervention; returns what
the down projection reads, with the interventions in it (`HookPoint.computed`)."""


class StandIn(nn.Module):
    """What a model has in an activation module's place, with that module's parameters and buffers under their names."""

    def __init__(self, hook_point: HookPoint):
        super().__init__()
        self.hook_point = hook_point
        self.training = hook_point.activation.training
        own = vars(hook_point.activation)
        for state in ("_parameters", "_buffers", "_non_persistent_buffers_set"):
            vars(self)[state] = own[state]

    def forward(self, pre_BTF: Tensor) -> Any:
        """act(pre), or what interventions and reader make of it; in a gated network an object that waits for `up`."""
        point = self.hook_point
        if point.is_idle:
            return activate(point.activation, pre_BTF)
        return _AwaitsUp(point, pre_BTF) if point.gated else point.coefficient(pre_BTF, None)


@contextmanager
def intervening(points: Sequence[HookPoint], interventions: Sequence[Intervention]) -> Iterator[None]:
    """Within this context each hook point's intervention is in force, after those that were entered before."""
    for point, new in zip(points, interventions, strict=True):
        point.intervene([*point.interventions, new])
    try:
        yield
    finally:
        for point, new in zip(points, interventions, strict=True):
            point.intervene([one for one in point.interventions if one is not new])


@contextmanager
def reading(points: Sequence[HookPoint], reader: Reader) -> Iterator[None]:
    """Within this context `reader` reads at the hook points. Each has one reader at a time."""
    if any(point.reader is not None for point in points):
        raise RuntimeError("expected hook points without a reader: this model is being read already")
    for point in points:
        point.reader = reader
    try:
        yield
    finally:
        for point in points:
            point.reader = None


@contextmanager
def taken_out(points: Sequence[HookPoint]) -> Iterator[None]:
    """Within this context the model has its own activation modules."""
    for point in points:
        point.take_out()
    try:
        yield
    finally:
        for point in points:
            point.install()


class _AwaitsUp:
    """The activation of a gated network on its way to its one use, the product with `up`."""

    def __init__(self, point: HookPoint, gate_BTF: Tensor):
        self._point = point
        self._gate_BTF = gate_BTF

    def __mul__(self, up_BTF: Tensor) -> Tensor:
        if not isinstance(up_BTF, Tensor) or up_BTF.shape != self._gate_BTF.shape:
            raise _unexpected_use(self._point, "a product with something that isn't the up projection")
        return self._point.coefficient(self._gate_BTF, up_BTF)

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        waiting = next(arg for arg in args if isinstance(arg, _AwaitsUp))
        if func in PRODUCTS and len(args) == 2 and not kwargs:
            return waiting * (args[1] if args[0] is waiting else args[0])
        raise _unexpected_use(waiting._point, getattr(func, "__name__", str(func)))

    def __getattr__(self, name: str) -> Any:
        raise _unexpected_use(self._point, name)


def _unexpected_use(point: HookPoint, use: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{point}: the activation is used in {use}, expected one product with the up projection; this feed-forward "
        "network isn't supported"
    )
