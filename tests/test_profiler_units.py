"""Units: every document in exactly one, cut by bytes alone."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neurotally.profiler.corpus.documents import Manifest
from neurotally.profiler.corpus.units import Unit, cut_units, documents_by_unit


def manifest(sizes: list[int]) -> Manifest:
    return Manifest([str(index) for index in range(len(sizes))], np.array(sizes, np.uint64))


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.integers(1, 4000), st.integers(1, 10))
def test_units_partition_the_documents_and_respect_the_limit(sizes: list[int], ceiling: int, groups: int) -> None:
    units = cut_units(manifest(sizes), ceiling, groups)
    limit = min(ceiling, sum(sizes) // (4 * groups))
    assert [number for unit in units for number in range(unit.first, unit.end)] == list(range(len(sizes)))
    for unit in units:
        held = sizes[unit.first : unit.end]
        assert sum(held) <= limit or sum(size > 0 for size in held) == 1 or sum(held) == 0
    for before, after in itertools.pairwise(units):  # greedy: no two neighbours would fit together
        assert sum(sizes[before.first : before.end]) + sizes[after.first] > limit


def test_groups_are_dealt_round_robin() -> None:
    assert [Unit(index, 0, 1).group(3) for index in range(5)] == [0, 1, 2, 0, 1]


def test_documents_by_unit() -> None:
    assert documents_by_unit([Unit(0, 0, 2), Unit(1, 2, 3)]).tolist() == [0, 0, 1]


def test_enough_units_for_every_group() -> None:
    assert len(cut_units(manifest([100] * 400), 2**20, 10)) == 40
