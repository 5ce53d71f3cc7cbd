"""LAPE against references written from the formula, its corner cases, and what must not change its result."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from group_counts import counts_of
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotally.analysis.languages.lape import Rule, Selection, lape, layer_counts, threshold_rank
from neurotally.analysis.languages.lape_study import candidates_warnings, lape_document, proportionate
from neurotally.profiler.errors import InputError

NAMES = ("c", "english", "go", "html", "python")
Sets = dict[str, list[list[int]]]


def counts(seed: int = 0, num_layers: int = 6, num_neurons: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Counts of 5 corpora: dead neurons, neurons of one corpus, twins that tie, and html far below any threshold."""
    rng = np.random.default_rng(seed)
    tokens_C = rng.integers(10**6, 10**8, len(NAMES))
    shape = (len(NAMES), num_layers, num_neurons)
    odds_CLF = rng.beta(0.3, 3, shape[1:]) * rng.lognormal(0, 1, shape)
    p_CLF = odds_CLF / (1 + odds_CLF)
    p_CLF[:, rng.random(shape[1:]) < 0.1] = 0
    p_CLF[1:, rng.random(shape[1:]) < 0.03] = 0
    p_CLF[NAMES.index("html")] *= 1e-3
    p_CLF[:, :, 1::4] = p_CLF[:, :, ::4]
    return (p_CLF * tokens_C[:, None, None]).astype(np.uint64), tokens_C.astype(np.uint64)


def reference(active_CLF: Any, tokens: Any, quantile: float, select: str, limit: float) -> Sets:
    """The definition, neuron by neuron, in Python's own numbers."""
    num_corpora, num_layers, num_neurons = active_CLF.shape
    p = {
        (layer, neuron): [int(active_CLF[c, layer, neuron]) / int(tokens[c]) for c in range(num_corpora)]
        for layer in range(num_layers)
        for neuron in range(num_neurons)
    }
    values = sorted(value for row in p.values() for value in row)
    threshold = values[round(len(values) * quantile) - 1]
    entropy = {}
    for neuron, row in p.items():
        if max(row) > threshold:
            q = [value / math.fsum(row) for value in row]
            entropy[neuron] = -math.fsum(value * math.log(value) for value in q if value > 0)
    order = sorted(entropy, key=lambda neuron: (entropy[neuron], neuron))
    top = order[: round(limit * len(p))] if select == "top" else order
    belonging = [[neuron for neuron in top if p[neuron][c] > threshold] for c in range(num_corpora)]
    if select == "balanced":
        belonging = [neurons[: int(limit)] for neurons in belonging]
    return {name: [list(neuron) for neuron in sorted(neurons)] for name, neurons in zip(NAMES, belonging, strict=False)}


def exclusive_of(specific: Sets) -> Sets:
    return {
        name: [pair for pair in pairs if sum(pair in others for others in specific.values()) == 1]
        for name, pairs in specific.items()
    }


def as_lists(sets: Any) -> Sets:
    return {name: neurons_n2.tolist() for name, neurons_n2 in sets.items()}


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
@pytest.mark.parametrize(("select", "limit"), [("balanced", 40), ("balanced", 1), ("top", 0.01), ("top", 0.2)])
@pytest.mark.slow
def test_sets_of_6_layers_512_neurons_5_corpora(select: Any, limit: float, quantile: float) -> None:
    active_CLF, tokens_C = counts()
    found = lape(counts_of(active_CLF, tokens_C, NAMES), Rule(quantile, select, int(limit) or 1, limit % 1))
    expected = reference(active_CLF, tokens_C, quantile, select, limit)
    assert as_lists(found.specific) == expected
    assert as_lists(found.exclusive) == exclusive_of(expected)
    assert sum(map(len, expected.values()))


