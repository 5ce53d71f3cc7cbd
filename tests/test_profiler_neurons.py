"""Merging units: triggers in the total order, whatever the order of the units."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurotally.kernels import trigger_lists
from neurotally.kernels.activations import cpu_threads
from neurotally.kernels.compiled import library
from neurotally.kernels.statistics import NO_DOCUMENT
from neurotally.kernels.trigger_lists import CorpusTriggers, UnitTriggers

NEURONS = 41
"""More than one thread takes: threads meet at multiples of 32. Odd: the last is merged alone."""
CANDIDATES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 31, 32, 40]),
        st.sampled_from([0.5, 1.0, 1.5, 2.0]),
        st.integers(0, 40),
        st.integers(0, 9),
    ),
    max_size=120,
    unique_by=lambda candidate: (candidate[0], candidate[2]),
)


def insert(table: CorpusTriggers, candidates: list[tuple[int, float, int, int]]) -> None:
    table.insert([triggers_of(candidates)])


def triggers_of(candidates: Sequence[tuple[int, float, int, int]]) -> UnitTriggers:
    ordered = sorted(candidates, key=lambda c: (c[0], -c[1], c[2], c[3]))
    neuron, value, document, position = zip(*ordered, strict=True) if ordered else ((), (), (), ())
    return UnitTriggers(
        np.bincount(np.array(neuron, np.int64), minlength=NEURONS).astype(np.uint32), np.array(value, np.float32),
        np.array(document, np.uint32), np.array(position, np.uint32),
    )  # fmt: skip


@pytest.fixture(params=["compiled", "plain"])
def inserted_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(trigger_lists, "library", lambda: None)
    elif library() is None:
        pytest.skip("no C++ compiler")


@pytest.mark.usefixtures("inserted_by")
@given(CANDIDATES, st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.randoms(use_true_random=False))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_any_split_into_units_in_any_order_gives_the_sorted_list(
    candidates: list, k: int, threads: int, together: int, random: object
) -> None:
    table = CorpusTriggers.empty(NEURONS, k)
    units: dict[int, list] = {}
    for candidate in candidates:  # a document is in one unit
        units.setdefault(candidate[2] % 5, []).append(candidate)
    order = list(units)
    random.shuffle(order)  # type: ignore[attr-defined]
    with cpu_threads(threads):
        for at_once in (order[:together], *([unit] for unit in order[together:])):
            table.insert([triggers_of(units[unit]) for unit in at_once])
    for neuron in range(NEURONS):
        expected = sorted((-value, document, position) for n, value, document, position in candidates if n == neuron)
        for rank in range(k):
            got = (table.value_FK[neuron, rank], table.document_FK[neuron, rank], table.position_FK[neuron, rank])
            want = (-expected[rank][0], *expected[rank][1:]) if rank < len(expected) else (0, NO_DOCUMENT, NO_DOCUMENT)
            assert got == want


@pytest.mark.usefixtures("inserted_by")
@pytest.mark.parametrize("num_units", [1, 3, 8])
@pytest.mark.parametrize("k", [7, 32])
def test_more_candidates_than_are_merged_at_a_time(num_units: int, k: int) -> None:
    rng = np.random.default_rng(num_units)
    units, expected = [[] for _ in range(num_units)], []
    for neuron in range(NEURONS):
        value = rng.integers(1, 60, 150).astype(np.float32)  # many are equal
        entries = [(neuron, of, document, document % 7) for document, of in enumerate(value[: rng.integers(0, 150)])]
        for entry in entries:
            units[entry[2] % num_units].append(entry)
        best = sorted((-of, document, position) for _, of, document, position in entries)[:k]
        expected.append([*best, *[(0, NO_DOCUMENT, NO_DOCUMENT)] * (k - len(best))])
    table = CorpusTriggers.empty(NEURONS, k)
    with cpu_threads(1):
        table.insert([triggers_of(unit) for unit in units])
    columns = (-table.value_FK, table.document_FK, table.position_FK)
    for column, wanted in zip(columns, np.array(expected).transpose(2, 0, 1), strict=True):
        np.testing.assert_array_equal(column, wanted)


@given(CANDIDATES, st.integers(1, 4), st.integers(2, 6), st.data())
@settings(deadline=None)
@pytest.mark.slow
def test_what_workers_leave_out_by_any_threshold_that_they_know_changes_no_list(
    candidates: list, k: int, num_units: int, data: st.DataObject
) -> None:
    whole, known = CorpusTriggers.empty(NEURONS, k), [np.zeros(NEURONS, np.float32)]
    by_unit = [[one for one in candidates if one[2] % num_units == unit] for unit in range(num_units)]
    shipped = []
    for unit in data.draw(st.permutations(by_unit)):
        best = best_of(unit, k)
        # A worker may know the last values of any units, its own again after a crash, and of any that are merged.
        heard = data.draw(st.lists(st.sampled_from([*known, best.threshold(k)])))
        shipped.append(best.not_below(np.maximum.reduce([known[0], *heard])))
        known.append(best.threshold(k))
        merged = CorpusTriggers.empty(NEURONS, k)
        merged.insert(shipped)
        known.append(merged.value_FK[:, -1].copy())
    whole.insert(data.draw(st.permutations(shipped)))
    expected = CorpusTriggers.empty(NEURONS, k)
    insert(expected, candidates)
    for got, wanted in zip(whole, expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def best_of(candidates: list[tuple[int, float, int, int]], k: int) -> UnitTriggers:
    """The K best of each neuron, as a unit ships them."""
    ordered = sorted(candidates, key=lambda c: (c[0], -c[1], c[2], c[3]))
    best = [one for number, one in enumerate(ordered) if [c[0] for c in ordered[:number]].count(one[0]) < k]
    return triggers_of(best)


def test_no_triggers_kept() -> None:
    table = CorpusTriggers.empty(NEURONS, 0)
    insert(table, [(1, 2.0, 3, 4)])
    assert table.value_FK.shape == table.document_FK.shape == (NEURONS, 0)
