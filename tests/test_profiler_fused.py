"""Fused norms and rotary embeddings: their cases in Triton's interpreter or on a GPU, and when they are refused."""

import sys
from pathlib import Path

import pytest
from interpreting import ON_GPU, run_cases

from neurotally.jobs import profile
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import load_model


@pytest.mark.slow
def test_the_cases() -> None:
    pytest.importorskip("liger_kernel", reason="Liger-Kernel isn't installed")
    run_cases("tests/fused_cases.py")


@pytest.mark.skipif(ON_GPU, reason="there is a GPU")
def test_a_cpu_is_refused(model_folder: Path) -> None:
    pytest.importorskip("liger_kernel", reason="Liger-Kernel isn't installed")
    with pytest.raises(InputError, match="--fused needs a model that is whole on GPUs: this one is on cpu"):
        load_model(str(model_folder), device="cpu", fused=True)


def test_without_liger_kernel_it_says_what_to_install(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", None)
    with pytest.raises(InputError, match=r"--fused: .*; pip install 'neurotally\[fused\]'"):
        load_model(str(model_folder), device="cpu", fused=True)


def test_several_devices_are_refused(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--fused: expected a model that one device holds"):
        profile(str(model_folder), tmp_path / "s", corpora=tmp_path, fused=True, device="cpu", devices_per_worker=2)
