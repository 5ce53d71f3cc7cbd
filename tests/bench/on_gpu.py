"""What a machine with a GPU should tell about the kernels, in one command of under eight minutes.

    python tests/bench/on_gpu.py OUT [--limit SECONDS] [--only STEP ...]

The most valuable first: the kernels' cases; what a copy and a matrix product reach; 16-bit numbers whose activation
differs from PyTorch's in any bit; whether models of three dtypes pass the check at loading; the kernels alone, by
tilings; the whole pass of Llama-3.1-8B's, PolyCoder's and a mixture's shapes; a token budget that is too large; the
kernels' other tests. Each step is a process of its own with a limit of its own, so that one that dies takes nothing
with it, and is saved in OUT/STEP.json and OUT/on_gpu.json when it ends; its output is OUT/STEP.log. Rows of the whole
pass are added to OUT/results.csv and, on a GPU, to tests/bench/results.csv; where Liger-Kernel is installed those of
fused norms and rotary embeddings, too.

Needs a checkout, Python 3.11 and the packages that it checks for, but neither Ray nor zarr, and downloads nothing.
Where there is no GPU it is a rehearsal in one process: small shapes, Triton's interpreter, figures without meaning.
"""

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
FOLDERS = ("kernels", "profiler", "jobs", "analysis")
NEEDED = (
    "torch", "triton", "transformers", "accelerate", "numpy", "psutil", "click", "tabulate", "tqdm", "filelock",
    "pytest", "xdist", "hypothesis",
)  # fmt: skip
WHEELS = "python -m pip download --only-binary=:all: --no-deps -d wheels"


def main() -> None:
    """Run the steps, or, as the process of some of them, these."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--limit", type=float, default=480, help="seconds for all steps; the rest is left out")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), metavar="STEP")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        names = " ".join("pytest-xdist" if name == "xdist" else name for name in missing)
        raise SystemExit(f"missing here: {names}; where there is a network: {WHEELS} {names}")
    if arguments.here:
        for name in arguments.only:
            run_here(name, arguments.out)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as packages:
        lay_out(Path(packages))
        processes = [[name] for name in arguments.only] if ON_GPU else [arguments.only]
        run_all(processes, arguments.out, packages, time.monotonic() + arguments.limit)


def lay_out(packages: Path) -> None:
    """Make this checkout importable as it is when installed."""
    (packages / "neurotally").mkdir()
    for name in FOLDERS:
        (packages / "neurotally" / name).symlink_to(ROOT / name, target_is_directory=True)


def run_all(processes: list[list[str]], out: Path, packages: str, end: float) -> None:
    """Run the steps of each process in turn, and save what was found whenever one ends."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([packages, str(ROOT / "tests")]), **INTERPRETED}
    found: dict[str, Any] = {}
    for names in processes:
        for name in names:
            (out / f"{name}.json").unlink(missing_ok=True)
        limit = min(sum(STEPS[name][1] for name in names), end - time.monotonic())
        why = run_process([*names, "--here"], out, limit, environment) if limit > 0 else "left out: no time"
        for name in names:
            result = out / f"{name}.json"
            found[name] = json.loads(result.read_text()) if result.exists() else {"failed": why}
            print(name, json.dumps(found[name])[:1000], flush=True)
        (out / "on_gpu.json").write_text(json.dumps(found, indent=1))


