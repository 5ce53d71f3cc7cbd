"""The sets that a loss pass switches off: as many as they should be, where they should be."""

import numpy as np
from group_counts import counts_of

from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.masking.mask_sets import MaskSet, above_threshold, mask_sets, shared_neurons
from neurotally.profiler.networks import site_numbers

A = np.array([[0, 1], [0, 2], [2, 5]])
B = np.array([[0, 2], [1, 1]])


def rows(neurons_n2: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, neurons_n2.tolist()))


def test_random_sets_have_as_many_neurons_in_every_layer() -> None:
    sets = mask_sets({"a": A, "b": B}, site_numbers((), 3, 500), draws=3).sets
    assert [(one.kind, one.of, one.draw) for one in sets] == [
        ("none", "", 0), ("specific", "a", 0), ("specific", "b", 0),
        *[("random", name, draw) for name in "ab" for draw in range(3)],
    ]  # fmt: skip
    assert len(sets[0].neurons_n2) == 0
    for one in sets[3:]:
        of = {"a": A, "b": B}[one.of]
        assert np.bincount(one.neurons_n2[:, 0]).tolist() == np.bincount(of[:, 0]).tolist()
        assert not rows(one.neurons_n2) & rows(of)
    assert len({one.neurons_n2.tobytes() for one in sets}) == len(sets)
    again = mask_sets({"a": A, "b": B}, site_numbers((), 3, 500), draws=3).sets
    assert all(np.array_equal(one.neurons_n2, other.neurons_n2) for one, other in zip(sets, again, strict=True))


def candidates_of(specific: dict[str, np.ndarray], above: dict[str, np.ndarray] | str, draws: int = 4) -> list[MaskSet]:
    num_layers = 3 if isinstance(above, str) else len(next(iter(above.values())))
    sets = mask_sets(specific, site_numbers((), num_layers, 50), draws, above).sets
    return [one for one in sets if one.kind == "candidates"]


def test_candidates_are_above_the_threshold_in_the_same_layers() -> None:
    rng = np.random.default_rng(0)
    active_CLF = rng.integers(0, 1000, (3, 2, 50)).astype(np.uint64)
    selection = lape(counts_of(active_CLF, np.full(3, 1000), "abc"), Rule(0.6, per_corpus=8))
    above = above_threshold(dict(zip("abc", active_CLF / 1000, strict=True)), selection.threshold, [*"abc", "concept"])
    assert {name: int(above[name].sum()) for name in "abc"} == dict(selection.num_candidates)
    np.testing.assert_array_equal(above["concept"], above["a"] | above["b"] | above["c"])
    drawn = candidates_of(dict(selection.specific), above)
    assert [(one.of, one.draw, one.drawn_from) for one in drawn] == [(n, d, "layers") for n in "abc" for d in range(4)]
    own = 0
    for one in drawn:
        of = selection.specific[one.of]
        assert np.bincount(one.neurons_n2[:, 0]).tolist() == np.bincount(of[:, 0]).tolist()
        assert above[one.of][tuple(one.neurons_n2.T)].all()
        assert one.neurons_n2.tolist() == sorted(rows_list(one.neurons_n2))
        own += len(rows(one.neurons_n2) & rows(of))
    assert 0 < own < 8 * len(drawn) / 2  # the set's own are drawn as all others are
    assert len({one.neurons_n2.tobytes() for one in drawn}) == len(drawn)


def rows_list(neurons_n2: np.ndarray) -> list[list[int]]:
    return [list(row) for row in sorted(rows(neurons_n2))]


def test_candidates_are_as_many_above_and_below() -> None:
    above_LF = np.zeros((3, 50), bool)
    above_LF[:, :20] = True
    mixed = np.array([[0, 3], [0, 30], [0, 31], [2, 5]])
    for one in candidates_of({"x": mixed}, {"x": above_LF}):
        number = [[np.count_nonzero(half_LF[layer][one.neurons_n2[one.neurons_n2[:, 0] == layer, 1]])
                   for layer in range(3)] for half_LF in (above_LF, ~above_LF)]  # fmt: skip
        assert number == [[1, 0, 1], [2, 0, 0]]


