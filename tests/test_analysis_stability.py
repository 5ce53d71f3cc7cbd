"""Half-samples and curves against sets counted by hand, and where the answer is known beforehand."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from group_counts import active_of, counts_of, made_up_groups, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from neurotally.analysis.languages.counts import GroupCounts, Groups
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.languages.stability import draw_orders, stability
from neurotally.analysis.languages.stability_study import stability_result
from neurotally.profiler.errors import InputError

RULE = Rule(per_corpus=15)
Sets = dict[str, set[tuple[int, int]]]


def chosen(groups: GroupCounts, order: Any, taken: list[int], rule: Rule = RULE) -> Sets:
    """LAPE's sets from the first `taken` groups of each corpus, summed group by group."""
    tokens, active = [], []
    for c, number in enumerate(taken):
        tokens.append(sum(int(tokens_of(groups)[c][g]) for g in order[c][:number]))
        active.append(sum(active_of(groups)[c][g].astype(object) for g in order[c][:number]).astype(np.int64))
    found = lape(counts_of(np.stack(active), tokens, groups.corpora), rule)
    return {name: set(map(tuple, neurons_n2.tolist())) for name, neurons_n2 in found.specific.items()}


@pytest.mark.parametrize(
    ("num_groups", "halves"),
    [(10, [5] * 4), (7, [3] * 4), (2, [1] * 4), ((9, 4, 6, 4), [4, 2, 3, 2])],
    ids=str,
)
@pytest.mark.parametrize("rule", [RULE, Rule(select="top", top_rate=0.05)], ids=["balanced", "top"])
def test_half_samples_counted_by_hand(num_groups: Any, halves: list[int], rule: Rule) -> None:
    groups = made_up_groups(num_groups, spread=0.5)
    found = stability(groups, rule, num_samples=6, num_orders=2, seed=3)
    orders = draw_orders([len(tokens_G) for tokens_G in tokens_of(groups)], 6, seed=3)
    samples = [chosen(groups, order, halves, rule) for order in orders]
    assert list(found.half_groups.values()) == halves
    for c, (name, whole) in enumerate(found.selection.specific.items()):
        neurons = [tuple(pair) for pair in whole.tolist()]
        again = [sum(neuron in sample[name] for neuron in neurons) / len(neurons) for sample in samples]
        assert found.again_SC[:, c].tolist() == again
        times = [sum(neuron in sample[name] for sample in samples) for neuron in neurons]
        assert found.times_selected[name].tolist() == times
        core = [neuron for neuron, number in zip(neurons, times, strict=True) if number == 6]
        assert list(map(tuple, found.core[name].tolist())) == core
        for pair in range(3):
            one, other = samples[2 * pair][name], samples[2 * pair + 1][name]
            assert found.halves_agree_PC[pair, c] == 2 * len(one & other) / (len(one) + len(other))
        candidates = found.selection.num_candidates[name]
        assert found.by_chance_C[c] == len(neurons) / candidates


@pytest.mark.parametrize(
    ("num_groups", "taken"),
    [
        pytest.param((5, 5, 5, 5), [[1] * 4, [2] * 4, [3] * 4, [4] * 4, [5] * 4], id="as many groups"),
        pytest.param((5, 2, 4, 3), [[1, 1, 1, 1], [2, 1, 1, 1], [3, 1, 2, 1], [4, 1, 3, 2], [5, 2, 4, 3]], id="unlike"),
    ],
)
def test_the_curve_counted_by_hand(num_groups: tuple[int, ...], taken: list[list[int]]) -> None:
    groups = made_up_groups(num_groups, spread=0.5)
    curve = stability(groups, RULE, num_samples=2, num_orders=4, seed=1).curve
    orders = draw_orders(num_groups, 4, seed=1)
    whole = chosen(groups, orders[0], taken[-1])
    assert curve.groups_KC.tolist() == taken
    for k in range(1, 6):
        samples = [chosen(groups, order, taken[k - 1]) for order in orders]
        for c, name in enumerate(groups.corpora):
            recovered = [len(whole[name] & sample[name]) / len(whole[name]) for sample in samples]
            jaccard = [len(whole[name] & sample[name]) / len(whole[name] | sample[name]) for sample in samples]
            assert curve.recovered_OKC[:, k - 1, c].tolist() == recovered
            assert curve.jaccard_OKC[:, k - 1, c].tolist() == jaccard
            tokens = [sum(int(tokens_of(groups)[c][g]) for g in order[c][: taken[k - 1][c]]) for order in orders]
            assert curve.tokens_KC[k - 1, c] == pytest.approx(np.mean(tokens))
            agree = [2 * len(a[name] & b[name]) / (len(a[name]) + len(b[name])) for a, b in (samples[:2], samples[2:])]
            np.testing.assert_array_equal(curve.agreement_PKC[:, k - 1, c], agree if k <= 2 else [np.nan, np.nan])
    assert (curve.recovered_OKC[:, -1] == 1).all()


