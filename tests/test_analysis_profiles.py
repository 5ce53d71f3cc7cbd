"""Profiles, overlaps, sweeps and comparisons against sets counted one by one."""

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from group_counts import made_up_groups
from hypothesis import given
from hypothesis import strategies as st

from neurotally.analysis.languages.compare import compare, mean_depths, profile_overlaps, store_labels
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.languages.profiles import neurons_by_layer, overlaps, profiles
from neurotally.analysis.languages.sweep import sweep
from neurotally.analysis.overlap import agreement, contained, is_member, jaccard, num_common, recovered, safe_divide
from neurotally.profiler.errors import InputError

RULE = Rule(per_corpus=40)

neuron_sets = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=24)


def as_array(neurons: set[tuple[int, int]]) -> np.ndarray:
    return np.array(sorted(neurons), np.int64).reshape(-1, 2)


@given(neuron_sets, neuron_sets)
@pytest.mark.slow
def test_overlaps_of_two_sets(one: set[tuple[int, int]], other: set[tuple[int, int]]) -> None:
    a, b = as_array(one), as_array(other)
    assert num_common(a, b) == len(one & other)
    assert is_member(a, b).tolist() == [neuron in other for neuron in sorted(one)]
    for measure, whole in (
        (jaccard, len(one | other)),
        (contained, min(len(one), len(other))),
        (recovered, len(one)),
        (agreement, (len(one) + len(other)) / 2),
    ):
        value = measure(a, b)
        assert math.isnan(value) if whole == 0 else value == pytest.approx(len(one & other) / whole)


@given(st.lists(neuron_sets, min_size=1, max_size=5))
@pytest.mark.slow
def test_profiles_counted_one_by_one(sets: list[set[tuple[int, int]]]) -> None:
    arrays = {f"corpus {c}": as_array(neurons) for c, neurons in enumerate(sets)}
    found, overlap = neurons_by_layer(arrays, num_layers=4), overlaps(arrays)
    for c, m, layer in itertools.product(range(len(sets)), range(1, len(sets) + 1), range(4)):
        mine = [n for n in sets[c] if n[0] == layer and sum(n in of for of in sets) == m]
        assert found["sharing"][f"corpus {c}"][str(m)][layer] == len(mine)
        everyone = {n for of in sets for n in of if n[0] == layer and sum(n in others for others in sets) == m}
        assert found["shared_by"][str(m)][layer] == len(everyone)
    for (a, one), (b, other) in itertools.product(enumerate(sets), repeat=2):
        assert overlap["count"][a][b] == len(one & other)
        value = len(one & other) / len(one | other) if one | other else None
        assert overlap["jaccard"][a][b] == value
    assert [sum(count_L) for count_L in found["specific"].values()] == [len(of) for of in sets]


def test_profiles_document_and_table() -> None:
    counts = made_up_groups().total()
    counts.active_CLF[3] //= 10_000
    selection = lape(counts, RULE)
    result = profiles(counts, RULE)
    document = json.loads(json.dumps(result.document, allow_nan=False))
    assert (document["layers"], document["neurons"], document["per_corpus"]) == (4, 123, 40)
    by_layer = document["by_layer"]
    for name, exclusive in selection.exclusive.items():
        assert sum(by_layer["exclusive"][name]) == len(exclusive) == sum(by_layer["sharing"][name]["1"])
        assert sum(by_layer["specific"][name]) == len(selection.specific[name])
    distinct = {tuple(pair) for pairs in selection.specific.values() for pair in pairs.tolist()}
    assert sum(by_layer["distinct"]) == len(distinct) == sum(map(sum, by_layer["shared_by"].values()))
    assert document["overlap"]["jaccard"][3] == [0, 0, 0, None]
    assert document["without_candidates"] == ["html"]
    assert document["left_out"] == {"zig": "unfinished"}
    for name in selection.corpora:
        assert result.frame("exclusive")[name].tolist() == by_layer["exclusive"][name]
    assert "Exclusive neurons" in result.text().splitlines()[-1]
    text = result.text(full=True)
    for part in (
        "org/model",
        "html: no neuron above the threshold",
        "2 corpora",
        "left out: zig (unfinished)",
        "Jaccard",
    ):
        assert part in text


