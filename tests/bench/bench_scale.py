"""Whether one driver keeps up with many workers: a profile by workers that compute nothing.

    python tests/bench/bench_scale.py [--workers 8] [--size 8b] [--unit-s 15.5] [--units 96] [--corpora 1]
                                      [--cpu-time] [--csv scale.csv]

The driver, its sums, checkpoints and commit are the real ones, on the real disk; a unit's time passes on a clock that
jumps while the driver waits (see tests/synthetic.py). With several workers a commit runs beside the rest: here as if on
cores of its own. On a machine that others use, too, --cpu-time counts what all threads of the driver compute, one after
the other, and no waiting for the disk. Prints one JSON line, and adds a row to a table with --csv:

    efficiency          time of all units over workers times the time of the run
    bytes_a_unit        that reach the driver, median; and the largest
    driver_s_a_unit     CPU seconds of the driver, drawing left out
    most_triggers       candidates a neuron in any unit that wasn't its worker's first of the corpus
    peak_mib            of this process, with what is drawn
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.result_rows import append_rows
from synthetic import Drawing, SyntheticEngine

from neurotally.jobs.corpora import ListedCorpus
from neurotally.jobs.loop import Loop, RunReport
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers.corpus_sums import CorpusSums
from neurotally.jobs.reducers.fold import Fold
from neurotally.jobs.reducers.reducer import Plan
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Manifest, Source
from neurotally.profiler.model.load import device_name
from neurotally.profiler.passes.worker import PassConfig

SIZES = {
    "8b": (32, 14_336), "70b": (80, 28_672), "small": (4, 1024),
    **{f"deepseek-v3 / {part}": (61, 257 * 2048 // part) for part in (1, 8, 16, 32)},
}  # fmt: skip
"""Layers, and neurons a layer; of DeepSeek-V3 all, or a part, with a unit's time to be divided alike."""
DOCUMENTS = 500
"""Of a unit."""


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--unit-s", type=float, default=15.5)
    parser.add_argument("--units", type=int, default=96, help="of a corpus")
    parser.add_argument("--corpora", type=int, default=1)
    parser.add_argument("--triggers", type=int, default=32)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--cpu-time", action="store_true", help="the driver's time is its threads' time on a CPU")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder) / "store", **{key: value for key, value in vars(arguments).items() if key != "csv"}
        )
    print(json.dumps(found))
    if arguments.csv is not None:
        append_rows(arguments.csv, [found])


def measure(
    path: Path,
    workers: int,
    size: str,
    unit_s: float,
    units: int,
    triggers: int,
    groups: int,
    corpora: int = 1,
    cpu_time: bool = False,
) -> dict[str, object]:
    """A run from its first unit to the last commit."""
    layers, neurons = SIZES[size]
    drawing = Drawing(layers, neurons, triggers)
    engine = SyntheticEngine(workers, unit_s, drawing, time.process_time if cpu_time else time.perf_counter)
    config = PassConfig("documents", 2048, None, 32768, 2**21, groups, triggers, kernels="triton")
    if not store.is_begun(path):
        store.create_store(path, {"model": None})
    plans = [_plan(f"{number:03}", units, config, (layers, neurons)) for number in range(corpora)]
    report = RunReport()
    committed = store.committed_groups(path)
    reducers = [plan.reducer(path, plan) for plan in plans if plan.group not in committed]
    in_background = engine.in_background if workers > 1 else None
    loop = Loop(
        path, engine, "synthetic", reducers, report, 60.0, Progress(quiet=True), clock=engine.clock,
        in_background=in_background,
    )  # fmt: skip
    cpu = time.process_time()
    loop.run()
    cpu = time.process_time() - cpu - engine.drawing_cpu_s
    num_units = corpora * units
    wall_s = engine.clock()
    return {
        "device": device_name("cpu"),
        "cores": os.cpu_count(),
        "clock": "cpu" if cpu_time else "wall",
        "size": size,
        "workers": workers,
        "units": units,
        "corpora": corpora,
        "unit_s": unit_s,
        "wall_s": round(wall_s, 1),
        "efficiency": round(num_units * unit_s / (workers * wall_s), 4),
        "best_efficiency": round(num_units / (workers * -(-num_units // workers)), 4),
        "bytes_a_unit": int(statistics.median(engine.bytes_by_unit)),
        "most_bytes": max(engine.bytes_by_unit),
        "driver_s_a_unit": round(cpu / num_units, 3),
        "write_s": round(report.write_s, 1),
        "most_triggers": round(max(engine.triggers_after_the_first, default=0.0), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _plan(name: str, units: int, config: PassConfig, shape: tuple[int, int]) -> Plan:
    names = [f"{number:07}.py" for number in range(DOCUMENTS * units)]
    manifest = Manifest(names, np.full(len(names), 4000, np.uint64))
    listed = ListedCorpus(name, Source("folder", "/nowhere", None, "folder"), None, manifest)
    cut = listed.units(4000 * DOCUMENTS, config.groups)
    assert len(cut) == units, (len(cut), units)
    make_sums = partial(CorpusSums, listed, cut, config, *shape)
    return Plan(
        f"corpora/{name}", [listed.task(unit) for unit in cut], listed.identity, partial(Fold, make_sums=make_sums),
        manifest=manifest, noted={"documents": len(names), "source_path": None},
    )  # fmt: skip


if __name__ == "__main__":
    main()
