"""The command for a machine with a GPU, rehearsed where there is none: every step runs and leaves what it found."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, str(ROOT / "tests/bench/on_gpu.py")]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal of what to run here"),
]


def test_every_step_runs(tmp_path: Path) -> None:
    before = (ROOT / "tests/bench/results.csv").read_bytes()
    subprocess.run([*COMMAND, str(tmp_path)], check=True, capture_output=True)
    found = json.loads((tmp_path / "on_gpu.json").read_text())
    assert not {name: result["failed"] for name, result in found.items() if "failed" in result}
    assert found["cases"]["passed"]
    assert found["other_tests"]["passed"]
    assert found["ceilings"]["copy_gb_per_s"] > 0
    assert found["ceilings"]["versions"]["torch"] == torch.__version__
    assert found["flips"]["relu2 bfloat16"] == {"differ": 0, "of": 256, "such as": []}
    assert set(found["loads"].values()) - {found["loads"]["step_s"]} == {"loads"}
    (kernels,) = (value for name, value in found["kernels"].items() if name != "step_s")
    assert {"counts", "everything", "pytorch", "tiling (256, 4, 256)"} <= set(kernels["silu, gated, 64 neurons"])
    assert found["llama-3.1-8b"]["refused at loading"] is None
    assert found["polycoder-2.7b"]["ratio_full"] > 0
    assert found["token_budget"]["halvings"] == 0
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert found["qwen3-30b-a3b"]["shape"] == "qwen3-moe-83m-2-layers"
    assert [row["variant"] for row in rows].count("full") == 3
    assert (ROOT / "tests/bench/results.csv").read_bytes() == before  # figures without meaning


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    subprocess.run([*COMMAND, str(tmp_path), "--limit", "0", "--only", "flips"], check=True, capture_output=True)
    assert json.loads((tmp_path / "on_gpu.json").read_text())["flips"]["failed"] == "left out: no time"


def test_a_process_that_dies_takes_nothing_with_it(tmp_path: Path) -> None:
    """Here of a limit that is over before the step has begun."""
    command = [*COMMAND, str(tmp_path), "--limit", "0.2", "--only", "flips"]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads((tmp_path / "on_gpu.json").read_text()) == {"flips": {"failed": "not done in 0 s"}}
    assert (tmp_path / "flips.log").exists()


BLOCKED = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "zarr", "numcodecs"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import neurotally.jobs.bench.measure, neurotally.jobs.cli, neurotally.profiler.passes.worker
"""


def test_what_measures_needs_neither_ray_nor_zarr() -> None:
    subprocess.run([sys.executable, "-c", BLOCKED], check=True)
