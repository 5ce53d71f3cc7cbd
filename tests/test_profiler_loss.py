"""Losses against the model's own full logits, and neurons switched off against models edited by hand."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from test_profiler_sites import FAMILIES, loaded, tiny
from torch import nn

from neurotally.kernels.layer_tally import PAD
from neurotally.profiler.corpus.batches import Batch, lay_out, padded_batches
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.load import LoadedModel, prepare_model
from neurotally.profiler.passes.loss import LossReader

NEURONS = {0: [1, 5], 1: [90]}
# family: the keys (what the activation is given) and what reads the coefficients, as the model's own code has them
KEYS = {
    "llama": ("layers.{}.mlp.gate_proj", "layers.{}.mlp.down_proj"),
    "codegen": ("h.{}.mlp.fc_in", "h.{}.mlp.fc_out"),
    "gpt_neox": ("layers.{}.mlp.dense_h_to_4h", "layers.{}.mlp.dense_4h_to_h"),
}


def with_biases(family: str) -> Any:
    """The tiny model of a family with every bias, the head's too, drawn at random instead of zero."""
    model = tiny(family)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def prepared(family: str, tokenizer: Any) -> LoadedModel:
    return prepare_model(with_biases(family), tokenizer, family, None, "float32")


def one_batch(lengths: tuple[int, ...] = (30, 64, 1, 17), vocabulary: int = 600) -> Batch:
    rng = np.random.default_rng(0)
    documents = [[0, *rng.integers(2, vocabulary, length - 1).tolist()] for length in lengths]
    return next(padded_batches(lay_out(list(enumerate(documents)), frozenset([0]), "documents", 64), 4096))


def naive(model: Any, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(nats, hits) of the scored tokens from the full logits in float64, one row at a time."""
    nats, hits = [], []
    for ids_T, kind_T in zip(batch.ids_BT, batch.kind_BT, strict=True):
        ids = torch.from_numpy(ids_T[kind_T != PAD])[None]
        with torch.no_grad():
            logits_TV = model(input_ids=ids).logits[0].double()
        for before, target in enumerate(ids[0, 1:].tolist()):
            nats.append(-float(torch.log_softmax(logits_TV[before], 0)[target]))
            hits.append(int(logits_TV[before].argmax()) == target)
    return np.array(nats), np.array(hits)


def state_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_equals_the_models_own_logits(family: str, tokenizer: Any) -> None:
    model, batch = prepared(family, tokenizer), one_batch()
    losses = LossReader(model).read(batch)
    nats, hits = naive(with_biases(family), batch)
    np.testing.assert_allclose(losses.nats_N, nats, rtol=1e-4, atol=1e-5)
    assert (losses.is_hit_N == hits).all()
    assert len(nats) == 29 + 63 + 0 + 16


def test_a_small_budget_of_logits_gives_the_same(tokenizer: Any) -> None:
    model, batch = prepared("gemma2", tokenizer), one_batch((64,) * 9)
    whole, parts = LossReader(model).read(batch), LossReader(model, logit_bytes=1).read(batch)
    np.testing.assert_allclose(parts.nats_N, whole.nats_N, rtol=1e-5)
    assert len(whole.nats_N) == 9 * 63


def test_a_batch_without_scored_tokens(tokenizer: Any) -> None:
    assert len(LossReader(prepared("llama", tokenizer)).read(one_batch((1, 1))).nats_N) == 0


def edit(model: Any, family: str, how: str, mean_LF: np.ndarray) -> None:
    """Change the weights (or, for the mean, the down projection's input) as the words of `--how` say."""
    key_name, down_name = KEYS[family]
    for layer, indices in NEURONS.items():
        key = model.get_decoder().get_submodule(key_name.format(layer))
        down = model.get_decoder().get_submodule(down_name.format(layer))
        with torch.no_grad():
            if how in ("activation", "coefficient"):
                down.weight[:, indices] = 0
            elif how != "mean":
                key.weight[indices] = 0
                if how == "weights" and key.bias is not None:
                    key.bias[indices] = 0
        if how == "mean":
            value = torch.from_numpy(mean_LF[layer][indices]).float()

            def put(_module: nn.Module, args: Any, indices: Any = indices, value: Any = value) -> Any:
                read = args[0].clone()
                read[..., indices] = value
                return (read,)

            down.register_forward_pre_hook(put)


@pytest.mark.parametrize("how", ["activation", "coefficient", "weights", "weights-no-bias", "mean"])
@pytest.mark.parametrize("family", KEYS)
@pytest.mark.slow
def test_masked_losses_equal_those_of_edited_weights(family: str, how: str, tokenizer: Any) -> None:
    model, batch = prepared(family, tokenizer), one_batch()
    reader, before = LossReader(model), state_hash(model.model)
    mean_LF = np.random.default_rng(1).normal(size=(2, 96))
    edited = with_biases(family)
    edit(edited, family, how, mean_LF)
    expected, _ = naive(edited, batch)
    bare = reader.read(batch).nats_N
    with switched_off(model, NEURONS, how, mean_LF if how == "mean" else None):
        masked = reader.read(batch).nats_N
    np.testing.assert_allclose(masked, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(masked - bare).max() > 1e-3
    assert np.array_equal(reader.read(batch).nats_N, bare)
    assert state_hash(model.model) == before


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_key_biases_are_found(family: str, tokenizer: Any) -> None:
    model = prepared(family, tokenizer)
    for layer, bias_F in enumerate(point.key_bias() for point in model.hook_points):
        owners = [p for n, p in model.model.named_parameters() if n.endswith("bias") and f".{layer}." in n]
        same = [p for p in owners if p.shape == bias_F.shape and torch.equal(p, bias_F)]
        gated_without = not bias_F.any() and model.facts.gated
        assert same or gated_without or not any(p.numel() == 96 for p in owners)


def test_the_same_neurons_off_in_any_way_where_keys_have_no_bias(tokenizer: Any) -> None:
    model, batch = loaded("llama", tokenizer), one_batch()
    results = []
    for how in ("activation", "coefficient", "weights", "weights-no-bias"):
        with switched_off(model, NEURONS, how):
            results.append(LossReader(model).read(batch).nats_N)
    assert all(np.array_equal(results[0], other) for other in results[1:])
