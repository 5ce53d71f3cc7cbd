"""Activations that a model has as functions, as modules."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_MODULES: dict[Any, type[nn.Module]] = {functional.silu: nn.SiLU, functional.relu: nn.ReLU, torch.relu: nn.ReLU}
"""For which there are kernels."""


class Formula(nn.Module):
    """A function of one tensor, as a model computed it, op by op."""

    def __init__(self, func: Any = None, args: tuple = (), kwargs: dict[str, Any] | None = None):
        super().__init__()
        self._func, self._args, self._kwargs = func, args, kwargs or {}
        """Among the arguments are formulas; without a function it is the tensor itself."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise: of the shape of `x`."""
        if self._func is None:
            return x
        args = [arg(x) if isinstance(arg, Formula) else arg for arg in self._args]
        made: Tensor = self._func(*args, **self._kwargs)
        return made


def as_module(act: Any) -> nn.Module:
    """A function of one tensor as a module: as PyTorch has it, where it does."""
    func = act
    if isinstance(act, Formula):
        is_plain = len(act._args) == 1 and isinstance(act._args[0], Formula) and act._args[0]._func is None
        func = act._func if is_plain else None
    if func in _MODULES:
        return _MODULES[func]()
    return act if isinstance(act, nn.Module) else Formula(act, (Formula(),))
