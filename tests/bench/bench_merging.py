"""What the driver needs to merge one unit into a corpus's sums and triggers, beside copying the unit's bytes.

    python tests/bench/bench_merging.py [--layers 32] [--neurons 14336] [--triggers 32] [--groups 10] [--units 6]

The default is the size of Llama-3.1-8B. Units are drawn: every neuron's K candidates of a unit are the largest of 500
normal numbers. Unfiltered units ship them all; a filtered one has about 2 a neuron that may enter the list of the first
ones. Prints one JSON line: seconds of each merge, median seconds of both kinds, and of copying a unit's arrays.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from neurotally.kernels.statistics import STATISTICS
from neurotally.profiler.model.neurons import CorpusNeurons, UnitNeurons

DOCUMENTS = 500
FILTERED = 2


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--neurons", type=int, default=14_336)
    parser.add_argument("--triggers", type=int, default=32)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--units", type=int, default=6)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.layers, arguments.neurons)
    corpus = CorpusNeurons(*shape, arguments.groups, arguments.triggers)
    merges: dict[str, list[float]] = {"unfiltered": [], "filtered": []}
    copies: dict[str, list[float]] = {"unfiltered": [], "filtered": []}
    entries = {}
    for number in range(2 * arguments.units):
        kind = "unfiltered" if number < arguments.units else "filtered"
        each = arguments.triggers if kind == "unfiltered" else FILTERED
        unit = make_unit(rng, shape, each, number)
        entries[kind] = len(unit.trigger_value_N)
        copies[kind].append(timed(lambda unit=unit: copy(unit)))
        merges[kind].append(timed(lambda unit=unit, number=number: corpus.add(unit, number % arguments.groups)))
    print(json.dumps({
        "entries": entries,
        "merge_s": {kind: round(statistics.median(seconds), 4) for kind, seconds in merges.items()},
        "copy_s": {kind: round(statistics.median(seconds), 4) for kind, seconds in copies.items()},
        "each_merge_s": {kind: [round(one, 3) for one in seconds] for kind, seconds in merges.items()},
    }))  # fmt: skip


def make_unit(rng: np.random.Generator, shape: tuple[int, int], each: int, number: int) -> UnitNeurons:
    """A unit with `each` candidates a neuron, of documents of its own."""
    num_neurons = shape[0] * shape[1]
    # The largest of 500 normal numbers, best first, lie about here; the draw spreads neurons and units.
    place = rng.exponential(size=(num_neurons, each)).cumsum(axis=1) / DOCUMENTS
    value = np.sqrt(-2 * np.log(np.clip(place, 1e-9, 0.9))).astype(np.float32)
    document = (rng.integers(0, DOCUMENTS, (num_neurons, 1)) + np.arange(each)) % DOCUMENTS
    return UnitNeurons(
        {one.name: rng.random(shape).astype(one.stored) for one in STATISTICS},
        trigger_count_F=np.full(num_neurons, each, np.uint32),
        trigger_value_N=value.ravel(),
        trigger_document_N=(document + DOCUMENTS * number).astype(np.uint32).ravel(),
        trigger_position_N=rng.integers(0, 4096, num_neurons * each).astype(np.uint32),
    )


def copy(unit: UnitNeurons) -> None:
    """Every array of a unit."""
    for array in [*unit.sums.values(), *(value for name, value in vars(unit).items() if name != "sums")]:
        array.copy()


def timed(work: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
