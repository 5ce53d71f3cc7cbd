"""Fused norms and rotary embeddings: on the GPU where there is one, else in Triton's interpreter.

Run by test_profiler_fused.py in a process of its own: Triton must be told to interpret before anything imports it.
By hand: `TRITON_INTERPRET=1 pytest tests/fused_cases.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import LAYERS, tiny_model
from interpreting import DEVICE, ON_GPU, skip_unless_kernels_run
from torch import Tensor

from neurotally.jobs import profile
from neurotally.jobs.bench.measure import bench
from neurotally.jobs.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import fused
from neurotally.profiler.model.fused import fuse
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.stacks import find_stacks

skip_unless_kernels_run()
liger = pytest.importorskip("liger_kernel.ops.rms_norm", reason="Liger-Kernel isn't installed")

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy", "ignore::RuntimeWarning:triton")
IDS_BT = torch.randint(0, 512, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True, scope="module")
def interpreter_knows_floats() -> Iterator[None]:
    """Triton 3.9's interpreter gives kernels Python's floats, which have no `.to`, and has no function of CUDA's."""
    if ON_GPU:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    own = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if not isinstance(value, float):
            return own(value)
        handle = interpreter.TensorHandle(np.array([value], np.float32), language.float32)
        return language.tensor(handle, language.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_implicit_cvt", converted)
        patch.setattr(liger, "rsqrt", lambda x: language.rsqrt(x))
        yield


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each of Liger's kernels computed something."""
    found: Counter[str] = Counter()
    own = fused._kernels

    def counting(stacks: Any) -> Any:
        def counted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
            return lambda *args: (found.update([name]), kernel(*args))[1]

        return tuple(map(counted, ("norm", "rotation"), own(stacks)))

    monkeypatch.setattr(fused, "_kernels", counting)
    return found


def made(family: str, dtype: torch.dtype = torch.float32, is_fused: bool = True) -> tuple[HookedModel, str]:
    """A model, and what `fuse` says of it."""
    model = tiny_model(family).to(DEVICE, dtype)
    hooked = HookedModel(model, family, find_stacks(model, family), [])
    return hooked, fuse(hooked) if is_fused else ""


# Before attention, before the network, at the end; of queries and keys; after both.
NORMS = {"llama": 2 * LAYERS + 1, "qwen3": 4 * LAYERS + 1, "gemma2": 4 * LAYERS + 1, "olmo2": 4 * LAYERS + 1}


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        *((family, torch.float32) for family in NORMS),
        *((family, torch.bfloat16) for family in (NORMS if ON_GPU else ("llama", "gemma2"))),  # they round otherwise
    ],
    ids=str,
)
def test_fused_models_are_as_near_to_the_exact_one_as_plain_ones(
    family: str, dtype: torch.dtype, launches: Counter[str]
) -> None:
    precise = torch.float64 if dtype == torch.float32 else torch.float32
    exact_BTD = made(family, precise, is_fused=False)[0].run_body(IDS_BT).double()
    plain_BTD = made(family, dtype, is_fused=False)[0].run_body(IDS_BT).double()
    model, replaced = made(family, dtype)
    launches.clear()
    fused_BTD = model.run_body(IDS_BT).double()
    norms = NORMS[family]
    assert launches["norm"] == norms
    # Triton's interpreter multiplies bfloat16 as if it were integers: found out, and left out
    rotates = ON_GPU or dtype == torch.float32 or family == "olmo2"  # which rotates in float32
    assert launches["rotation"] == (LAYERS if rotates else 0)
    rotary = ", rotary embeddings" if rotates else ""
    assert replaced == f"liger-kernel {version('liger-kernel')}: {norms} of {norms} norms{rotary}"
    assert (fused_BTD - exact_BTD).abs().mean() <= 1.5 * (plain_BTD - exact_BTD).abs().mean()


def test_other_models_of_the_family_are_left_alone(launches: Counter[str]) -> None:
    plain = made("llama", is_fused=False)[0]
    before_BTD = plain.run_body(IDS_BT)
    model = made("llama")[0]
    model.run_body(IDS_BT)
    with pytest.raises(IndexError), model.blocks[1].register_forward_pre_hook(lambda *_: [][0]):
        model.run_body(IDS_BT)  # it ends in the middle
    launches.clear()
    assert torch.equal(plain.run_body(IDS_BT), before_BTD)
    assert not launches


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "cohere"])
def test_what_liger_has_no_kernel_for_is_refused(family: str) -> None:
    # layer norms; no rotation, one of a part of each head, one of neighbouring elements
    with pytest.raises(InputError, match=f"--fused: {family} has no norms and no rotary embeddings for which"):
        made(family)


@pytest.mark.parametrize("wrong", ["epsilon", "scale", "rotation"])
def test_kernels_that_compute_something_else_stay_out(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fused._kernels

    def others(stacks: Any) -> Any:
        rms_norm, rotate = own(stacks)

        def norm(x: Tensor, weight: Tensor, epsilon: float, *further: Any) -> Tensor:
            scale, more = (1.001 if wrong == "scale" else 1), (1e-3 if wrong == "epsilon" else 0)
            return rms_norm(x, weight * scale, epsilon + more, *further)

        def rotated(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> Any:
            return rotate(q, k, cos, -sin if wrong == "rotation" else sin)

        return norm, rotated

    monkeypatch.setattr(fused, "_kernels", others)
    norms = 2 * LAYERS + 1
    expected = f"{norms} of {norms} norms" if wrong == "rotation" else f"0 of {norms} norms, rotary embeddings"
    assert made("llama")[1].endswith(f": {expected}")


def test_a_store_says_so_and_goes_on_only_with_the_same(
    model_folder: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {
        "corpus": {"python": corpora / "python"},
        "max_files": 1,
        "document_tokens": 6,
        "progress": Progress(quiet=True),
    }
    counts = {}
    for name, is_fused in (("plain", False), ("fused", True)):
        profile(str(model_folder), tmp_path / name, fused=is_fused, **options)
        corpus = store.committed_corpora(tmp_path / name)[0]
        counts[name] = store.read_corpus(tmp_path / name, corpus)["active"].sum(0).astype(np.int64)
    assert "fused" not in store.store_attributes(tmp_path / "fused")["model"]
    noted = store.store_attributes(tmp_path / "fused")["config"]["fused"]
    assert noted.startswith("liger-kernel ")
    assert abs(counts["fused"] - counts["plain"]).sum() <= 1e-3 * counts["plain"].sum()
    with pytest.raises(InputError, match="is a store of another config: fused"):
        profile(str(model_folder), tmp_path / "fused", **{**options, "max_files": 2})


def test_bench_compares_both() -> None:
    document = bench(shape="llama-3m", layers=1, rows=1, row_tokens=8, rounds=2, fused=True, on_terminal=False)
    assert {"bare", "full", "fused_bare", "fused_full"} <= document["seconds"].keys()
