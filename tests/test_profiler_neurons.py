"""Merging units: triggers in the total order, whatever the order of the units."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neurotally.kernels import trigger_lists
from neurotally.kernels.activations import cpu_threads
from neurotally.kernels.compiled import library
from neurotally.profiler.model.neurons import TriggerTable
from neurotally.profiler.store import NO_DOCUMENT

NEURONS = 40
"""More than one thread takes: threads meet at multiples of 32."""
CANDIDATES = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 31, 32, 39]),
        st.sampled_from([0.5, 1.0, 1.5, 2.0]),
        st.integers(0, 40),
        st.integers(0, 9),
    ),
    max_size=120,
    unique_by=lambda candidate: (candidate[0], candidate[2]),
)


def insert(table: TriggerTable, candidates: list[tuple[int, float, int, int]]) -> None:
    ordered = sorted(candidates, key=lambda c: (c[0], -c[1], c[2], c[3]))
    columns = list(zip(*ordered, strict=True)) if ordered else [(), (), (), ()]
    table.insert(
        np.array(columns[0], np.int64), np.array(columns[1], np.float32), np.array(columns[2], np.uint32),
        np.array(columns[3], np.uint32),
    )  # fmt: skip


@pytest.fixture(params=["compiled", "plain"])
def inserted_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "plain":
        monkeypatch.setattr(trigger_lists, "library", lambda: None)
    elif library() is None:
        pytest.skip("no C++ compiler")


@pytest.mark.usefixtures("inserted_by")
@given(CANDIDATES, st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
def test_any_split_into_units_in_any_order_gives_the_sorted_list(
    candidates: list, k: int, threads: int, random: object
) -> None:
    table = TriggerTable.empty(NEURONS, k)
    units: dict[int, list] = {}
    for candidate in candidates:  # a document is in one unit
        units.setdefault(candidate[2] % 5, []).append(candidate)
    order = list(units)
    random.shuffle(order)  # type: ignore[attr-defined]
    with cpu_threads(threads):
        for unit in order:
            insert(table, units[unit])
    for neuron in range(NEURONS):
        expected = sorted((-value, document, position) for n, value, document, position in candidates if n == neuron)
        for rank in range(k):
            got = (table.value_NK[neuron, rank], table.document_NK[neuron, rank], table.position_NK[neuron, rank])
            want = (-expected[rank][0], *expected[rank][1:]) if rank < len(expected) else (0, NO_DOCUMENT, NO_DOCUMENT)
            assert got == want


def test_no_triggers_kept() -> None:
    table = TriggerTable.empty(NEURONS, 0)
    insert(table, [(1, 2.0, 3, 4)])
    assert table.value_NK.shape == table.document_NK.shape == (NEURONS, 0)
