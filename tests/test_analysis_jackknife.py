"""Error bars against a jackknife written out from the definition, against known truths, and where they must fail."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from group_counts import active_of, made_up_groups, of_arrays, tokens_of
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotally.analysis.languages.counts import GroupCounts, Groups
from neurotally.analysis.languages.error_bars import error_bars_document
from neurotally.analysis.languages.jackknife import ErrorBars, error_bars, save_error_bars
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.languages.sites import Sites
from neurotally.profiler.errors import InputError

T9 = 2.262157
"""Student's t, 95 %, 9 degrees of freedom, from a table."""


def entropy(p: list[float]) -> float:
    q = [value / math.fsum(p) for value in p]
    return -math.fsum(value * math.log(value) for value in q if value > 0)


def reference(groups: GroupCounts, layer: int, neuron: int) -> tuple[list[float], float, float]:
    """Standard errors of p by corpus, of the entropy, and its bias: every deletion counted anew."""
    x = [[int(count) for count in active_GLF[:, layer, neuron]] for active_GLF in active_of(groups)]
    n = [[int(count) for count in tokens_G] for tokens_G in tokens_of(groups)]
    p = [sum(x_G) / sum(n_G) for x_G, n_G in zip(x, n, strict=True)]
    whole = entropy(p)
    errors, variance, bias = [], [], []
    for c in range(len(p)):
        terms = []
        for g in range(len(n[c])):
            rest = (sum(x[c][:g] + x[c][g + 1 :])) / (sum(n[c][:g] + n[c][g + 1 :]))
            weight = 1 - n[c][g] / sum(n[c])
            terms.append(weight * (rest - p[c]) ** 2)
            change = entropy([*p[:c], rest, *p[c + 1 :]]) - whole
            variance.append(weight * change**2)
            bias.append(weight * change)
        errors.append(math.sqrt(math.fsum(terms)))
    return errors, math.sqrt(math.fsum(variance)), math.fsum(bias)


@pytest.mark.parametrize("num_groups", [2, 3, 10, (10, 4, 2, 7)], ids=str)
def test_every_deletion_counted_anew(num_groups: Any) -> None:
    groups = made_up_groups(num_groups, shape=(3, 41))
    bars = error_bars(groups)
    total = groups.total()
    assert bars.num_groups == dict(zip(groups.corpora, map(len, tokens_of(groups)), strict=True))
    for layer, neuron in np.ndindex(3, 41):
        p_errors, error, bias = reference(groups, layer, neuron)
        p = [int(a) / int(n) for a, n in zip(total.active_CLF[:, layer, neuron], total.tokens_C, strict=True)]
        assert bars.p_CLF[:, layer, neuron].tolist() == p
        assert bars.p_error_CLF[:, layer, neuron] == pytest.approx(p_errors, rel=1e-9, abs=1e-15)
        assert bars.entropy_LF[layer, neuron] == pytest.approx(entropy(p), rel=1e-12)
        assert bars.entropy_error_LF[layer, neuron] == pytest.approx(error, rel=1e-9)
        assert bars.entropy_bias_LF[layer, neuron] == pytest.approx(bias, rel=1e-6, abs=1e-12)


