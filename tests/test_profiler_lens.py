"""The lens of every family against the model's own logits, and its readings against a naive forward."""

from typing import Any

import numpy as np
import pytest
import torch
from test_profiler_sites import FAMILIES, loaded, tiny

from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.load import prepare_model
from neurotally.profiler.passes.lens import Lens, top_tokens
from neurotally.profiler.passes.lens_reading import DrawColumns, DrawSums, SetColumns, read_layers, read_logits

# The last three scale their logits; Gemma 2 soft-caps them; CodeGen's, Phi's and GPT-J's heads have a bias.
HEADS = [*FAMILIES, "granite", "cohere", "cohere2"]


def random_ids(rows: int, width: int) -> torch.Tensor:
    return torch.randint(2, 600, (rows, width), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", HEADS)
@pytest.mark.slow
def test_the_last_layers_lens_is_the_models_own_output(family: str, tokenizer: Any) -> None:
    ids_BT, bare = random_ids(3, 50), tiny(family)
    with torch.no_grad():
        if bare.get_output_embeddings().bias is not None:  # new ones are zero
            bare.get_output_embeddings().bias.normal_()
        expected_NV = bare(ids_BT, use_cache=False).logits.float().flatten(0, 1)
    lens = Lens(prepare_model(bare, tokenizer, family, None, "float32"))
    vectors = lens.vectors(ids_BT, torch.ones(ids_BT.shape, dtype=torch.bool))
    assert torch.equal(lens.logits(lens.normed(vectors.residual_LND[-1])), expected_NV)
    assert torch.equal(lens.logits(vectors.final_ND), expected_NV)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_residuals_are_the_models_hidden_states_and_ffn_outputs_those_of_a_hook(family: str, tokenizer: Any) -> None:
    ids_BT, bare = random_ids(2, 40), tiny(family)
    ffn: list[torch.Tensor] = []
    for layer in range(2):
        down = bare.get_decoder().get_submodule(FAMILIES[family][2].format(layer))
        down.register_forward_hook(lambda _m, _a, output: ffn.append(output.reshape(2, 40, -1).clone()))
    with torch.no_grad():
        hidden = bare.get_decoder()(ids_BT, use_cache=False, output_hidden_states=True).hidden_states
    at_BT = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.3
    vectors = Lens(loaded(family, tokenizer)).vectors(ids_BT, at_BT, ffn=True)
    assert torch.equal(vectors.residual_LND[0], hidden[1][at_BT])
    assert torch.equal(vectors.final_ND, hidden[-1][at_BT])
    for found, expected in zip(vectors.ffn_LND, ffn, strict=True):
        assert torch.equal(found, expected[at_BT])


def test_a_model_that_does_more_after_its_body_is_refused(tokenizer: Any) -> None:
    model = tiny("llama")
    forward = model.forward

    def with_copying(input_ids: torch.Tensor, **options: Any) -> Any:
        output = forward(input_ids=input_ids, **options)
        output.logits = output.logits + torch.nn.functional.one_hot(input_ids, 600)
        return output

    model.forward = with_copying
    with pytest.raises(UnsupportedModelError, match="don't give the model's own logits"):
        Lens(prepare_model(model, tokenizer, "copying", None, "float32"))


@pytest.mark.parametrize("vocabulary", [1, 10, 63, 64, 65, 1000, 50_000])
@pytest.mark.parametrize("k", [1, 10])
def test_top_tokens_are_in_the_order_of_logit_and_then_id(vocabulary: int, k: int) -> None:
    k = min(k, vocabulary)
    logits_NV = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    logits_NV[0] = -0.0
    logits_NV[0, ::2] = 0.0
    logits_NV[1] = -torch.inf
    expected = torch.sort(logits_NV, dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(top_tokens(logits_NV, k), expected)


def test_readings_equal_their_formulas(tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    logits_NV = torch.from_numpy(rng.normal(size=(31, 977)) * 4).float()
    gold_N = rng.integers(977, size=31)
    sets = [np.sort(rng.choice(977, size, replace=False)) for size in (1, 40, 976)]
    found = [
        table.numpy() for table in read_logits(logits_NV, torch.from_numpy(gold_N)[:, None], SetColumns(sets, 977))
    ]
    ids, top, gold, rank, mass, mass_top, rank_top = found
    for n, logits_V in enumerate(logits_NV.double().numpy()):
        probability_V = np.exp(logits_V) / np.exp(logits_V).sum()
        first = sorted(range(977), key=lambda token: -logits_V[token])[:10]
        assert ids[n].tolist() == first
        np.testing.assert_allclose(top[n], probability_V[first], rtol=1e-5)
        np.testing.assert_allclose(gold[n], probability_V[gold_N[n]], rtol=1e-5)
        assert rank[n] == 1 + sum(logit > logits_V[gold_N[n]] for logit in logits_V)
        for number, members in enumerate(sets):
            np.testing.assert_allclose(mass[n, number], probability_V[members].sum(), rtol=1e-5)
            here = [place for place, token in enumerate(first, 1) if token in members]
            np.testing.assert_allclose(mass_top[n, number], sum(probability_V[first[p - 1]] for p in here), rtol=1e-5)
            assert rank_top[n, number] == min(here, default=11)


def test_draws_are_read_as_sets_are() -> None:
    rng = np.random.default_rng(1)
    logits_NV = torch.from_numpy(rng.normal(size=(29, 977)) * 4).float()
    draws = [np.stack([rng.choice(977, size, replace=False) for _ in range(3)]) for size in (1, 40, 400)]
    draws.insert(1, np.empty((0, 7), np.int64))
    columns = DrawColumns(draws, 977)
    assert columns.number == 9
    ids, top = read_logits(logits_NV, torch.zeros(29, 1, dtype=torch.int64), SetColumns([], 977))[:2]
    mass, mass_top, rank_top, hit = (table.numpy() for table in columns.read(logits_NV, ids, top))
    sets = [ids for draws_Dm in draws for ids in draws_Dm.tolist()]
    for n, logits_V in enumerate(logits_NV.double().numpy()):
        probability_V = np.exp(logits_V) / np.exp(logits_V).sum()
        first = sorted(range(977), key=lambda token: -logits_V[token])[:10]
        for number, members in enumerate(sets):
            np.testing.assert_allclose(mass[n, number], probability_V[members].sum(), rtol=1e-5)
            here = [place for place, token in enumerate(first, 1) if token in members]
            np.testing.assert_allclose(mass_top[n, number], sum(probability_V[first[p - 1]] for p in here), rtol=1e-5)
            assert rank_top[n, number] == min(here, default=11)
            assert hit[n, number] == bool(here)


@pytest.mark.parametrize("family", ["llama", "gemma2", "codegen"])
@pytest.mark.slow
def test_batches_and_chunks_read_what_a_lone_forward_reads(
    family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurotally.profiler.passes.lens._LOGIT_BYTES", 4 * 600 * 13)
    monkeypatch.setattr("neurotally.profiler.passes.lens._CACHE_BYTES", 4 * 600 * 5)
    rng = np.random.default_rng(2)
    documents = [(n, rng.integers(2, 600, size=length).tolist()) for n, length in enumerate((63, 90, 7, 120, 1))]
    rows = lay_out(documents, frozenset(), "documents", 128)
    at_N, gold_N = rng.random(len(rows.ids_N)) < 0.4, rng.integers(600, size=len(rows.ids_N))
    members = np.arange(17, 200)
    lens = Lens(loaded(family, tokenizer))
    bare = tiny(family)
    draws = DrawSums(DrawColumns([members[None]], 600), len(documents), 2)
    expected_PL = np.zeros((len(documents), 2))
    seen = 0
    for found in lens.batches(rows, at_N, 256):
        vectors = lens.vectors(found.ids_BT, found.at_BT)
        prompt_n = rows.document_N[found.token_n]
        read = read_layers(lens, vectors, gold_N[found.token_n], SetColumns([members], 600), draws, prompt_n)
        np.add.at(expected_PL, prompt_n, read.mass_NLS[:, :, 0].astype(np.float64))
        for n, token in enumerate(found.token_n):
            seen += 1
            ids = documents[rows.document_N[token]][1][: rows.position_N[token] + 1]
            assert found.ids_BT[found.at_BT][n] == ids[-1]
            with torch.no_grad():
                output = bare(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
                first = lens.logits(lens.normed(output.hidden_states[1][0, -1:]))
            for layer, logits_V in enumerate((first[0].double(), output.logits[0, -1].double())):
                probability_V = logits_V.softmax(0).numpy()
                np.testing.assert_allclose(read.gold_probability_NL[n, layer], probability_V[gold_N[token]], rtol=2e-4)
                np.testing.assert_allclose(read.mass_NLS[n, layer, 0], probability_V[members].sum(), rtol=2e-4)
    assert seen == at_N.sum()
    np.testing.assert_allclose(draws.sum_PL4R[:, :, 0, 0], expected_PL, rtol=1e-6)
