"""Triggers against a stable sort of everything offered, for the compiled lists and the ones in PyTorch."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sorted_triggers import as_list, sorted_triggers

from neurotally.kernels import triggers as kernels
from neurotally.kernels.activations import cpu_threads
from neurotally.kernels.compiled import library
from neurotally.kernels.layer_tally import RowMaxima
from neurotally.kernels.triggers import LayerTriggers

NUM_NEURONS = 3
PATHS = ("compiled", "reference")

# A row: a document, the position its first token has there, and for each neuron (value, column). Values are
# few, so that ties are the normal case, as in bf16.
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, float("inf")]
CELLS = st.tuples(st.sampled_from(VALUES), st.integers(0, 7))
ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([0, 8, 16]), st.lists(CELLS, min_size=3, max_size=3)),
    min_size=1,
    max_size=60,
)


@contextmanager
def path(name: str) -> Iterator[None]:
    if name == "compiled" and library() is None:
        pytest.skip("no C++ compiler here")
    with pytest.MonkeyPatch.context() as patch:
        if name == "reference":
            patch.setattr(kernels, "kernels_for", lambda *_: "plain")
        yield


def offer(triggers: LayerTriggers, rows: list) -> None:
    """Offer rows as one batch of 8 columns."""
    value_BF = torch.tensor([[value for value, _ in cells] for _, _, cells in rows])
    position_BF = torch.tensor([[column for _, column in cells] for _, _, cells in rows], dtype=torch.int32)
    document_BT = torch.tensor([[document] * 8 for document, _, _ in rows], dtype=torch.int32)
    position_BT = torch.tensor([[first + column for column in range(8)] for _, first, _ in rows], dtype=torch.int32)
    triggers.add(RowMaxima(value_BF, position_BF), document_BT, position_BT)


@pytest.mark.parametrize("kernel_path", PATHS)
@given(
    rows=ROWS,
    num_triggers=st.integers(1, 5),
    threshold=st.one_of(st.none(), st.lists(st.sampled_from(VALUES[:4]), min_size=3, max_size=3)),
    sizes=st.lists(st.integers(1, 20), max_size=8),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
@pytest.mark.slow
def test_any_order_and_split_gives_the_sorted_list(
    kernel_path: str, rows: list, num_triggers: int, threshold: Any, sizes: list[int], random: Any
) -> None:
    threshold_F = None if threshold is None else torch.tensor(threshold)
    offered = list(rows)
    random.shuffle(offered)
    with path(kernel_path):
        triggers = LayerTriggers(NUM_NEURONS, num_triggers, "cpu", threshold_F)
        while offered:
            size = sizes.pop() if sizes else len(offered)
            offer(triggers, offered[:size])
            offered = offered[size:]
        best = triggers.best()
    assert as_list(best) == sorted_triggers(rows, num_triggers, threshold or [0.0] * NUM_NEURONS)
    assert [column.dtype for column in best] == [np.uint32, np.float32, np.uint32, np.uint32]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("kernel_path", PATHS)
@pytest.mark.slow
def test_many_neurons_and_threads(kernel_path: str, num_threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    num_neurons, num_triggers = 123, 4
    with cpu_threads(num_threads), path(kernel_path):
        triggers = LayerTriggers(num_neurons, num_triggers, "cpu", None)
        every = []
        for batch in range(20):
            value_BF = torch.randn(9, num_neurons, generator=generator).bfloat16().float().clamp_min(0)
            position_BF = torch.randint(0, 50, (9, num_neurons), generator=generator)
            document_BT = torch.arange(batch * 9, batch * 9 + 9).flip(0)[:, None].expand(9, 50)
            position_BT = torch.arange(50)[None].expand(9, 50)
            triggers.add(RowMaxima(value_BF, position_BF), document_BT, position_BT)
            every += [
                (neuron, -value_BF[row, neuron].item(), int(document_BT[row, 0]), int(position_BF[row, neuron]))
                for row in range(9)
                for neuron in range(num_neurons)
            ]
        best = as_list(triggers.best())
    expected = []
    every.sort()
    for neuron in range(num_neurons):
        of_neuron = [candidate for candidate in every if candidate[0] == neuron and candidate[1] < 0]
        expected += [(n, -value, document, position) for n, value, document, position in of_neuron[:num_triggers]]
    assert best == expected


@pytest.mark.parametrize("kernel_path", PATHS)
def test_best_can_be_read_at_any_time(kernel_path: str) -> None:
    with path(kernel_path):
        triggers = LayerTriggers(NUM_NEURONS, 2, "cpu", None)
        assert as_list(triggers.best()) == []
        offer(triggers, [(5, 0, [(1.0, 3), (0.0, 0), (2.0, 1)])])
        assert as_list(triggers.best()) == [(0, 1.0, 5, 3), (2, 2.0, 5, 1)]
        offer(triggers, [(4, 8, [(1.0, 0), (0.0, 0), (0.5, 1)])])
        assert as_list(triggers.best()) == [(0, 1.0, 4, 8), (0, 1.0, 5, 3), (2, 2.0, 5, 1), (2, 0.5, 4, 9)]
        assert as_list(triggers.best()) == as_list(triggers.best())


def test_row_maxima_of_another_shape_are_refused() -> None:
    with path("compiled"), pytest.raises(ValueError, match="expected"):
        LayerTriggers(5, 2, "cpu", None).add(
            RowMaxima(torch.ones(2, 4), torch.zeros(2, 4, dtype=torch.int32)), torch.zeros(2, 8), torch.zeros(2, 8)
        )
