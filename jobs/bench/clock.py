"""How long something takes on a device, and what the device can do at most."""

import statistics
import time
from collections.abc import Callable

import torch

_CALLS = 10
"""In a row, between two events of a GPU."""
_COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
_MATRIX = {"cpu": 1024, "cuda": 8192}


def host_seconds(run: Callable[[], object], device_type: str) -> float:
    """Seconds from the call until the device has done all of it."""
    device = torch.get_device_module(device_type)
    device.synchronize()
    start = time.perf_counter()
    run()
    device.synchronize()
    return time.perf_counter() - start


def device_seconds(run: Callable[[], object], device_type: str, repeats: int = 15) -> float:
    """Median seconds of one call. On a GPU by its own clock and of several calls in a row, so that neither launching
    nor waiting is in it."""
    for _ in range(3):
        run()
    once = _by_events if device_type == "cuda" else lambda run: host_seconds(run, device_type)
    return statistics.median(once(run) for _ in range(repeats))


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, of a copy too large for any cache."""
    num_bytes = _COPY_BYTES[device.type]
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * num_bytes / device_seconds(lambda: target.copy_(source), device.type)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product."""
    size = _MATRIX[device.type]
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / device_seconds(lambda: a @ b, device.type)


def _by_events(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(_CALLS):
        run()
    end.record()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1e3 / _CALLS