def test_candidates_come_from_all_layers_where_one_has_too_few_and_are_not_drawn_where_all_have() -> None:
    above_LF = np.zeros((2, 50), bool)
    above_LF[0, :7] = above_LF[1, :9] = True
    x = np.array([[0, number] for number in range(6)])  # one other in the layer, nine in the next
    drawn = candidates_of({"x": x}, {"x": above_LF})
    assert {one.drawn_from for one in drawn} == {"all layers"}
    assert all(len(one.neurons_n2) == 6 and above_LF[tuple(one.neurons_n2.T)].all() for one in drawn)
    above_LF[1, 4:9] = False  # five others for six
    made = mask_sets({"x": x, "a": A[:2]}, site_numbers((), 2, 50), 4, {"x": above_LF, "a": ~above_LF})
    assert [one.of for one in made.sets if one.kind == "candidates"] == ["a"] * 4
    assert made.not_drawn == {"random": {}, "candidates": {"x": "5 others above the threshold for 6 in the set"}}
    assert mask_sets({"x": x}, site_numbers((), 2, 50), 4, "no corpus").not_drawn["candidates"] == {"x": "no corpus"}


def test_random_neurons_need_four_times_as_many_others_in_each_layer() -> None:
    for number, enough in ((10, True), (11, False)):
        x = np.array([[1, neuron] for neuron in range(number)])
        made = mask_sets({"x": x}, site_numbers((), 2, 50), 2)
        assert [one.kind for one in made.sets[2:]] == ["random"] * 2 * enough
        assert made.not_drawn["random"] == ({} if enough else {"x": "39 others in layer 1 for 11 in the set"})


def test_polysemantic_neurons_are_spared() -> None:
    assert shared_neurons([A, B]).tolist() == [[0, 2]]
    site_LF = site_numbers((), 3, 20)
    spared = [one for one in mask_sets({"a": A, "b": B}, site_LF, 0, with_spared=True).sets if one.kind == "spared"]
    assert [(one.of, one.neurons_n2.tolist()) for one in spared] == [("a", [[0, 1], [2, 5]]), ("b", [[1, 1]])]
    assert not [one for one in mask_sets({"a": A}, site_LF, 0, with_spared=True).sets if one.kind == "spared"]


# A layer of one network, and one of three experts of 40.
SITE_LF = np.array([[0] * 50 + [-1] * 70, np.repeat([1, 2, 3], 40)])


def test_neurons_of_experts_are_compared_with_those_of_the_same_experts() -> None:
    x = np.array([[0, 3], [1, 1], [1, 2], [1, 90]])
    above_LF = np.zeros(SITE_LF.shape, bool)
    above_LF[:, ::2] = True
    made = mask_sets({"x": x}, SITE_LF, 3, {"x": above_LF})
    for kind in ("random", "candidates"):
        drawn = [one for one in made.sets if one.kind == kind]
        assert [one.drawn_from for one in drawn] == ["networks"] * 3
        for one in drawn:
            assert sorted(SITE_LF[tuple(one.neurons_n2.T)].tolist()) == [0, 1, 1, 3]
    assert all(not rows(one.neurons_n2) & rows(x) for one in made.sets if one.kind == "random")
    candidates = [one.neurons_n2 for one in made.sets if one.kind == "candidates"]
    for drawn_n2 in candidates:  # as many above and below in each
        by_site = sorted(zip(SITE_LF[tuple(drawn_n2.T)].tolist(), above_LF[tuple(drawn_n2.T)].tolist(), strict=True))
        assert by_site == [(0, False), (1, False), (1, True), (3, True)]


def test_an_expert_with_too_few_others_is_compared_with_its_layer() -> None:
    x = np.array([[1, neuron] for neuron in range(9)])  # 31 others in the expert, 111 in the layer
    made = mask_sets({"x": x}, SITE_LF, 2)
    drawn = [one for one in made.sets if one.kind == "random"]
    assert [one.drawn_from for one in drawn] == ["", ""]
    assert all((one.neurons_n2[:, 0] == 1).all() for one in drawn)


def test_layers_of_one_network_have_the_draws_that_they_had() -> None:
    site_LF = np.array([[0] * 50, [1] * 40 + [-1] * 10, [2] * 50])
    sets = mask_sets({"a": A, "b": B}, site_numbers((), 3, 50), 3).sets
    assert [one.neurons_n2.tolist() for one in sets[3:]] == [
        [[0, 0], [0, 35], [2, 49]], [[0, 22], [0, 23], [2, 17]], [[0, 4], [0, 36], [2, 47]],
        [[0, 10], [1, 46]], [[0, 0], [1, 3]], [[0, 40], [1, 9]],
    ]  # fmt: skip
    ragged = mask_sets({"a": np.array([[1, 1]])}, site_LF, 20).sets[2:]
    assert all((one.neurons_n2[:, 1] < 40).all() and one.drawn_from == "" for one in ragged)
