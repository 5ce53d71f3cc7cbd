"""Tokenising: a text that the tokenizer fails over has no tokens, and the others have theirs."""

from typing import Any

import pytest

from neurotally.profiler.corpus.documents import Status, text_document
from neurotally.profiler.corpus.tokenise import final_status, tokenise


@pytest.mark.parametrize("with_spans", [False, True])
@pytest.mark.parametrize("document_tokens", [None, 2])
@pytest.mark.slow
def test_a_text_that_the_tokenizer_fails_over(fragile: Any, with_spans: bool, document_tokens: int | None) -> None:
    bad = "a" * 60 + "c"
    found = tokenise(fragile, ["ab", bad, None, "aab"], document_tokens, with_spans)
    assert [one.ids_T for one in found] == [[2], [], [], [0, 2]]
    assert [one.span_T2.tolist() for one in found] == ([[[0, 2]], [], [], [[0, 1], [1, 3]]] if with_spans else [[]] * 4)
    assert final_status(text_document(bad.encode()), found[1].ids_T) is Status.EMPTY