def test_sets_of_the_papers_float32_arithmetic() -> None:
    """The papers compute in float32 with torch's kthvalue; without ties at a cut the sets are the same."""
    active_CLF, tokens_C = counts(seed=3)
    active_CLF = np.delete(active_CLF, np.s_[1::4], axis=2)  # the twins
    active = torch.from_numpy(active_CLF.astype(np.int64))
    p = (active / torch.from_numpy(tokens_C.astype(np.int64))[:, None, None]).float().flatten(1)
    threshold = p.flatten().kthvalue(round(p.numel() * 0.95)).values
    q = torch.nan_to_num(p / p.sum(0))
    entropy = torch.special.entr(q).sum(0).masked_fill(~(p > threshold).any(0), torch.inf)
    found = lape(counts_of(active_CLF, tokens_C, NAMES), Rule(select="top"))
    chosen = torch.zeros(p.shape[1], dtype=torch.bool)
    chosen[entropy.topk(round(0.01 * p.shape[1]), largest=False).indices] = True
    for c, name in enumerate(NAMES):
        belonging = (chosen & (p[c] > threshold)).reshape(active.shape[1:]).nonzero()
        assert found.specific[name].tolist() == belonging.tolist()
    balanced = lape(counts_of(active_CLF, tokens_C, NAMES), Rule(per_corpus=30))
    for c, name in enumerate(NAMES):
        candidates = (p[c] > threshold).nonzero().flatten()
        best = candidates[entropy[candidates].argsort()[:30]]
        assert sorted(best.tolist()) == (balanced.specific[name] @ [active.shape[2], 1]).tolist()


@pytest.mark.parametrize("dead", [0.0, 0.5, 0.97, 1.0])
def test_bar_is_the_kth_smallest_value(dead: float) -> None:
    active_CLF, tokens_C = counts(seed=1)
    active_CLF[np.random.default_rng(0).random(active_CLF.shape) < dead] = 0
    p = torch.from_numpy(active_CLF / tokens_C[:, None, None].astype(np.float64))
    for quantile in (0.1, 0.501, 0.95, 1.0):
        rank = threshold_rank(p.numel(), quantile)
        found = lape(counts_of(active_CLF, tokens_C, NAMES), Rule(quantile))
        assert found.threshold == p.flatten().kthvalue(rank).values.item()


@pytest.mark.parametrize(
    ("num_values", "quantile", "rank", "num_above"),
    [
        pytest.param(32 * 11008 * 12, 0.95, 4_015_718, 211_354, id="CodeLlama-7b, 12 corpora"),
        pytest.param(32 * 14336 * 12, 0.95, 5_229_773, 275_251, id="Llama-3.1-8B, 12 corpora"),
        pytest.param(5, 0.5, 2, 3, id="2.5 rounds to the even 2"),
        pytest.param(7, 0.5, 4, 3, id="3.5 rounds to the even 4"),
        pytest.param(9, 1.0, 9, 0, id="1 is the largest"),
    ],
)
def test_rank_of_the_bar(num_values: int, quantile: float, rank: int, num_above: int) -> None:
    assert threshold_rank(num_values, quantile) == rank
    assert num_values - rank == num_above


@pytest.mark.parametrize("quantile", [0.0, -0.1, 1.01, math.nan, 1e-9])
def test_a_quantile_without_a_value_is_refused(quantile: float) -> None:
    active_CLF, tokens_C = counts()
    with pytest.raises(InputError, match="quantile"):
        lape(counts_of(active_CLF, tokens_C, NAMES), Rule(quantile))


def small(rows: list[list[int]], tokens: int = 100, **settings: Any) -> Selection:
    """LAPE on one layer: a row of counts by corpus, `tokens` in each."""
    active_CLF = np.array(rows, np.uint64)[:, None, :]
    return lape(counts_of(active_CLF, [tokens] * len(rows), NAMES[: len(rows)]), Rule(**settings))


def test_the_bar_itself_does_not_pass() -> None:
    # Ten values, sorted: 0 0 1 2 3 4 5 9 9 9; the 8th is the threshold, 9, and equals the largest.
    found = small([[9, 1, 2, 9, 0], [3, 9, 0, 4, 5]], quantile=0.8)
    assert found.threshold == 0.09
    assert as_lists(found.specific) == {"c": [], "english": []}
    # One value above it.
    found = small([[10, 1, 2, 9, 0], [3, 9, 0, 4, 5]], quantile=0.8)
    assert as_lists(found.specific) == {"c": [[0, 0]], "english": []}


def test_a_dead_neuron_is_never_chosen_though_its_entropy_would_be_lowest() -> None:
    found = small([[0, 50, 40, 0], [0, 20, 40, 0]], quantile=0.25, select="top", top_rate=1.0)
    assert found.threshold == 0
    assert as_lists(found.specific) == {"c": [[0, 1], [0, 2]], "english": [[0, 1], [0, 2]]}
    assert np.isinf(found.entropy_LF[0, [0, 3]]).all()


def test_all_dead() -> None:
    for select in ("balanced", "top"):
        found = small([[0] * 200] * 3, select=select)
        assert not any(map(len, found.specific.values()))
        assert not any(map(len, found.exclusive.values()))
        assert found.num_candidates == {"c": 0, "english": 0, "go": 0}
        assert found.specific["go"].shape == (0, 2)


