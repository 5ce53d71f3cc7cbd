"""Embeddings against transformers' own hidden states, one text at a time, pooled by the formula."""

from typing import Any

import numpy as np
import pytest
import torch
from test_profiler_sites import loaded, tiny

from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN
from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.passes.embedding import embed_rows, position_weights

FAMILIES = ("llama", "gemma2", "gemma3", "phi", "phi3", "gpt2", "gpt_neox", "gptj", "codegen", "opt", "bloom", "falcon")
LENGTHS = (63, 1, 90, 7, 64, 2, 120, 7)


def documents(bos: bool = True) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [[0] * bos + rng.integers(2, 600, size=length).tolist() for length in LENGTHS]


def formula(model: Any, ids: list[int], first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(weighted, last), each [L, D]: of the tokens from `first` on."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    weighted = [sum(t * h for t, h in enumerate(s[0, first:].double().numpy(), 1)) for s in states]
    total = sum(range(1, len(ids) - first + 1))
    return np.stack(weighted) / total, np.stack([s[0, -1].double().numpy() for s in states])


def check(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_equals_hidden_states_of_one_text_at_a_time(family: str, tokenizer: Any) -> None:
    bare = tiny(family)
    rows = lay_out(list(enumerate(documents())), frozenset({0}), "documents", 128)
    found = embed_rows(loaded(family, tokenizer), rows, True, token_budget=256)
    assert found.weighted_NLD.shape == (8, 3, 64)
    assert found.weighted_NLD.dtype == np.float32
    for number, ids in enumerate(documents()):
        weighted_LD, last_LD = formula(bare, ids)
        check(found.weighted_NLD[number], weighted_LD)
        check(found.last_NLD[number], last_LD)


def test_bos_that_is_read_but_not_counted(tokenizer: Any) -> None:
    model, bare = loaded("llama", tokenizer), tiny("llama")
    for bos in (True, False):
        rows = lay_out(list(enumerate(documents(bos))), frozenset({0}), "documents", 128)
        found = embed_rows(model, rows, False, token_budget=256)
        for number, ids in enumerate(documents(bos)):
            weighted_LD, last_LD = formula(bare, ids, first=int(bos))
            check(found.weighted_NLD[number], weighted_LD)
            check(found.last_NLD[number], last_LD)


def test_the_batch_does_not_matter(tokenizer: Any) -> None:
    model, texts = loaded("llama", tokenizer), documents()
    rows = lay_out(list(enumerate(texts)), frozenset({0}), "documents", 128)
    together = embed_rows(model, rows, True, token_budget=4096)
    for number, ids in enumerate(texts):
        alone = embed_rows(model, lay_out([(0, ids)], frozenset({0}), "documents", 128), True, token_budget=1)
        check(together.weighted_NLD[number], alone.weighted_NLD[0])
        check(together.last_NLD[number], alone.last_NLD[0])


def test_weights_are_positions_among_real_tokens_on_whichever_side_pads_are() -> None:
    kind_BT = np.array([[SPECIAL, TOKEN, TOKEN, PAD, PAD], [PAD, PAD, SPECIAL, TOKEN, TOKEN], [TOKEN, *[PAD] * 4]])
    np.testing.assert_allclose(
        position_weights(kind_BT), np.array([[1, 2, 3, 0, 0], [0, 0, 1, 2, 3], [6, 0, 0, 0, 0]]) / 6, rtol=1e-15
    )
    right = np.array([[SPECIAL, TOKEN, TOKEN, PAD], [TOKEN, TOKEN, SPECIAL, PAD]])
    np.testing.assert_allclose(
        position_weights(right, count_bos=False), np.array([[0, 1, 2, 0], [0.5, 1, 1.5, 0]]) / 3, rtol=1e-15
    )