@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(1, 8), st.integers(0, 99))
def test_orders_come_in_pairs_without_common_text_up_to_the_half(sizes: list[int], pairs: int, seed: int) -> None:
    orders = draw_orders(sizes, 2 * pairs, seed)
    assert len(orders) == 2 * pairs
    for ahead, back in zip(orders[::2], orders[1::2], strict=True):
        for one, other, size in zip(ahead, back, sizes, strict=True):
            assert sorted(one.tolist()) == list(range(size))
            assert other.tolist() == one.tolist()[::-1]
            assert not set(one[: size // 2].tolist()) & set(other[: size // 2].tolist())


def test_the_same_seed_gives_the_same_orders() -> None:
    groups = made_up_groups(spread=0.5)
    one, same, other = (stability(groups, RULE, seed=seed) for seed in (0, 0, 1))
    assert (one.again_SC == same.again_SC).all()
    assert (one.again_SC != other.again_SC).any()


def test_groups_that_are_all_alike_choose_the_same() -> None:
    groups = made_up_groups(6)
    alike = replace(
        groups,
        by_corpus={
            name: Groups(np.full(6, of.tokens_G[0]), np.repeat(of.active_GLF[:1], 6, axis=0))
            for name, of in groups.by_corpus.items()
        },
    )
    found = stability(alike, RULE)
    assert (found.again_SC == 1).all()
    assert (found.halves_agree_PC == 1).all()
    assert (found.curve.recovered_OKC == 1).all()
    assert all(len(found.core[name]) == 15 for name in alike.corpora)
    tokens = int(tokens_of(alike)[0][0])
    enough = stability_result(alike, found).document["enough"]
    assert enough["c"] == {"share": 0.9, "groups": 1, "tokens": tokens, "documents": None}


def test_sets_of_nothing_but_noise_agree_by_chance() -> None:
    """Neurons of one rate in every corpus: which are chosen is decided by noise alone."""
    rng = np.random.default_rng(0)
    groups = made_up_groups(10, 3)
    tokens_G = np.full(10, 1000, np.uint64)
    made = {name: Groups(tokens_G, rng.binomial(1000, 0.1, (10, 4, 2000)).astype(np.uint64)) for name in groups.corpora}
    noise = replace(groups, by_corpus=made)
    found = stability(noise, Rule(per_corpus=400), num_samples=10)
    # Two halves: a neuron must first be a candidate again (5 % are), so less than random candidates of the whole.
    assert found.halves_agree_PC.mean() < 0.1
    assert 0.2 < found.again_SC.mean() < 0.8
    assert stability_result(noise, found).document["enough"] == dict.fromkeys(noise.corpora)


def test_a_corpus_without_candidates() -> None:
    groups = made_up_groups()
    active_of(groups)[3][:] //= 10_000
    found = stability(groups, RULE, num_samples=4, num_orders=2)
    document = json.loads(json.dumps(stability_result(groups, found).document, allow_nan=False))
    assert document["specific"]["html"] == document["core"]["html"] == document["times_selected"]["html"] == []
    assert document["selected_again"]["html"] == {"mean": None, "least": None, "most": None}
    assert document["by_chance"]["html"] is None
    assert document["enough"]["html"] is None
    assert document["selected_again"]["c"]["mean"] > 0.5
    assert "html: no neuron above the threshold" in str(stability_result(groups, found))


def test_document_and_table() -> None:
    groups = replace(made_up_groups((10, 8, 10, 10)), num_empty={"c": 0, "english": 2, "go": 0, "html": 0})
    found = stability(groups, RULE, num_samples=4, num_orders=2)
    document = json.loads(json.dumps(stability_result(groups, found).document, allow_nan=False))
    assert (document["select"], document["quantile"], document["per_corpus"]) == ("balanced", 0.95, 15)
    assert document["model"] == {"id": "org/model", "fingerprint": "f1"}
    assert document["groups"] == {"c": 10, "english": 8, "go": 10, "html": 10}
    assert document["half_groups"] == {"c": 5, "english": 4, "go": 5, "html": 5}
    assert document["empty_groups"]["english"] == 2
    assert document["left_out"] == {"zig": "unfinished"}
    curve = document["curve"]
    assert curve["groups"]["c"] == list(range(1, 11))
    assert curve["groups"]["english"] == [1, 1, 2, 3, 4, 4, 5, 6, 7, 8]
    for name in groups.corpora:
        assert len(document["times_selected"][name]) == len(document["specific"][name]) == 15
        assert len(curve["tokens"][name]) == len(curve["documents"][name]) == len(curve["jaccard"][name]) == 10
        assert [value is None for value in curve["agreement"][name]] == [False] * 5 + [True] * 5
        recovered = curve["recovered"][name]
        assert recovered["mean"][-1] == 1
        spread = zip(recovered["least"], recovered["mean"], recovered["most"], strict=True)
        assert all(least <= mean <= most for least, mean, most in spread)
        enough_K = [k for k in range(9) if min(recovered["mean"][k:]) >= 0.9]
        of = document["enough"][name]
        assert (of is None) == (not enough_K)
        if of:
            assert of["tokens"] == round(curve["tokens"][name][enough_K[0]])
            assert of["groups"] == curve["groups"][name][enough_K[0]]
    text = stability_result(groups, found).text()
    for part in ("org/model", "4 half-samples", "english: 2 empty groups", "left out: zig (unfinished)", "files"):
        assert part in text


@pytest.mark.parametrize(("samples", "orders"), [(3, 2), (0, 2), (2, 5), (2, -2)])
def test_odd_numbers_are_refused(samples: int, orders: int) -> None:
    with pytest.raises(InputError, match="expected an even number from 2"):
        stability(made_up_groups(3), RULE, samples, orders)