def test_a_quantile_of_one_leaves_nobody() -> None:
    found = small([[50, 20, 3], [1, 2, 70]], quantile=1.0)
    assert found.threshold == 0.7
    assert as_lists(found.specific) == {"c": [], "english": []}


def test_a_corpus_without_candidates_keeps_its_place() -> None:
    active_CLF, tokens_C = counts()
    found = lape(counts_of(active_CLF, tokens_C, NAMES))
    assert tuple(found.specific) == tuple(found.exclusive) == NAMES
    assert found.num_candidates["html"] == 0
    assert found.specific["html"].shape == found.exclusive["html"].shape == (0, 2)
    assert len(found.specific["python"]) > 100


def test_ties_at_the_cut_go_by_layer_then_neuron() -> None:
    # Every neuron of "c" is active in c alone: entropy 0 exactly.
    active_CLF = np.zeros((2, 3, 4), np.uint64)
    active_CLF[0] = [[0, 7, 7, 9], [9, 0, 7, 7], [9, 9, 9, 9]]
    active_CLF[1, 1, 1] = 8
    found = lape(counts_of(active_CLF, [10, 10], NAMES[:2]), Rule(0.5, per_corpus=4))
    assert found.specific["c"].tolist() == [[0, 1], [0, 2], [0, 3], [1, 0]]
    assert found.num_tied_out == {"c": 6, "english": 0}
    assert found.entropy_LF[0, 1] == 0
    assert not np.signbit(found.entropy_LF[0, 1])
    found = lape(counts_of(active_CLF, [10, 10], NAMES[:2]), Rule(0.5, "top", top_rate=6 / 12))
    assert found.specific["c"].tolist() == [[0, 1], [0, 2], [0, 3], [1, 0], [1, 2]]
    assert found.specific["english"].tolist() == [[1, 1]]
    assert found.num_tied_out == {"c": 5, "english": 0}


def test_neurons_with_the_same_rates_in_other_corpora_tie_exactly() -> None:
    # 0.1 + 0.2 + 0.3 isn't 0.3 + 0.2 + 0.1 in floating point; the later neuron must not win by that.
    rows = [[10, 20, 30, 30], [20, 30, 10, 20], [30, 10, 20, 10], [0, 0, 0, 0]]
    found = small(rows, quantile=0.25, per_corpus=1)
    assert len(np.unique(found.entropy_LF)) == 1
    assert as_lists(found.specific) == {"c": [[0, 0]], "english": [[0, 0]], "go": [[0, 0]], "html": []}


def test_entropy_is_in_nats_over_normalised_rates() -> None:
    # Twice the tokens in "english": rates count, not counts.
    active_CLF = np.array([[[40, 10, 90]], [[80, 60, 0]]], np.uint64)
    found = lape(counts_of(active_CLF, [100, 200], NAMES[:2]), Rule(0.1))
    quarter = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert found.entropy_LF[0] == pytest.approx([math.log(2), quarter, 0], rel=1e-15)


def test_exclusive_is_taken_after_the_selection() -> None:
    # Neuron 0 passes the threshold in both corpora and english has a better one: so it is exclusive to c.
    found = small([[60, 50, 0, 0], [60, 0, 55, 0]], quantile=0.5, per_corpus=2)
    assert as_lists(found.specific) == {"c": [[0, 0], [0, 1]], "english": [[0, 0], [0, 2]]}
    assert as_lists(found.exclusive) == {"c": [[0, 1]], "english": [[0, 2]]}
    found = small([[60, 0, 0, 0], [60, 0, 55, 0]], quantile=0.5, per_corpus=1)
    assert as_lists(found.exclusive) == {"c": [[0, 0]], "english": [[0, 2]]}
    assert found.num_candidates == {"c": 1, "english": 2}
    assert found.num_sole_candidates == {"c": 0, "english": 1}


def test_top_chooses_exactly_the_rate() -> None:
    active_CLF, tokens_C = counts(seed=2)
    for rate in (0.001, 0.01, 0.05):
        found = lape(counts_of(active_CLF, tokens_C, NAMES), Rule(select="top", top_rate=rate))
        union = {tuple(pair) for pairs in as_lists(found.specific).values() for pair in pairs}
        assert len(union) == round(rate * 6 * 512)