def run_process(only: list[str], out: Path, limit: float, environment: dict[str, str]) -> str:
    """Run steps in a process of its own; returns how it ended."""
    command = [sys.executable, __file__, str(out), "--only", *only]
    with (out / f"{only[0]}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT, start_new_session=True)
        try:
            return f"exit status {process.wait(limit)}"
        except subprocess.TimeoutExpired:
            return f"not done in {limit:.0f} s"
        finally:  # with the processes of a step's tests, which would go on beside the next step
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_here(name: str, out: Path) -> None:
    """Run one step, and save what it found."""
    start = time.monotonic()
    try:
        result = STEPS[name][0](out)
    except Exception:  # a finding, and no reason to leave out the others
        result = {"failed": traceback.format_exc()[-2000:]}
    result = {"step_s": round(time.monotonic() - start, 1), **result}
    (out / f"{name}.json").write_text(json.dumps(result))


def has_gpu() -> bool:
    """Whether PyTorch sees a GPU."""
    import torch

    return torch.cuda.is_available()


ON_GPU = has_gpu()
DEVICE = "cuda" if ON_GPU else "cpu"
INTERPRETED = {} if ON_GPU else {"TRITON_INTERPRET": "1"}


def cases(_out: Path) -> dict[str, Any]:
    """The kernels against the reference."""
    return pytest_of("tests/triton_cases.py", [] if ON_GPU else ["-k", "which_activations"])


def other_tests(_out: Path) -> dict[str, Any]:
    """What they compile to, that nothing waits, and tensors of more than 2^31 elements."""
    return pytest_of(
        "tests/test_kernels_triton.py", ["-k", "not equals_the_reference" if ON_GPU else "never_wait or 2_to_the_31"]
    )


def pytest_of(file: str, options: list[str]) -> dict[str, Any]:
    """The last line that pytest says of a file, and what failed."""
    workers = ["-n", "8"] if ON_GPU and file.endswith("cases.py") else []
    command = [sys.executable, "-m", "pytest", "-q", "-rf", "-p", "no:cacheprovider", *workers, file, *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout, done.stderr, file=sys.stderr)
    lines = done.stdout.strip().splitlines()
    return {
        "passed": done.returncode == 0, "summary": lines[-1] if lines else "",
        "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))][:40],
    }  # fmt: skip


def ceilings(_out: Path) -> dict[str, Any]:
    """What a copy and a matrix product reach."""
    import torch

    from neurotally.jobs.bench.clock import copy_rate, matrix_rate
    from neurotally.jobs.versions import versions
    from neurotally.profiler.model.load import device_name

    device, dtype = torch.device(DEVICE), torch.bfloat16 if ON_GPU else torch.float32
    return {
        "device": device_name(DEVICE), "versions": versions(), "copy_gb_per_s": copy_rate(device) / 1e9,
        "matrix_tflop_per_s": matrix_rate(device, dtype) / 1e12,
    }  # fmt: skip


def flips(_out: Path) -> dict[str, Any]:
    """Of all numbers of a 16-bit dtype, and of many of float32: whose activation differs from PyTorch's in any bit."""
    import torch

    from neurotally.kernels import triton_tally
    from neurotally.kernels.layer_tally import LayerTally, Statistics

    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype == torch.float32:
            x_BTF = torch.randn(1, 64, 1024)
        else:
            x_BTF = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 64, 1024)
        x_BTF = (x_BTF if ON_GPU else x_BTF[:, ::16, ::16]).contiguous().to(DEVICE)
        num_neurons = x_BTF.shape[-1]
        kind_BT = torch.ones(x_BTF.shape[:2], dtype=torch.uint8, device=DEVICE)
        for name, act in activations().items():
            into = LayerTally.empty(num_neurons, DEVICE)
            with torch.inference_mode():
                ours = triton_tally.tally(name, None, x_BTF, None, kind_BT, into, Statistics.COUNTS)[0]
                theirs = act(x_BTF)
            differs = (ours != theirs) & ~(ours.isnan() & theirs.isnan())
            found[f"{name} {str(dtype).removeprefix('torch.')}"] = {
                "differ": int(differs.sum()), "of": x_BTF.numel(), "such as": x_BTF[differs][:16].tolist()
            }  # fmt: skip
    return found


def activations() -> dict[str, Any]:
    """By the kernels' names."""
    from torch import nn
    from transformers.activations import ACT2FN

    return {
        "silu": nn.SiLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "relu": nn.ReLU(), "relu2": ACT2FN["relu2"]
    }  # fmt: skip


def loads(_out: Path) -> dict[str, Any]:
    """Whether models pass the check at loading."""
    import torch

    from neurotally.jobs.bench.models import random_model

    shapes = [
        ("llama-34m", None, "float32"), ("llama-34m", None, "float16"), ("llama-34m", None, "bfloat16"),
        ("polycoder-2.7b", None, "bfloat16"), ("polycoder-2.7b", 16, "float32"),
        ("llama-3.1-8b", None, "bfloat16"), ("llama-3.1-8b", 16, "float16"),
    ]  # fmt: skip
    found = {}
    for shape, layers, dtype in shapes if ON_GPU else [("llama-3m", 2, "float32"), ("llama-3m", 2, "bfloat16")]:
        found[f"{shape} {layers or 'all'} layers {dtype}"] = outcome_of(
            lambda shape=shape, layers=layers, dtype=dtype: random_model(shape, layers, dtype, DEVICE)
        )
        gc.collect()  # a model and its hook points refer to each other
        torch.cuda.empty_cache()
    return found


def outcome_of(load: Callable[[], object]) -> str:
    """Whether it loads, or why not."""
    try:
        load()
    except Exception as error:  # each is a finding
        return f"{type(error).__name__}: {error}"
    return "loads"


