"""Activations on the CPU: the same bits for any number of threads, and as tables. And the GPU kernels' names of them.

A 16-bit dtype has 65,536 elements, so act(x) can be looked up.

The table is made with the model's own module and kept only where the module is a function of the element
alone, bitwise: PyTorch's vectorised and scalar loops differ for some activations (GELU tanh in bf16:
-5.0625 gives -0 in one and -1.5e-7 in the other), and which of them an element gets depends on its place.
"""

import functools
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

NUM_ELEMENTS = 2**16
_ALONE = 16384
"""PyTorch gives a tensor of fewer elements to one thread."""
_GRAIN = 32768
"""And a thread no fewer than these, where there are so many."""
_STEP = 64
"""A whole number of steps of PyTorch's vectorised loops, of any dtype and instruction set."""
_VECTOR_WIDTH = 1024
_SCALAR_WIDTHS = {"AVX512": 63, "AVX2": 31}
"""Rows one element too short for a step of PyTorch's vectorised loops (two registers of 16-bit elements)."""
_SCALAR_WIDTH_ELSEWHERE = 15

_Tables = dict[tuple[torch.dtype, bool], Tensor | None]
_tables_by_module: WeakKeyDictionary[nn.Module, _Tables] = WeakKeyDictionary()
_tables_by_content: dict[bytes, Tensor] = {}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
_TORCH_ACTIVATIONS: dict[type[nn.Module], str] = {nn.SiLU: "silu", nn.ReLU: "relu"}


@contextmanager
def cpu_threads(number: int) -> Iterator[None]:
    """Within this context PyTorch computes in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def activate(act: nn.Module, x: Tensor) -> Tensor:
    """act(x) of an elementwise `act`, on the CPU to the bits that one thread gives, with any number of threads.

    PyTorch deals a tensor's elements out to threads in equal runs, and computes the end of a run that isn't a whole
    step of its vectorised loop by a scalar loop, which may round otherwise (SiLU in float32). So the runs are made to
    end where a step ends, or a row of a tensor that isn't contiguous.
    """
    num_threads = torch.get_num_threads()
    if x.device.type != "cpu" or num_threads == 1 or x.numel() < _ALONE:
        return act(x)  # type: ignore[no-any-return]
    if x.is_contiguous():
        runs, step = x.view(-1), _STEP
    elif _is_in_rows(x):
        runs, step = x.flatten(0, -2), 1
    else:
        with cpu_threads(1):
            return act(x)  # type: ignore[no-any-return]
    parts = num_threads
    if x.numel() < num_threads * _GRAIN:  # most activations leave some of them idle
        busy = -(-x.numel() // _GRAIN)
        parts = math.lcm(num_threads, busy, max(1, busy - 1))
    whole = len(runs) - len(runs) % (step * parts)
    if whole == len(runs):
        return act(x)  # type: ignore[no-any-return]
    if step == 1 and len(runs) - whole == 1:  # a single row would be contiguous, and take another loop
        whole -= parts
    with cpu_threads(1):
        end = act(runs[max(whole, 0) :])
    return torch.cat([act(runs[:whole]), end]).view(x.shape) if whole > 0 else end.view(x.shape)


def _is_in_rows(x: Tensor) -> bool:
    """Contiguous rows at equal distances, as the halves of a fused projection; not so a transposed tensor."""
    row_strides = [x.stride(-2) * math.prod(x.shape[dim + 1 : -1]) for dim in range(x.ndim - 1)]
    return x.stride(-1) == 1 and list(x.stride()[:-1]) == row_strides


def activation_name(act: nn.Module) -> str | None:
    """Which of the Triton kernels' activations a module of PyTorch's or Transformers' is; None for any other."""
    kind = type(act)
    if isinstance(act, nn.GELU) and kind is nn.GELU:
        return _GELUS.get(act.approximate)
    if kind in _TORCH_ACTIVATIONS:
        return _TORCH_ACTIVATIONS[kind]
    if kind.__module__ != "transformers.activations":
        return None
    inner: Any = getattr(act, "act", None)
    if isinstance(inner, functools.partial) and inner.func is nn.functional.gelu and not inner.args:
        return _GELUS.get(inner.keywords.get("approximate", "none"))
    if kind.__name__ == "GELUActivation":
        return "gelu" if inner is nn.functional.gelu else None  # else its formula, op by op
    return {"SiLUActivation": "silu", "ReLUSquaredActivation": "relu2"}.get(kind.__name__)


