"""What the driver needs to merge one unit into a corpus's sums and triggers, beside copying the unit's bytes.

    python tests/bench/bench_merging.py [--layers 32] [--neurons 14336] [--triggers 32] [--groups 10] [--units 16]

The default is the size of Llama-3.1-8B. Units are drawn: every neuron's K candidates of a unit are the largest of 500
normal numbers. Unfiltered units ship them all; a filtered one has about 2 a neuron that may enter the list of the first
ones. Prints one JSON line, of both kinds: seconds of a merge, in the mean with what is held back and inserted together;
the longest; of copying a unit's arrays; and the ratio of merge and copy.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from neurotally.kernels.statistics import STATISTICS
from neurotally.kernels.trigger_lists import UnitTriggers
from neurotally.profiler.neuron_sums import CorpusNeurons, UnitNeurons

DOCUMENTS = 500
FILTERED = 2


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--neurons", type=int, default=14_336)
    parser.add_argument("--triggers", type=int, default=32)
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--units", type=int, default=16)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (arguments.layers, arguments.neurons)
    corpus = CorpusNeurons.empty(*shape, arguments.groups, arguments.triggers)
    found: dict[str, dict[str, float]] = {}
    for kind, each, first in (("unfiltered", arguments.triggers, 0), ("filtered", FILTERED, arguments.units)):
        merge_s, copy_s = [], []
        for number in range(first, first + arguments.units):
            unit = make_unit(rng, shape, each, number)
            copy_s.append(timed(lambda unit=unit: copy(unit)))
            merge_s.append(timed(lambda unit=unit, number=number: corpus.add(unit, number % arguments.groups)))
        merge_s.append(timed(lambda: corpus.trigger_threshold()))  # what is held is inserted
        each_s, copied_s = sum(merge_s) / arguments.units, statistics.median(copy_s)
        found[kind] = {
            "entries": len(unit.triggers.value_N), "merge_s": round(each_s, 4), "longest_s": round(max(merge_s), 3),
            "copy_s": round(copied_s, 4), "ratio": round(each_s / copied_s, 1),
        }  # fmt: skip
    print(json.dumps(found))


def make_unit(rng: np.random.Generator, shape: tuple[int, int], each: int, number: int) -> UnitNeurons:
    """A unit with `each` candidates a neuron, of documents of its own."""
    num_neurons = shape[0] * shape[1]
    # The largest of 500 normal numbers, best first, lie about here; the draw spreads neurons and units.
    place = rng.exponential(size=(num_neurons, each)).cumsum(axis=1) / DOCUMENTS
    value = np.sqrt(-2 * np.log(np.clip(place, 1e-9, 0.9))).astype(np.float32)
    document = (rng.integers(0, DOCUMENTS, (num_neurons, 1)) + np.arange(each)) % DOCUMENTS
    return UnitNeurons(
        {one.name: (100 * rng.random(shape)).astype(one.shipped) for one in STATISTICS},
        UnitTriggers(
            np.full(num_neurons, each, np.uint32), value.ravel(),
            (document + DOCUMENTS * number).astype(np.uint32).ravel(),
            rng.integers(0, 4096, num_neurons * each).astype(np.uint32),
        ),
    )  # fmt: skip


def copy(unit: UnitNeurons) -> None:
    """Every array of a unit."""
    for array in (*unit.sums.values(), *unit.triggers):
        array.copy()


def timed(work: Callable[[], None]) -> float:
    """Seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
