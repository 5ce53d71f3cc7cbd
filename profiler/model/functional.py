"""Networks whose activation is a function in the forward pass, with no module to stand in for.

They are found from their down projection backwards. One short pass is followed function by function: what an
elementwise formula makes of one matrix product is known by that formula, and is an activation if the formula isn't
linear; the product of an activation and something made of another matrix product is a gated network's coefficient. The
weight matrix that reads one of these is a down projection.

Such a network is read where the down projection reads it, once the model has computed it: hooks on its other matrices
keep what they give, and the formulas give activation and coefficient anew.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from neurotally.profiler.model.formulas import Formula, as_module
from neurotally.profiler.model.hook_points import PRODUCTS, HookPoint
from neurotally.profiler.model.overrides import functions_shown
from neurotally.profiler.model.plain_tensors import share_storage
from neurotally.profiler.model.stacks import product_of, weight_matrices

_ACTIVATIONS = frozenset(
    ["silu", "gelu", "relu", "leaky_relu", "elu", "celu", "selu", "mish", "relu6", "hardswish", "hardtanh", "sigmoid",
     "logsigmoid", "tanh", "softplus", "square", "pow", "__pow__", "exp", "abs"]
)  # fmt: skip
_LINEAR = frozenset(
    ["mul", "__mul__", "__rmul__", "multiply", "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "div",
     "__truediv__", "neg", "clamp", "clip", "to", "float", "half", "bfloat16", "type", "type_as", "contiguous", "clone",
     "dropout"]
)  # fmt: skip
"""Elementwise functions of PyTorch's. Clamping counts as linear: it bounds a value, and makes no activation of it."""


class _Source(NamedTuple):
    """Some columns of a matrix product."""

    matrix: nn.Module
    first: int
    width: int


@dataclass(frozen=True)
class _Made:
    """What was made of a matrix product."""

    source: _Source
    formula: Formula = field(default_factory=Formula)
    is_activated: bool = False
    up: "_Made | None" = None
    """What it was multiplied by."""


@dataclass(eq=False)
class FunctionHookPoint(HookPoint):
    """A network that is read where its down projection reads it."""

    up_formula: nn.Module = field(kw_only=True)
    """What is made of the product of `up` before the activation is multiplied by it."""

    def install(self) -> None:
        self._products: dict[nn.Module, Tensor] = {}
        matrices = {matrix for matrix, _ in filter(None, (self.keys, self.up))}
        self._hooks = [matrix.register_forward_hook(self._keep_product) for matrix in matrices]
        self._hooks.append(self.down.register_forward_pre_hook(self._replace_input))

    def take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _keep_product(self, matrix: nn.Module, _args: tuple, output: Tensor) -> None:
        if not self.is_idle:
            self._products[matrix] = output

    def _replace_input(self, _down: nn.Module, args: tuple) -> tuple | None:
        if self.is_idle:
            return None
        pre_BTF, up_BTF = self._columns(self.keys), self._columns(self.up)
        assert pre_BTF is not None
        self._products.clear()
        coefficient_BTF = self.coefficient(pre_BTF, None if up_BTF is None else self.up_formula(up_BTF))
        return (coefficient_BTF.view(args[0].shape), *args[1:])

    def _columns(self, of: tuple[nn.Module, int] | None) -> Tensor | None:
        if of is None:
            return None
        matrix, first = of
        return self._products[matrix][..., first : first + self.width]


class ProductWatcher:
    """Follows what becomes of the matrix products of a block."""

    def __init__(self, layer: int, block: nn.Module, names: dict[nn.Module, str]):
        self.points: list[FunctionHookPoint] = []
        self._layer, self._block, self._names = layer, block, names
        self._products: list[tuple[nn.Module, Tensor]] = []
        self._made: Any = WeakIdKeyDictionary()
        """By tensor."""
        self._width = 0
        """Of the model: networks read and give such vectors, and routers don't."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within this context the block is watched while it runs."""
        with ExitStack() as hooks:
            for matrix in weight_matrices(self._block):
                hooks.enter_context(matrix.register_forward_pre_hook(self._look_at_input))
                hooks.enter_context(matrix.register_forward_hook(self._keep_product))
            hooks.enter_context(self._block.register_forward_pre_hook(self._keep_width, with_kwargs=True))
            hooks.enter_context(self._block.register_forward_hook(lambda *_: self._products.clear(), always_call=True))
            hooks.enter_context(functions_shown(self._block, self._follow))
            yield

    def _follow(self, func: Any, args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        """See what a function made of known tensors."""
        name = getattr(func, "__name__", "")
        if name not in _ACTIVATIONS and name not in _LINEAR:
            self._pass_on(args, result)
            return
        tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.dim()]
        known = [self._known(tensor) for tensor in tensors]
        if not isinstance(result, Tensor) or not known or None in known:
            return
        if any(tensor.shape != result.shape for tensor in tensors):
            return
        of = [made for made in known if made is not None]
        if func in PRODUCTS and len(of) == 2 and of[0].source != of[1].source:
            act, up = sorted(of, key=lambda made: not made.is_activated)
            if act.is_activated and not up.is_activated and act.up is up.up is None:
                self._made[result] = _Made(act.source, act.formula, True, up)
        elif all(made.source == of[0].source and made.up is None for made in of):
            formulas = iter(made.formula for made in of)
            steps = tuple(next(formulas) if isinstance(arg, Tensor) and arg.dim() else arg for arg in args)
            is_activated = name in _ACTIVATIONS or len(of) > 1 or any(made.is_activated for made in of)
            self._made[result] = _Made(of[0].source, Formula(func, steps, kwargs), is_activated)

    def _pass_on(self, args: tuple, result: Any) -> None:
        """A view with the same columns is the same still."""
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if given is None or given not in self._made or not isinstance(result, Tensor):
            return
        if share_storage(result, given) and result.shape[-1] == given.shape[-1] and result.numel() == given.numel():
            self._made[result] = self._made[given]

    def _known(self, tensor: Tensor) -> _Made | None:
        if tensor in self._made:
            made: _Made = self._made[tensor]
            return made
        of = product_of(tensor, self._products)
        return None if of is None else _Made(_Source(*of, tensor.shape[-1]))

    def _keep_width(self, _block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self._width = hidden.shape[-1]

    def _keep_product(self, matrix: nn.Module, args: tuple, output: Any) -> None:
        if isinstance(output, Tensor) and args and args[0].shape[-1] == self._width:
            self._products.append((matrix, output))
        is_given = isinstance(output, Tensor) and output.shape[-1] == self._width
        self.points = [point for point in self.points if point.down is not matrix or is_given]

    def _look_at_input(self, down: nn.Module, args: tuple) -> None:
        made: _Made | None = self._made.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if made is None or not made.is_activated or args[0].shape[-1] != made.source.width:
            return
        (keys, first, width), up = made.source, made.up
        self.points.append(FunctionHookPoint(
            layer=self._layer, name=self._names[down], activation=as_module(made.formula), place=(self._block, ""),
            gated=up is not None, keys=(keys, first), up=None if up is None else up.source[:2], down=down, width=width,
            device=args[0].device, up_formula=Formula() if up is None else up.formula,
        ))  # fmt: skip