def activation_table(act: nn.Module, dtype: torch.dtype, is_contiguous: bool) -> Tensor | None:
    """float32 [65536]: act of the element with each bit pattern, for a 16-bit `dtype` on the CPU.

    For inputs that are contiguous, or whose rows are (the halves of a fused projection): PyTorch has a loop
    for each. None where no table can stand in for the module: it has parameters or buffers, mixes elements,
    draws random numbers, changes the dtype, or depends on an element's place. Made once for each module, in 4 to
    40 ms; a module must not change afterwards.
    """
    tables = _tables_by_module.setdefault(act, {})
    key = (dtype, is_contiguous)
    if key not in tables:
        # A thousand tiny calls: a team of threads would meet at a thousand barriers, 8 ms each on a busy machine.
        with cpu_threads(1), torch.inference_mode():
            table = _make_table(act, dtype, is_contiguous)
        if table is not None:  # the first of this content: one for a model's layers, so that it stays in the cache
            table = _tables_by_content.setdefault(hashlib.sha256(table.numpy().tobytes()).digest(), table)
        tables[key] = table
    return tables[key]


def _make_table(act: nn.Module, dtype: torch.dtype, is_contiguous: bool) -> Tensor | None:
    if next(act.parameters(), None) is not None or next(act.buffers(), None) is not None:
        return None
    element_N = torch.arange(NUM_ELEMENTS, dtype=torch.int32).to(torch.int16).view(dtype)
    table_N = _activate_rows(act, element_N, _VECTOR_WIDTH, is_contiguous)
    # An odd multiplier visits every pattern once, out of order, in other company.
    scattered_N = torch.arange(NUM_ELEMENTS) * 40503 % NUM_ELEMENTS
    again_N = _activate_rows(act, element_N[scattered_N], _VECTOR_WIDTH, is_contiguous)
    width = _SCALAR_WIDTHS.get(torch.backends.cpu.get_cpu_capability(), _SCALAR_WIDTH_ELSEWHERE)
    if is_contiguous:
        # PyTorch takes a contiguous tensor as one run, whatever its shape: so short tensors, one by one.
        scalar_N = torch.cat([act(part_N) for part_N in element_N[scattered_N].split(width)])  # type: ignore[no-untyped-call]
    else:
        scalar_N = _activate_rows(act, element_N[scattered_N], width, is_contiguous)
    for other_N in (again_N, scalar_N):
        if not (table_N.dtype == other_N.dtype == dtype and _same_bits(table_N[scattered_N], other_N)):
            return None
    return table_N.float()


def _activate_rows(act: nn.Module, x_N: Tensor, width: int, is_contiguous: bool) -> Tensor:
    """act(x), laid out in rows of `width`; between them lies as much again unless `is_contiguous`."""
    x_RW = torch.cat([x_N, x_N.new_zeros(-len(x_N) % width)]).view(-1, width)
    if not is_contiguous:
        x_RW = torch.cat([x_RW, x_RW], dim=1)[:, :width]
    activation: Tensor = act(x_RW)
    return activation.reshape(-1)[: len(x_N)]


def _same_bits(a_N: Tensor, b_N: Tensor) -> bool:
    """Bitwise equal, any NaN equal to any other."""
    return bool(((a_N.view(torch.int16) == b_N.view(torch.int16)) | (a_N.isnan() & b_N.isnan())).all())
