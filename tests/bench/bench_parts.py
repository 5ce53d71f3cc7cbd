"""What memory it takes to put the parts of a pass together, beside what they hold.

    python tests/bench/bench_parts.py [--parts 60] [--layers 17] [--width 1024]

Writes the parts of an embedding pass (64 texts each, two arrays of float32 [texts, layers, width]) and makes the group
of them. Prints one JSON line: MiB of the parts, and by how much the peak of this process's memory grew.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from neurotally.jobs.door import TASK_TEXTS
from neurotally.jobs.engines.engine import Outcome
from neurotally.jobs.passes.embed import SCHEMA, _assemble, _cut
from neurotally.jobs.reducers.parts import Part, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.profiler import store
from neurotally.profiler.corpus.parallel import ParallelTexts

_MIB = 2**20


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=60)
    parser.add_argument("--layers", type=int, default=17)
    parser.add_argument("--width", type=int, default=1024)
    arguments = parser.parse_args()
    ids = tuple(str(number) for number in range(TASK_TEXTS * arguments.parts))
    texts = ParallelTexts(("C",), ids, {"C": {id_: f"text {id_}" for id_ in ids}})
    distinct = list(texts.texts["C"].values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        store.create_store(path, {"model": None})
        keep = partial(Parts, assemble=partial(_assemble, texts, distinct, "counted", 2048), schema=SCHEMA)
        reducer = keep(path, Plan("embeddings/all", _cut(distinct, TASK_TEXTS), {}, keep))
        rng = np.random.default_rng(0)
        for task in reducer.plan.tasks:
            reducer.take(Outcome(task.key, make_part(rng, arguments.layers, arguments.width), 0.0, 0.0))
        parts_bytes = sum(file.stat().st_size for file in path.rglob("*.npz"))
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        reducer.publish({})
        grown = memory("VmHWM") - before
    print(json.dumps({"parts_mib": parts_bytes // _MIB, "grown_mib": grown // _MIB}))


def make_part(rng: np.random.Generator, layers: int, width: int) -> Part:
    """Of TASK_TEXTS texts."""
    shape = (TASK_TEXTS, layers, width)
    arrays = {name: rng.random(shape, np.float32) for name in ("weighted", "last")}
    arrays |= {"fits": np.ones(TASK_TEXTS, bool), "tokens": np.full(TASK_TEXTS, 9), "special": np.ones(TASK_TEXTS)}
    return Part(arrays, 9 * TASK_TEXTS)


def memory(what: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


if __name__ == "__main__":
    main()
