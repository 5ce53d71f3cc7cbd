"""Activations give the bits of one thread, with any number of threads."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from neurotally.kernels.activations import activate


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def contiguous(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def half_of_a_fused_product(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return contiguous((*shape[:-1], 2 * shape[-1]), dtype)[..., : shape[-1]]


def transposed(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return contiguous((*shape[:-2], shape[-1], shape[-2]), dtype).mT


@pytest.mark.parametrize("make", [contiguous, half_of_a_fused_product, transposed])
@pytest.mark.parametrize("shape", [(911, 1408), (7, 333, 176), (2, 1, 40000), (1, 2, 32769), (1, 5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu2"])
@pytest.mark.slow
def test_the_bits_do_not_depend_on_the_threads(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], make: type
) -> None:
    act: nn.Module = ACT2FN[name]
    x = make(shape, dtype)
    torch.set_num_threads(1)
    expected = act(x)
    for num_threads in (2, 3, 6, 7):
        torch.set_num_threads(num_threads)
        assert torch.equal(activate(act, x), expected), num_threads
        assert activate(act, x).shape == x.shape
        assert torch.get_num_threads() == num_threads


def test_plain_pytorch_would_fail_this() -> None:
    """If it no longer does, `activate` can go."""
    x = contiguous((911, 1408), torch.float32)
    torch.set_num_threads(1)
    expected = nn.functional.silu(x)
    torch.set_num_threads(3)
    assert not torch.equal(nn.functional.silu(x), expected)
