"""Out of memory, under whatever name: less at a time from then on, and nothing counted twice."""

import platform
import subprocess
import sys
from typing import Any

import pytest
import torch
from reference import unit_arrays

from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.model.load import LoadedModel, load_model
from neurotally.profiler.passes.memory import halving
from neurotally.profiler.passes.worker import PassConfig, PreparedUnit, Task, Worker

FITS = 300
"""Tokens at once."""


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_out_of_memory_has_many_names(message: str) -> None:
    budgets = []

    def compute(budget: int) -> str:
        budgets.append(budget)
        if budget > 16:
            raise RuntimeError(message)
        return "done"

    assert halving(64, compute) == ("done", 2)
    assert budgets == [64, 32, 16]


def test_other_errors_are_not_taken_for_it() -> None:
    def compute(_budget: int) -> None:
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    with pytest.raises(RuntimeError, match="must match"):
        halving(64, compute)


class SmallDevice:
    """Counts the batches that a model can't hold."""

    def __init__(self, model: LoadedModel):
        self.overflows = 0
        self._hook = model.body.layers[1].register_forward_pre_hook(self._refuse)  # type: ignore[index,union-attr]

    def _refuse(self, _layer: Any, args: tuple[Any, ...]) -> None:
        num_rows, num_tokens, _ = args[0].shape
        if num_rows * num_tokens > FITS:
            self.overflows += 1
            raise RuntimeError("Triton Error [CUDA]: out of memory")


def worker_on(model: LoadedModel, token_budget: int, row_tokens: int) -> Worker:
    config = PassConfig(
        layout="documents", row_tokens=row_tokens, document_tokens=None, token_budget=token_budget,
        max_unit_bytes=2**20, groups=1, triggers=2, kernels=model.facts.kernels,
    )  # fmt: skip
    return Worker(model, config)


def prepared(lengths: list[int], row_tokens: int) -> PreparedUnit:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 600, (length,), generator=generator).tolist() for length in lengths]
    rows = lay_out(list(enumerate(ids)), frozenset(), "documents", row_tokens)
    nothing: Any = None
    return PreparedUnit(rows, nothing, nothing, nothing)


def test_a_budget_that_is_too_large_is_found_once(model_folder: Any) -> None:
    model = load_model(str(model_folder), device="cpu")
    task: Any = Task("c", 0, None, 0, [], [], 0)  # type: ignore[arg-type]
    units = [prepared([60] * 12, 64), prepared([64, 3, 30] * 5, 64), prepared([64] * 8, 64)]
    plenty = [worker_on(model, 1024, 64).compute(task, unit) for unit in units]
    assert [one.restarts for one in plenty] == [0, 0, 0]

    device = SmallDevice(model)
    worker = worker_on(model, 1024, 64)
    worker.fit_token_budget()
    assert device.overflows == 2  # 16 rows of 64 tokens, 8 of them; 4 fit
    found = [worker.compute(task, unit) for unit in units]
    assert device.overflows == 2
    assert [one.restarts for one in found] == [2, 2, 2]
    for ours, whole in zip(found, plenty, strict=True):
        assert ours.tokens == whole.tokens
        assert (unit_arrays(ours.neurons)["active"] == unit_arrays(whole.neurons)["active"]).all()


def test_where_no_row_of_full_length_fits_units_find_out(model_folder: Any) -> None:
    model = load_model(str(model_folder), device="cpu")
    task: Any = Task("c", 0, None, 0, [], [], 0)  # type: ignore[arg-type]
    device = SmallDevice(model)
    worker = worker_on(model, 1024, 400)
    worker.fit_token_budget()
    assert worker.compute(task, prepared([50, 60], 400)).restarts == 0
    overflows = device.overflows
    with pytest.raises(MemoryError, match="a single row of 400 tokens doesn't fit in memory; lower --row-tokens"):
        worker.compute(task, prepared([400], 400))
    assert device.overflows > overflows


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
@pytest.mark.parametrize("keeps", [False, True])
def test_freed_memory_is_handed_out_again(keeps: bool) -> None:
    program = """
import resource, sys
from neurotally.profiler.model.allocation import reuse_freed_memory

def pages_faulted():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * 2**26
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "True":
    reuse_freed_memory()
print([pages_faulted() for _ in range(5)][-1], resource.getpagesize())
"""
    run = subprocess.run([sys.executable, "-c", program, str(keeps)], capture_output=True, text=True, check=True)
    faults, page_bytes = map(int, run.stdout.split())
    assert faults < 100 if keeps else faults * page_bytes >= 2**26
