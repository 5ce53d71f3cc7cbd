"""Rows and padded batches: every token exactly once, at the right place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN
from neurotally.profiler.corpus.batches import lay_out, padded_batches

DOCUMENTS = st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=90), min_size=1, max_size=30)


@pytest.mark.parametrize("layout", ["documents", "concat"])
@given(documents=DOCUMENTS, row_tokens=st.integers(1, 64), budget=st.integers(1, 700))
@pytest.mark.slow
def test_every_token_is_counted_once(layout: str, documents: list[list[int]], row_tokens: int, budget: int) -> None:
    numbered = [(3 * number, ids) for number, ids in enumerate(documents)]
    rows = lay_out(numbered, frozenset({0, 7}), layout, row_tokens)
    seen = {}
    for batch in padded_batches(rows, budget, attention_budget=4096):
        height, width = batch.ids_BT.shape
        assert height * width >= 64
        assert height == 1 or height * width <= max(budget, 64 + height)
        for cell in np.argwhere(batch.kind_BT != PAD):
            place = (int(batch.document_BT[tuple(cell)]), int(batch.position_BT[tuple(cell)]))
            assert place not in seen
            seen[place] = (int(batch.ids_BT[tuple(cell)]), int(batch.kind_BT[tuple(cell)]))
    expected = {
        (number, position): (token, SPECIAL if token in (0, 7) else TOKEN)
        for number, ids in numbered
        for position, token in enumerate(ids)
    }
    assert seen == expected


def test_documents_begin_rows_of_their_own() -> None:
    rows = lay_out([(0, range(5)), (1, range(3))], frozenset(), "documents", 4)
    assert rows.bounds_R2.tolist() == [[0, 4], [4, 5], [5, 8]]


def test_concat_cuts_across_documents_and_keeps_the_last_row() -> None:
    rows = lay_out([(0, range(5)), (1, range(4))], frozenset(), "concat", 4)
    assert rows.bounds_R2.tolist() == [[0, 4], [4, 8], [8, 9]]
    assert rows.document_N.tolist() == [0] * 5 + [1] * 4
    assert rows.position_N.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3]


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of documents, concat"):
        lay_out([(0, [1, 2])], frozenset(), "document", 5)


def test_nothing_to_lay_out() -> None:
    assert list(padded_batches(lay_out([], frozenset(), "concat", 4), 100)) == []


def test_pads_are_on_the_right_only() -> None:
    rows = lay_out([(0, range(70)), (1, range(30))], frozenset(), "documents", 128)
    (batch,) = padded_batches(rows, 1000)
    assert batch.kind_BT.shape == (2, 70)
    assert (batch.kind_BT[1] != PAD).tolist() == [True] * 30 + [False] * 40