def test_groups_of_one_size_give_the_textbook_jackknife() -> None:
    rng = np.random.default_rng(0)
    x_GF = rng.binomial(500, rng.uniform(0.1, 0.9, 50), (8, 50))
    bars = error_bars(of_arrays([[500] * 8] * 2, [x_GF, x_GF[::-1]]))
    without_GF = (x_GF.sum(0) - x_GF) / (7 * 500)
    textbook_F = np.sqrt(7 / 8 * ((without_GF - without_GF.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(bars.p_error_CLF[:, 0], [textbook_F, textbook_F], rtol=1e-9)


def test_entropies_are_those_that_lape_selects_by() -> None:
    groups = made_up_groups()
    entropy_LF = lape(groups.total(), Rule()).entropy_LF
    passes_LF = np.isfinite(entropy_LF)
    np.testing.assert_allclose(error_bars(groups).entropy_LF[passes_LF], entropy_LF[passes_LF], rtol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.permutations(range(4)))
def test_the_order_of_groups_and_of_corpora_has_no_influence(order: list[int], corpora: list[int]) -> None:
    groups = made_up_groups(6, shape=(2, 30))
    shuffled = of_arrays(
        [tokens_of(groups)[c][order].tolist() for c in corpora],
        [active_of(groups)[c][order].reshape(6, -1) for c in corpora],
    )
    bars, other = error_bars(groups), error_bars(shuffled)
    np.testing.assert_allclose(other.p_error_CLF.reshape(4, -1), bars.p_error_CLF[corpora].reshape(4, -1), rtol=1e-9)
    np.testing.assert_allclose(other.entropy_error_LF.ravel(), bars.entropy_error_LF.ravel(), rtol=1e-9)


def test_more_neurons_than_a_block() -> None:
    groups = made_up_groups(3, 2, shape=(2, 9001))
    bars = error_bars(groups)
    few = of_arrays([n.tolist() for n in tokens_of(groups)], [a[:, 1, -5:] for a in active_of(groups)])
    alone = error_bars(few)
    for one, other in ((bars.p_error_CLF, alone.p_error_CLF), (bars.p_CLF, alone.p_CLF)):
        assert (one[:, 1, -5:] == other[:, 0]).all()
    assert (bars.entropy_error_LF[1, -5:] == alone.entropy_error_LF[0]).all()
    assert (bars.entropy_bias_LF[1, -5:] == alone.entropy_bias_LF[0]).all()


def drawn(p_C: list[float], draws: int, tokens_CG: np.ndarray, seed: int = 0) -> GroupCounts:
    """Draws of one neuron's counts, one beside the other as if they were neurons."""
    rng = np.random.default_rng(seed)
    active = [rng.binomial(n_G[:, None], p, (len(n_G), draws)) for p, n_G in zip(p_C, tokens_CG, strict=True)]
    return of_arrays(tokens_CG.tolist(), active)


def unequal_tokens(num_corpora: int, num_groups: int = 10) -> np.ndarray:
    return np.random.default_rng(7).integers(5_000, 20_000, (num_corpora, num_groups))


@pytest.mark.parametrize("p", [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99])
def test_95_percent_intervals_of_p_cover_the_truth_in_93_to_97_percent_of_1000_draws(p: float) -> None:
    bars = error_bars(drawn([p, 0.5], 1000, unequal_tokens(2)))
    low_CLF, high_CLF = bars.p_interval()
    covered = ((low_CLF[0] <= p) & (p <= high_CLF[0])).mean()
    assert 0.93 <= covered <= 0.97
    assert not bars.has_few_hits_CLF.any()
    np.testing.assert_allclose(high_CLF - bars.p_CLF, T9 * bars.p_error_CLF, rtol=1e-6)


def test_the_variance_is_unbiased_however_unequal_the_groups() -> None:
    tokens_CG = np.array([[30_000, 500, 500, 500, 2_000], [4_000] * 5])
    bars = error_bars(drawn([0.2, 0.2], 20_000, tokens_CG))
    for c, tokens in enumerate(tokens_CG.sum(axis=1)):
        assert (bars.p_error_CLF[c] ** 2).mean() == pytest.approx(0.2 * 0.8 / tokens, rel=0.03)


@pytest.mark.parametrize(
    "p_C",
    [
        pytest.param([0.5, 0.01, 0.02, 0.015], id="specific to one"),
        pytest.param([0.3, 0.25, 0.01, 0.01], id="shared by two"),
        pytest.param([0.4, 0.1, 0.05, 0.2], id="in the middle"),
    ],
)
def test_intervals_of_the_entropy_cover_the_truth_or_more(p_C: list[float]) -> None:
    bars = error_bars(drawn(p_C, 2000, unequal_tokens(4)))
    low_LF, high_LF = bars.entropy_interval()
    truth = entropy(p_C)
    # On the safe side, as the docstring says: the corpora's variances add, and t takes them for one.
    assert 0.94 <= ((low_LF <= truth) & (truth <= high_LF)).mean() <= 0.99
    assert not any(is_LF.any() for is_LF in bars.entropy_flags().values())
    assert (bars.entropy_error_LF**2).mean() == pytest.approx(bars.entropy_LF.var(), rel=0.1)


def flags(bars: ErrorBars) -> list[set[str]]:
    """By neuron of the first layer."""
    names = bars.entropy_flags()
    return [{name for name in names if names[name][0, f]} for f in range(bars.entropy_LF.shape[1])]


def test_too_few_hits_misses_and_bursts_are_flagged() -> None:
    many = [50, 60, 40, 55, 45]
    neurons = {
        "19 hits": [5, 4, 3, 4, 3],
        "20 hits": [4, 4, 4, 4, 4],
        "19 misses": [995, 996, 997, 996, 997],
        "one burst": [250, 0, 0, 0, 0],
        "many": many,
        "none": [0] * 5,
    }
    x_GF = np.array(list(neurons.values())).T
    bars = error_bars(of_arrays([[1000] * 5] * 2, [x_GF, np.array([many] * len(neurons)).T]))
    few = dict(zip(neurons, bars.has_few_hits_CLF[0, 0].tolist(), strict=True))
    assert few == {"19 hits": True, "20 hits": False, "19 misses": True, "one burst": True, "many": False, "none": True}
    by_neuron = dict(zip(neurons, flags(bars), strict=True))
    assert all("few hits" in by_neuron[name] for name in ("19 hits", "one burst", "none"))
    assert "few hits" not in by_neuron["20 hits"] | by_neuron["many"]


def test_a_corpus_with_few_hits_matters_only_where_it_moves_the_entropy() -> None:
    rng = np.random.default_rng(0)
    tokens = [[100_000] * 10] * 3
    half, tenth, rare = (rng.binomial(100_000, p, (10, 1)) for p in (0.5, 0.1, 5e-6))
    bars = error_bars(of_arrays(tokens, [half, tenth, rare]))
    assert bars.has_few_hits_CLF[:, 0, 0].tolist() == [False, False, True]
    assert flags(bars) == [set()]
    # Nothing but a corpus of few hits beside the neuron's own: it is all of the entropy.
    bars = error_bars(of_arrays(tokens[:2], [half, rare]))
    assert flags(bars)[0] >= {"few hits", "at an end"}


def test_both_ends_and_bias_are_flagged() -> None:
    rng = np.random.default_rng(0)
    x_GF = np.stack([rng.binomial(1000, 0.3, 10), rng.binomial(1000, 0.3, 10), rng.binomial(1000, 0.3, 10)], axis=1)
    other_GF = x_GF * np.array([1, 0, 2])
    found = flags(error_bars(of_arrays([[1000] * 10] * 2, [x_GF, other_GF])))
    assert "at an end" in found[0]  # as good as ln 2
    assert "at an end" in found[1]  # of one corpus
    assert found[2] == set()
    alike = error_bars(drawn([0.02] * 6, 300, np.full((6, 10), 300)))
    near_the_top = alike.entropy_LF < math.log(6) - 0.01
    assert alike.entropy_flags()["biased"][near_the_top].mean() > 0.9


def test_dead_neurons_and_neurons_of_one_corpus() -> None:
    nothing, some = np.zeros((3, 2), int), np.array([[0, 5], [0, 7], [0, 6]])
    bars = error_bars(of_arrays([[100] * 3] * 2, [some, nothing]))
    assert np.isnan(bars.entropy_LF[0, 0])
    assert np.isnan(bars.entropy_error_LF[0, 0])
    assert bars.entropy_LF[0, 1] == 0
    assert bars.entropy_error_LF[0, 1] < 1e-12
    assert (bars.p_error_CLF[:, 0, 0] == 0).all()
    low_LF, high_LF = bars.entropy_interval()
    assert low_LF[0, 1] == 0
    assert high_LF[0, 1] < 1e-12


def test_intervals_end_where_the_possible_does() -> None:
    bars = error_bars(made_up_groups(2, spread=1))  # 1 degree of freedom: t = 12.7
    low_CLF, high_CLF = bars.p_interval()
    low_LF, high_LF = bars.entropy_interval()
    assert (low_CLF.min(), high_CLF.max()) == (0, 1)
    assert low_LF.min() == 0
    assert high_LF.max() == math.log(4)
    assert bars.entropy_t == pytest.approx(12.7062, abs=1e-4)


def test_degrees_of_freedom_by_corpus() -> None:
    bars = error_bars(made_up_groups((10, 4, 3, 7)))
    assert bars.p_t_C() == pytest.approx([2.262, 3.182, 4.303, 2.447], abs=1e-3)
    assert bars.entropy_t == pytest.approx(4.303, abs=1e-3)


def test_one_group_has_no_error_bars() -> None:
    with pytest.raises(InputError, match=r"error bars need at least two groups .* 'english' has 1; imported") as caught:
        error_bars(made_up_groups((5, 1, 5)))
    assert "\n" not in str(caught.value)


def test_document_and_table() -> None:
    groups = made_up_groups()
    active_of(groups)[3][:] //= 10_000  # html: far below any threshold
    selection = lape(groups.total(), Rule(per_corpus=15))
    bars = error_bars(groups, level=0.9)
    document = json.loads(json.dumps(error_bars_document(bars, selection), allow_nan=False))
    assert document["level"] == 0.9
    assert document["groups"] == dict.fromkeys(groups.corpora, 10)
    assert document["entropy_t"] == pytest.approx(1.833, abs=1e-3)
    low_CLF, high_CLF = bars.p_interval()
    low_LF, high_LF = bars.entropy_interval()
    for c, name in enumerate(groups.corpora):
        of = document["specific"][name]
        assert {len(values) for values in of.values()} == {len(selection.specific[name])}
        for i, (layer, neuron) in enumerate(selection.specific[name]):
            assert of["entropy"][i] == bars.entropy_LF[layer, neuron]
            assert (of["entropy_low"][i], of["entropy_high"][i]) == (low_LF[layer, neuron], high_LF[layer, neuron])
            assert of["probability"][i] == bars.p_CLF[c, layer, neuron]
            ends = (low_CLF[c, layer, neuron], high_CLF[c, layer, neuron])
            assert (of["probability_low"][i], of["probability_high"][i]) == ends
            assert of["entropy_flags"][i] == [
                flag for flag, is_LF in bars.entropy_flags().items() if is_LF[layer, neuron]
            ]
        assert document["above_bar"][name] == sum(low > selection.threshold for low in of["probability_low"])
    assert document["specific"]["html"]["entropy"] == []
    result = lape_result(groups.total(), selection, bars)
    assert result.document["error_bars"] == document
    frame = result.frame("error bars").set_index("corpus")
    at = tuple(selection.specific["english"].T)
    assert frame.loc["english", "entropy"] == np.median(bars.entropy_LF[at])
    assert frame.loc["english", "entropy error"] == bars.entropy_t * np.median(bars.entropy_error_LF[at])
    assert frame.loc["html", "specific"] == 0
    assert np.isnan(frame.loc["html", "p"])
    for part in ("corpus", "html", "90 % intervals", "above threshold", "few hits"):
        assert part in result.text()


def test_archive_of_everything(tmp_path: Path) -> None:
    bars = error_bars(made_up_groups())
    save_error_bars(bars, tmp_path / "bars")
    with np.load(tmp_path / "bars") as archive:
        assert archive["corpora"].tolist() == list(bars.corpora)
        assert (archive["p_standard_error"] == bars.p_error_CLF).all()
        assert (archive["entropy_low"] == bars.entropy_interval()[0]).all()
        assert (archive["entropy_few_hits"] == bars.entropy_flags()["few hits"]).all()
        assert archive["p_high"].shape == archive["p_few_hits"].shape == (4, 4, 123)


def test_rates_of_experts_go_by_the_tokens_that_came_by() -> None:
    rng = np.random.default_rng(3)
    number_LF = np.array([[0, 0, 1, -1], [2, 3, 3, 3]], np.int32)
    tokens, sites, active = [], [], []
    for _ in range(2):
        by_site_GS = rng.integers(50, 400, (5, 4)).astype(np.uint64)
        by_site_GS[1:, 3] = 0  # an expert that one group alone was routed to
        came_by_GLF = np.where(number_LF >= 0, by_site_GS[:, number_LF], 0)
        active.append(rng.binomial(came_by_GLF.astype(int), 0.3).astype(np.uint64))
        tokens.append(np.full(5, 1000, np.uint64))
        sites.append(Sites(number_LF, by_site_GS))
    groups = GroupCounts(None, dict(zip("ab", map(Groups, tokens, active, sites), strict=True)), {}, {})
    bars = error_bars(groups)
    for c in range(2):
        for layer, neuron in zip(*np.nonzero(number_LF >= 0), strict=True):
            n_G = sites[c].tokens_XS[:, number_LF[layer, neuron]].astype(float)
            x_G = active[c][:, layer, neuron].astype(float)
            p = x_G.sum() / n_G.sum()
            assert bars.p_CLF[c, layer, neuron] == pytest.approx(p, rel=1e-12)
            if number_LF[layer, neuron] == 3:
                assert bars.p_error_CLF[c, layer, neuron] == 1
                assert bars.has_few_hits_CLF[c, layer, neuron]
                continue
            without_G = (x_G.sum() - x_G) / (n_G.sum() - n_G)
            expected = np.sqrt(((1 - n_G / n_G.sum()) * (without_G - p) ** 2).sum())
            assert bars.p_error_CLF[c, layer, neuron] == pytest.approx(expected, rel=1e-9)
    assert np.isfinite(bars.p_error_CLF).all()
    assert np.isnan(bars.entropy_LF[0, 3])