def kernels(_out: Path) -> dict[str, Any]:
    """The gated and the plain kernel alone: by statistics, and everything by tilings."""
    import torch

    from neurotally.jobs.bench.clock import copy_rate, device_seconds
    from neurotally.kernels import triton_tally
    from neurotally.kernels.layer_tally import LayerTally, Statistics
    from neurotally.kernels.triton_tally import Tiling

    rows, tokens, repeats = (16, 2048, 15) if ON_GPU else (1, 16, 1)
    shapes = [("silu", 14336, True), ("gelu_tanh", 14336, True), ("gelu", 10240, False), ("relu", 10240, False)]
    tilings = [Tiling(256), Tiling(512), Tiling(2048), Tiling(1024, 8), Tiling(1024, 4, 128), Tiling(1024, 4, 512)]
    copied = copy_rate(torch.device(DEVICE))
    found: dict[str, Any] = {}
    for name, num_neurons, is_gated in shapes if ON_GPU else [("silu", 64, True), ("gelu", 64, False)]:
        shape = (rows, tokens, num_neurons)
        pre_BTF, other_BTF = (torch.randn(shape, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
        up_BTF = other_BTF if is_gated else None
        kind_BT = torch.ones(shape[:2], dtype=torch.uint8, device=DEVICE)
        into, act = LayerTally.empty(num_neurons, DEVICE), activations()[name]
        num_bytes = (3 if is_gated else 2) * pre_BTF.numel() * pre_BTF.element_size()

        def share_of_a_copy(run: Callable[[], object], num_bytes: int = num_bytes) -> list[float]:
            seconds = device_seconds(run, DEVICE, repeats)
            return [round(1e3 * seconds, 4), round(num_bytes / seconds / copied, 3)]

        def ours(level: Statistics = Statistics.EVERYTHING) -> Callable[[], object]:
            return lambda: triton_tally.tally(name, None, pre_BTF, up_BTF, kind_BT, into, level)  # noqa: B023

        with torch.inference_mode():
            one = {level.name.lower(): share_of_a_copy(ours(level)) for level in Statistics}
            one["pytorch"] = share_of_a_copy(lambda: act(pre_BTF) if up_BTF is None else act(pre_BTF) * up_BTF)  # noqa: B023
            own_tiling = triton_tally._tiling
            for tiling in tilings if ON_GPU else tilings[:1]:
                triton_tally._tiling = lambda *_, tiling=tiling: tiling
                try:
                    one[f"tiling {tuple(tiling)[:3]}"] = share_of_a_copy(ours())
                except Exception as error:  # one that needs more than the device has
                    one[f"tiling {tuple(tiling)[:3]}"] = f"{type(error).__name__}: {error}"[:200]
            triton_tally._tiling = own_tiling
        found[f"{name}, {'gated' if is_gated else 'plain'}, {num_neurons:,} neurons"] = one
    return {"[ms, share of a copy's rate]": found}


def whole_pass(
    shape: str, rounds: int, layers: int | None = None, rehearsed: str = "llama-3m"
) -> Callable[[Path], dict[str, Any]]:
    """The whole pass of a shape, cut to so many `layers`, against its bare body; `rehearsed`: a small one instead."""

    def step(out: Path) -> dict[str, Any]:
        from neurotally.jobs.bench.measure import append_csv, bench, bench_table
        from neurotally.profiler.errors import UnsupportedModelError
        from neurotally.profiler.model import verify

        small = {} if ON_GPU else {"rows": 2, "row_tokens": 32, "layers": 2}
        options: dict[str, Any] = {
            "shape": shape if ON_GPU else rehearsed, "layers": layers, "rounds": rounds if ON_GPU else 2,
            "fused": ON_GPU and find_spec("liger_kernel") is not None, "on_terminal": False, **small,
        }  # fmt: skip
        refused = None
        try:
            document = bench(**options)
        except UnsupportedModelError as error:  # measured all the same, since the machine is here
            refused = str(error)
            verify.verify_hook_points = lambda *_: None
            document = bench(**options)
        print(bench_table(document), file=sys.stderr)
        append_csv(document, out / "results.csv")
        if ON_GPU and refused is None:
            append_csv(document, Path(__file__).with_name("results.csv"))
        return {"refused at loading": refused, **document}

    return step


def token_budget(_out: Path) -> dict[str, Any]:
    """A budget far too large is halved until it fits, before the first unit."""
    import torch

    from neurotally.jobs.bench.models import random_model
    from neurotally.profiler.passes.worker import PassConfig, Worker

    model, name = random_model("llama-3.1-8b" if ON_GPU else "llama-3m", 4, "bfloat16", DEVICE)
    config = PassConfig(
        layout="documents", row_tokens=2048 if ON_GPU else 32, document_tokens=None,
        token_budget=2**22 if ON_GPU else 256, max_unit_bytes=2**20, groups=1, triggers=32,
        kernels=model.facts.kernels,
    )  # fmt: skip
    start = time.monotonic()
    worker = Worker(model, config)
    worker.fit_token_budget()
    peak = torch.cuda.max_memory_allocated() if ON_GPU else 0
    return {"model": name, "halvings": worker.halvings, "seconds_twice": time.monotonic() - start, "peak_bytes": peak}


STEPS: dict[str, tuple[Callable[[Path], dict[str, Any]], float]] = {
    "cases": (cases, 150),
    "ceilings": (ceilings, 60),
    "flips": (flips, 60),
    "loads": (loads, 90),
    "kernels": (kernels, 90),
    "llama-3.1-8b": (whole_pass("llama-3.1-8b", 12), 200),
    "polycoder-2.7b": (whole_pass("polycoder-2.7b", 12), 120),
    "qwen3-30b-a3b": (whole_pass("qwen3-30b-a3b", 6, 4, "qwen3-moe-83m"), 120),
    "token_budget": (token_budget, 60),
    "other_tests": (other_tests, 120),
}
"""By name: what it runs, and seconds that it may take."""

if __name__ == "__main__":
    main()