def test_sweep_is_lape_at_every_setting() -> None:
    counts = made_up_groups().total()
    result = sweep(counts, (0.95, 0.8), (20, 5, 20), (0.01, 0.1), base=Rule(0.9, per_corpus=10))
    document = json.loads(json.dumps(result.document, allow_nan=False))
    assert [
        (of["select"], of["quantile"], of.get("per_corpus", of.get("top_rate"))) for of in document["settings"]
    ] == [
        *(("balanced", quantile, number) for quantile in (0.8, 0.95) for number in (5, 20)),
        *(("top", quantile, rate) for quantile in (0.8, 0.95) for rate in (0.01, 0.1)),
    ]
    assert (document["quantiles"], document["per_corpus"], document["top_rates"]) == ([0.8, 0.95], [5, 20], [0.01, 0.1])
    assert document["default"] == {"select": "balanced", "quantile": 0.9, "per_corpus": 10}
    default = lape(counts, Rule(0.9, "balanced", 10))
    for setting in document["settings"]:
        limit = {key: setting[key] for key in ("per_corpus", "top_rate") if key in setting}
        selection = lape(counts, Rule(setting["quantile"], setting["select"], **limit))
        assert setting["bar"] == selection.threshold
        assert setting["candidates"] == selection.num_candidates
        assert setting["sizes"]["specific"] == {name: len(of) for name, of in selection.specific.items()}
        assert setting["sizes"]["exclusive"] == {name: len(of) for name, of in selection.exclusive.items()}
        everyone = [tuple(pair) for of in selection.specific.values() for pair in of.tolist()]
        assert setting["distinct"] == len(set(everyone))
        assert setting["shared"] == sum(everyone.count(neuron) > 1 for neuron in set(everyone))
        for name, of in selection.specific.items():
            layers = np.bincount(of[:, 0], minlength=4).tolist()
            assert setting["by_layer"]["specific"][name] == layers
            one, other = (set(map(tuple, neurons.tolist())) for neurons in (of, default.specific[name]))
            assert setting["with_default"][name]["jaccard"] == pytest.approx(len(one & other) / len(one | other))


def test_neighbours_in_a_sweep_differ_by_one_step() -> None:
    counts = made_up_groups().total()
    document = sweep(counts, (0.8, 0.9, 0.95), (5, 20), (0.01, 0.02, 0.1)).document
    settings = document["settings"]
    assert len(document["neighbours"]) == (2 * 2 + 3 * 1) + (2 * 3 + 3 * 2)
    for pair in document["neighbours"]:
        one, other = (settings[index] for index in pair["settings"])
        assert one["select"] == other["select"]
        limit = "per_corpus" if one["select"] == "balanced" else "top_rate"
        assert {key for key in ("quantile", limit) if one[key] != other[key]} == {pair["changed"]}
        if pair["changed"] != "quantile":  # at one threshold more neurons are a larger set of the same
            assert all(of["contained"] == 1 for of in pair["overlap"].values() if of["contained"] is not None)


def test_sweep_of_one_kind_and_its_table() -> None:
    counts = made_up_groups().total()
    result = sweep(counts, top_rates=())
    assert {of["select"] for of in result.document["settings"]} == {"balanced"}
    assert "Top: a share" not in result.text()
    text = sweep(counts).text()
    for part in ("Balanced: the same", "Top: a share", "0.975", "1,600", "0.25 %", "left out: zig (unfinished)"):
        assert part in text
    small = made_up_groups(3, shape=(2, 48)).total()  # 0.0025 of 96 neurons is none
    assert sweep(small).document["top_rates"] == [0.01, 0.02, 0.04]
    with pytest.raises(InputError, match="is none; choose a larger one"):
        sweep(small, top_rates=(0.0025, 0.01))
    with pytest.raises(InputError, match="at least one quantile"):
        sweep(counts, per_corpus=(), top_rates=())
    with pytest.raises(InputError, match="quantile: expected"):
        sweep(counts, quantiles=(0.9, 1.5))


def sides(**changes: Any) -> list[Any]:
    one = made_up_groups(3, shape=(4, 123)).total()
    return [one, replace(made_up_groups(3, shape=(6, 99), seed=1).total(), **changes)]


