"""Losses against the model's own, one document at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from neurotally.jobs.loss_matrix import loss_matrix
from neurotally.profiler.loss import document_losses
from neurotally.profiler.model import LoadedModel, load_model


@pytest.fixture(scope="module")
def model(model_folder: Path) -> LoadedModel:
    return load_model(str(model_folder), "cpu")


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [[0, *rng.integers(2, 600, length).tolist()] for length in (30, 100, 1, 64)]


def own_loss(model: Any, ids: list[int]) -> tuple[float, int]:
    """The model's own mean loss over rows of 64 tokens, as a sum."""
    nats, tokens = 0.0, 0
    for start in range(0, len(ids), 64):
        row = torch.tensor([ids[start : start + 64]])
        if row.shape[1] > 1:
            with torch.no_grad():
                nats += float(model(input_ids=row, labels=row).loss) * (row.shape[1] - 1)
            tokens += row.shape[1] - 1
    return nats, tokens


def test_equals_the_models_own_loss(model: LoadedModel, documents: list[list[int]], model_folder: Path) -> None:
    losses = document_losses(model, documents, 64)
    bare = AutoModelForCausalLM.from_pretrained(model_folder)
    expected = [own_loss(bare, ids) for ids in documents]
    np.testing.assert_allclose(losses.nats_n, [nats for nats, _ in expected], rtol=1e-5)
    assert losses.tokens_n.tolist() == [tokens for _, tokens in expected]


def test_the_matrix_is_what_edited_weights_give(
    model: LoadedModel, documents: list[list[int]], model_folder: Path
) -> None:
    neurons = {"a": [(0, 3), (1, 7)], "b": [(1, 40)]}
    corpora = {"a": documents[:2], "b": documents[2:]}
    matrix = loss_matrix(model, corpora, neurons, 64, draws=2)
    for row, off in enumerate(neurons.values()):
        edited = AutoModelForCausalLM.from_pretrained(model_folder)
        with torch.no_grad():
            for layer, neuron in off:
                edited.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
        for column, texts in enumerate(corpora.values()):
            nats, tokens = np.sum([own_loss(edited, ids) for ids in texts], axis=0)
            expected = nats / tokens - matrix.baseline_C[column]
            assert matrix.change_CC[row, column] == pytest.approx(expected, abs=1e-5)
    assert matrix.random_DCC.shape == (2, 2, 2)
    assert not np.array_equal(matrix.random_DCC[0], matrix.random_DCC[1])
