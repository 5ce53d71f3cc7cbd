"""Look into a forward pass that is somebody else's code: another attribute in place of one, or all functions in it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

See = Callable[[Any, tuple, dict[str, Any], Any], None]
"""Called with a function of PyTorch's, its arguments and its result."""


@contextmanager
def in_place(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within this context `owner` has this value under this name; then its own again, or its class's."""
    own = vars(owner).get(name)  # of a module's forward: accelerate's, where it is spread over devices
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


@contextmanager
def functions_shown(module: nn.Module, see: See) -> Iterator[None]:
    """Within this context `see` is shown every function of PyTorch's in the module's forward pass."""
    within = ExitStack()

    def begin(*_: Any) -> None:
        within.enter_context(Functions(see))

    def end(*_: Any) -> None:
        within.close()

    before = module.register_forward_pre_hook(begin, prepend=True)
    with before, module.register_forward_hook(end, always_call=True):
        yield


class Functions(TorchFunctionMode):
    """Within this context `see` is shown every function of PyTorch's."""

    def __init__(self, see: See):
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._see(func, args, kwargs or {}, result)
        return result
