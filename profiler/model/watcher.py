"""Watch an activation module while a short batch goes through: is it a network's, and what is that made of?

act in `down(act(gate(x)) · up(x))` or in `fc2(act(fc1(x)))` is found by its class wherever a layer keeps it (OPT has no
module for the network at all). What it is given tells the keys, as the matrix product, or the part of one, whose memory
it is. Its result is marked, and the mark goes on from function to function: to a product with a tensor of the same
shape, which makes the network gated and tells `up`, through a norm, and to the weight matrix that reads it, the down
projection. Other activations of a layer are a router's or a mixer's.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from neurotally.profiler.model.hook_points import PRODUCTS, HookPoint
from neurotally.profiler.model.plain_tensors import share_storage
from neurotally.profiler.model.stacks import norms, product_of, weight_matrices


class ActivationWatcher(nn.Module):
    """Stands in for a block's activation module while the probe runs, and looks at the block's weight matrices."""

    def __init__(
        self, layer: int, block: nn.Module, place: tuple[nn.Module, str], names: dict[nn.Module, str], marks: "Marks"
    ):
        super().__init__()
        self.marks = marks
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
        self.down: nn.Module | None = None
        """What reads the coefficients."""
        self.norm: nn.Module | None = None
        """Between coefficients and down projection."""
        self.is_in_norm = False
        self.gated: bool | None = None
        self.is_half = False
        """Whether the product is with another part of what it is given a part of."""
        self.pre: list[Tensor] = []
        """What it is given, until its result is read."""
        self.width = 0
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
        self.pre.append(pre_BTF)
        self.keys = product_of(pre_BTF, self.products)
        activation_BTF: Tensor = self.act(pre_BTF)
        self.marks[activation_BTF] = self
        return activation_BTF

    def follow(self, func: Any, operands: list[Tensor], result: Tensor) -> None:
        """See what a marked tensor went into; the result is marked if it is still what the down projection reads."""
        if self.down is not None or self.is_in_norm:
            return
        if len(operands) < 2:  # a view, a dropout that is off: still the same values
            self.marks[result] = self
            return
        is_product = func in PRODUCTS and len(operands) == 2 and operands[0].shape == operands[1].shape
        if self.gated is None and is_product:
            self.gated = True
            up_BTF = operands[operands[0] in self.marks]
            self.up = product_of(up_BTF, self.products)
            self.is_half = share_storage(up_BTF, self.pre[0])
            self.marks[result] = self
        self.gated = bool(self.gated)

    @property
    def is_network(self) -> bool:
        """Whether a weight matrix reads what became of it: its product with one of a matrix, or that of its own.

        In a gated network the keys may have been scaled, or some of them cut off; keys and `up` may be the halves of
        the sum of two matrices' products (Zamba 2).
        """
        if self.down is None:
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

    def hook_point(self) -> HookPoint:
        """A network's."""
        assert self.down is not None
        return HookPoint(
            layer=self.layer, name=self.name, activation=self.act, place=self.place, gated=bool(self.gated),
            keys=self.keys, up=self.up, down=self.down, width=self.width, device=self.device, norm=self.norm,
        )  # fmt: skip

    def _keep_product(self, module: nn.Module, _args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and self.down is None:
            self.products.append((module, output))

    def _look_at_input(self, module: nn.Module, args: tuple) -> None:
        if self._is_given_marked(args) and self.down is None:
            self.down = module
            self.gated = bool(self.gated)
            self.products.clear()
            self.pre.clear()

    def _begin_norm(self, norm: nn.Module, args: tuple) -> None:
        """A norm of the coefficients reads them."""
        if self._is_given_marked(args) and self.norm is None:
            self.norm, self.is_in_norm = norm, True

    def _end_norm(self, norm: nn.Module, _args: Any, output: Tensor) -> None:
        if norm is self.norm:
            self.marks[output], self.is_in_norm = self, False

    def _is_given_marked(self, args: tuple) -> bool:
        return bool(args) and args[0] in self.marks and self.marks[args[0]] is self


class Marks(WeakIdKeyDictionary):  # type: ignore[misc]
    """By tensor: whose activation it is made of."""

    def see(self, func: Any, args: tuple, _kwargs: dict[str, Any], result: Any) -> None:
        """Show a function's result to the watcher of its first marked operand."""
        operands = [arg for arg in args if isinstance(arg, Tensor)]
        watcher: ActivationWatcher | None = next((self[operand] for operand in operands if operand in self), None)
        if watcher is not None and isinstance(result, Tensor):
            watcher.follow(func, operands, result)