def test_top_chooses_no_more_than_pass() -> None:
    found = small([[90, 1, 2, 3], [1, 2, 3, 4]], quantile=0.9, select="top", top_rate=1.0)
    assert as_lists(found.specific) == {"c": [[0, 0]], "english": []}


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"per_corpus": 0}, "at least 1, got 0"),
        ({"select": "top", "top_rate": 0.0}, "top rate.* got 0.0"),
        ({"select": "top", "top_rate": 1.5}, "top rate.* got 1.5"),
        ({"select": "top", "top_rate": 1e-5}, "of 3072 neurons is none"),
        ({"select": "bottom"}, "'balanced' or 'top', got 'bottom'"),
    ],
)
def test_settings_that_choose_nothing_are_refused(settings_: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lape(counts_of(*counts(), NAMES), Rule(**settings_))


def test_fewer_than_two_corpora_or_an_empty_one_are_refused() -> None:
    active_CLF, tokens_C = counts()
    with pytest.raises(InputError, match=r"at least two, got c$"):
        lape(counts_of(active_CLF[:1], tokens_C[:1], ["c"]))
    with pytest.raises(InputError, match="no tokens in english"):
        lape(counts_of(active_CLF, [5, 0, 5, 5, 5], NAMES))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int32])
def test_any_integer_will_do(dtype: type) -> None:
    active_CLF, tokens_C = counts()
    expected = lape(counts_of(active_CLF, tokens_C, NAMES))
    strided_CLF: np.ndarray = np.asfortranarray(active_CLF.astype(dtype))
    assert as_lists(lape(counts_of(strided_CLF, tokens_C.astype(dtype), NAMES)).specific) == as_lists(expected.specific)


def test_blocks_of_neurons_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    active_CLF, tokens_C = counts()
    whole = lape(counts_of(active_CLF, tokens_C, NAMES), Rule(0.3))
    monkeypatch.setattr("neurotally.analysis.languages.lape._BLOCK", 63)
    assert (lape(counts_of(active_CLF, tokens_C, NAMES), Rule(0.3)).entropy_LF == whole.entropy_LF).all()


