"""Tensors whose elements are their numbers, and those that stand for others: quantised ones."""

from collections.abc import Iterator

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that a quantised one is made of, integers and scales; of any other itself."""
    if isinstance(tensor, DTensor) or not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        yield from plain_parts(getattr(tensor, name))


def share_storage(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in the same memory; also without values (`meta`), where none has an address."""
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements are its numbers: floats of 16 bits or more, of no class of their own."""
    is_wide = tensor.is_floating_point() and tensor.element_size() >= 2
    return is_wide and not is_traceable_wrapper_subclass(tensor)
