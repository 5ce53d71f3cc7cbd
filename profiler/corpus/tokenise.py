"""Texts to token ids, the same way in every pass."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from neurotally.profiler.corpus.documents import Document, Status


class TokenIds(NamedTuple):
    """A text's T tokens."""

    ids_T: list[int]
    span_T2: np.ndarray
    """int64: first character of each and one past its last; [0, 2] where they weren't asked for."""


def tokenise(
    tokenizer: Any, texts: Sequence[str | None], document_tokens: int | None = None, with_spans: bool = False,
    with_special: bool = True,
) -> list[TokenIds]:  # fmt: skip
    """Every text's tokens; none of None, and none of a text that the tokenizer fails over.

    `document_tokens`: the first so many; None: all. `with_special`: the special ones that it puts around a text, too.
    """
    there = [text for text in texts if text is not None]
    encoded: Any = {"input_ids": [], "offset_mapping": []}
    if there:
        options: dict[str, Any] = {"return_offsets_mapping": with_spans, "add_special_tokens": with_special}
        if document_tokens is not None:
            options |= {"truncation": True, "max_length": document_tokens}
        encoded = _encode(tokenizer, there, options)
    ids = iter(encoded["input_ids"])
    spans = iter(encoded["offset_mapping"] if with_spans else [[]] * len(there))
    none = TokenIds([], np.empty((0, 2), np.int64))
    return [
        none if text is None else TokenIds(next(ids), np.array(next(spans), np.int64).reshape(-1, 2)) for text in texts
    ]


def _encode(tokenizer: Any, texts: Sequence[str], options: dict[str, Any]) -> Any:
    plain = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    try:
        return tokenizer(texts, **plain, **options)
    except BaseException as error:  # no Exception: a panic of the library, as where its regular expressions give up
        if type(error).__name__ != "PanicException":
            raise
    if len(texts) == 1:
        return {"input_ids": [[]], "offset_mapping": [[]]}
    alone = [_encode(tokenizer, [text], options) for text in texts]
    names = alone[0].keys()
    return {name: [one[name][0] for one in alone] for name in names}


def final_status(document: Document, ids_T: Sequence[int]) -> Status:
    """A document's status once it is tokenised: empty, too, if no token came of it."""
    return Status.EMPTY if document.status is Status.COUNTED and not ids_T else document.status