def test_compare_two_models() -> None:
    result = compare(sides(model={"id": "other", "fingerprint": "f2"}), ["one", "other"], RULE)
    document = json.loads(json.dumps(result.document, allow_nan=False))
    assert document["corpora"] == ["c", "english", "go", "html"]
    assert (document["relative_axis"], document["same_model"], document["jaccard"]) == (True, False, None)
    assert [store["layers"] for store in document["stores"]] == [4, 6]
    for store, counts in zip(document["stores"], sides(), strict=True):
        selection = lape(counts, RULE)
        assert store["specific"] == {name: of.tolist() for name, of in selection.specific.items()}
        assert store["bar"] == selection.threshold
        for name, of in selection.specific.items():
            depth = np.mean((of[:, 0] + 0.5) / store["layers"])
            assert store["mean_depth"][name] == pytest.approx(depth)
    text = result.text(full=True)
    for part in (
        "A one (4 layers of 123)",
        "B other (6 layers of 99)",
        "differ in shape",
        "75-100 %",
        "left out of A: zig",
    ):
        assert part in text


def test_compare_only_what_both_have() -> None:
    """LAPE's threshold and entropies depend on the corpora: both are run on those in common, as if no others were."""
    one, other = made_up_groups(3, num_corpora=6).total(), made_up_groups(3, num_corpora=6, seed=1).total()
    few = replace(other, corpora=("c", "go", "kotlin", "rust", "swift", "zig"))
    document = compare([one, few], ["A", "B"], RULE).document
    assert document["corpora"] == ["c", "go", "rust"]
    for store, counts, index in zip(document["stores"], (one, few), ([0, 2, 5], [0, 1, 3]), strict=True):
        alone = replace(
            counts, corpora=("c", "go", "rust"), tokens_C=counts.tokens_C[index], active_CLF=counts.active_CLF[index]
        )
        expected = lape(alone, RULE)
        assert store["bar"] == expected.threshold
        assert store["specific"] == {name: of.tolist() for name, of in expected.specific.items()}
    assert document["stores"][0]["left_out"]["python"] == "not in the other store"
    assert set(document["stores"][1]["left_out"]) == {"kotlin", "swift", "zig"}


def test_compare_a_store_with_itself() -> None:
    counts = made_up_groups(3).total()
    result = compare([counts, counts], ["A", "B"], RULE)
    document = result.document
    assert (document["relative_axis"], document["same_model"]) == (False, True)
    assert document["jaccard"] == dict.fromkeys(counts.corpora, 1.0)
    assert document["profile_overlap"]["specific"] == pytest.approx(dict.fromkeys(counts.corpora, 1.0))
    assert "(the same model)" in str(result)
    assert store_labels([counts, counts], ["a.store", "b.store"]) == ["a.store", "b.store"]
    other = replace(counts, model={"id": "org/other"})
    assert store_labels([counts, other], ["a.store", "b.store"]) == ["org/model", "org/other"]


def test_compare_needs_two_corpora_in_common() -> None:
    other = replace(sides()[1], corpora=("c", "kotlin", "swift", "zig"))
    with pytest.raises(InputError, match=r"found c: A has c, english, go, html; B has c, kotlin") as caught:
        compare([sides()[0], other], ["A", "B"], RULE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ([1, 1], [1, 1, 1], 1.0),
        ([1, 0], [1, 1, 1, 1], 0.5),
        ([3, 0], [0, 0, 7], 0.0),
        ([1, 0], [2, 1, 0], 5 / 6),  # 2 to 1/2; 2 to 1/3, then 1 to 2/3: 2/3 + 1/6
        ([0, 0], [1, 1], math.nan),
    ],
)
def test_profile_overlap(one: list[int], other: list[int], overlap: float) -> None:
    for a, b in ((one, other), (other, one)):
        assert profile_overlaps(np.array([a]), np.array([b]))[0] == pytest.approx(overlap, nan_ok=True)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=80), st.integers(2, 5))
@pytest.mark.slow
def test_a_profile_on_finer_layers_is_the_same_profile(count_L: list[int], times: int) -> None:
    count_1L = np.array([count_L])
    finer_1L = np.repeat(count_1L, times, axis=1)
    if sum(count_L):
        assert profile_overlaps(count_1L, finer_1L)[0] == pytest.approx(1)
        assert mean_depths(finer_1L)[0] == pytest.approx(mean_depths(count_1L)[0])
    else:
        assert np.isnan(mean_depths(count_1L)[0])


def test_nothing_by_nothing() -> None:
    share = safe_divide(np.array([1, 0]), np.array([[2], [0]]))
    np.testing.assert_array_equal(share, [[0.5, 0], [np.nan, np.nan]])