@st.composite
def little_counts(draw: Any) -> tuple[np.ndarray, np.ndarray]:
    """Few neurons with small counts: full of ties, dead neurons and empty sets."""
    num_corpora, num_layers, num_neurons = (draw(st.integers(*ends)) for ends in ((2, 5), (1, 3), (1, 9)))
    tokens_C = np.array(draw(st.lists(st.integers(1, 12), min_size=num_corpora, max_size=num_corpora)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ceiling = draw(st.sampled_from([0.2, 0.6, 1.0]))
    p_CLF = rng.random((num_corpora, num_layers, num_neurons)) * ceiling
    return np.round(p_CLF * tokens_C[:, None, None]).astype(np.uint64), tokens_C


CHOICES = st.sampled_from([("balanced", 1), ("balanced", 3), ("top", 0.4), ("top", 1.0)])
QUANTILES = st.sampled_from([0.5, 0.8, 0.95, 1.0])


def choose(active_CLF: Any, tokens_C: Any, quantile: float, choice: tuple[Any, float], names: Any = None) -> Selection:
    select, limit = choice
    limit = max(limit, 1 / active_CLF[0].size)
    names = names or NAMES[: len(tokens_C)]
    return lape(counts_of(active_CLF, tokens_C, names), Rule(quantile, select, int(limit) or 1, min(limit, 1)))


@settings(max_examples=150, deadline=None)
@given(little_counts(), QUANTILES, CHOICES)
@pytest.mark.slow
def test_what_is_chosen_follows_the_definition(made: Any, quantile: float, choice: Any) -> None:
    """As the reference, but for ties that only one of two roundings sees."""
    active_CLF, tokens_C = made
    found = choose(active_CLF, tokens_C, quantile, choice)
    everybody = reference(active_CLF, tokens_C, quantile, "balanced", 10**6)
    assert {name: len(pairs) for name, pairs in everybody.items()} == found.num_candidates
    pools = [everybody] if choice[0] == "top" else [{name: pairs} for name, pairs in everybody.items()]
    for pool in pools:
        candidates = {tuple(pair) for pairs in pool.values() for pair in pairs}
        chosen = {tuple(pair) for name in pool for pair in found.specific[name].tolist()}
        size = round(max(choice[1], 1 / active_CLF[0].size) * active_CLF[0].size) if choice[0] == "top" else choice[1]
        assert len(chosen) == min(size, len(candidates))
        assert chosen <= candidates
        worst = max((found.entropy_LF[pair] for pair in chosen), default=math.inf)
        assert all(found.entropy_LF[pair] >= worst for pair in candidates - chosen)
    if choice[0] == "top":
        union = {tuple(pair) for pairs in as_lists(found.specific).values() for pair in pairs}
        for name, pairs in everybody.items():
            assert found.specific[name].tolist() == [pair for pair in pairs if tuple(pair) in union]
    assert as_lists(found.exclusive) == exclusive_of(as_lists(found.specific))


@settings(max_examples=100, deadline=None)
@given(little_counts(), QUANTILES, CHOICES, st.randoms(use_true_random=False))
def test_the_order_of_corpora_changes_nothing(made: Any, quantile: float, choice: Any, random: Any) -> None:
    active_CLF, tokens_C = made
    order = random.sample(range(len(tokens_C)), len(tokens_C))
    expected = choose(active_CLF, tokens_C, quantile, choice)
    found = choose(active_CLF[order], tokens_C[order], quantile, choice, [NAMES[c] for c in order])
    assert found.threshold == expected.threshold
    assert (found.entropy_LF == expected.entropy_LF).all()
    assert as_lists(found.specific) == as_lists(expected.specific)
    assert as_lists(found.exclusive) == as_lists(expected.exclusive)


@settings(max_examples=100, deadline=None)
@given(little_counts(), QUANTILES, CHOICES, st.lists(st.integers(1, 10**6), min_size=5, max_size=5))
def test_more_of_the_same_text_changes_nothing(made: Any, quantile: float, choice: Any, times: list[int]) -> None:
    active_CLF, tokens_C = made
    times_C = np.array(times[: len(tokens_C)], np.uint64)
    expected = choose(active_CLF, tokens_C, quantile, choice)
    found = choose(active_CLF * times_C[:, None, None], tokens_C.astype(np.uint64) * times_C, quantile, choice)
    assert found.threshold == expected.threshold
    assert as_lists(found.specific) == as_lists(expected.specific)


def test_layer_counts() -> None:
    assert layer_counts([[0, 5], [2, 1], [2, 9]], 4).tolist() == [1, 0, 2, 0]
    assert layer_counts(np.empty((0, 2), np.int64), 3).tolist() == [0, 0, 0]
    assert layer_counts([], 2).tolist() == [0, 0]


def few_candidates() -> Any:
    """3 layers of 100 neurons, 2 corpora: 16 candidates of the first, which is active more often, 14 of the second."""
    rng = np.random.default_rng(0)
    active_CLF = rng.integers(0, 500, (2, 3, 100))
    active_CLF[0].flat[:16] += 500
    active_CLF[1].flat[50:64] += 500
    return active_CLF


def test_a_corpus_with_fewer_candidates_than_asked_for_is_named() -> None:
    def chosen(**settings: Any) -> Any:
        return lape(counts_of(few_candidates(), [1000, 1000], ["C", "D"]), Rule(0.95, **settings))

    assert chosen(per_corpus=400).too_few_candidates == {"C": 16, "D": 14}
    assert chosen(per_corpus=16).too_few_candidates == {"D": 14}
    assert chosen(per_corpus=14).too_few_candidates == {}
    assert chosen(select="top", top_rate=0.01).too_few_candidates == {}
    assert candidates_warnings(chosen(per_corpus=14)) == []
    assert "16, so all were taken and none chosen: D 14;" in str(candidates_warnings(chosen(per_corpus=16)))


@pytest.mark.parametrize(("neurons", "number"), [(458_752, 400), (352_256, 307), (2048, 2), (300, 1)])
def test_the_proportionate_number_is_the_papers_share(neurons: int, number: int) -> None:
    assert proportionate(neurons) == number == max(1, round(400 * neurons / (32 * 14336)))


def test_the_document_gives_each_neurons_entropy_and_rate() -> None:
    active_CLF, tokens_C = few_candidates(), np.array([1000, 1300], np.uint64)
    found = counts_of(active_CLF, tokens_C, ("C", "D"))
    document = lape_document(found, lape(found, Rule(0.95, per_corpus=9)))
    for at, name in enumerate(("C", "D")):
        assert len(document["specific"][name]) == 9
        for place, (layer, neuron) in enumerate(document["specific"][name]):
            rates = [int(active_CLF[c, layer, neuron]) / tokens for c, tokens in enumerate((1000, 1300))]
            entropy = -sum(rate / sum(rates) * math.log(rate / sum(rates)) for rate in rates if rate)
            assert document["entropy"][name][place] == pytest.approx(entropy, rel=1e-12)
            assert document["probability"][name][place] == pytest.approx(rates[at], rel=1e-15)
