"""Triton's kernels in tests: on the GPU where there is one, else in Triton's interpreter, in a process of its own.

Triton must be told to interpret, or not, before anything imports it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def run_python(*arguments: str, **environment: str) -> None:
    """In a process of its own that interprets only if the environment says so."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parent.parent, env=without | environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-20000:]


def run_cases(file: str) -> None:
    """Run the tests of a file that has `skip_unless_kernels_run`."""
    environment = {} if ON_GPU else {"TRITON_INTERPRET": "1"}
    run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", file, **environment)


def skip_unless_kernels_run() -> None:
    """Skip the file that says so where there is neither a GPU nor the interpreter."""
    if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)
