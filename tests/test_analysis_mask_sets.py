"""The sets that a loss pass switches off: as many as they should be, where they should be."""

import json
from pathlib import Path

import numpy as np
import pytest

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import lape
from neurotally.analysis.masking.mask_sets import candidate_neurons, mask_sets, read_origin, shared_neurons
from neurotally.profiler.errors import InputError

A = np.array([[0, 1], [0, 2], [2, 5]])
B = np.array([[0, 2], [1, 1]])


def rows(neurons_n2: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, neurons_n2.tolist()))


def test_random_sets_have_as_many_neurons_in_every_layer() -> None:
    sets = mask_sets({"a": A, "b": B}, num_neurons=500, draws=3)
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
    again = mask_sets({"a": A, "b": B}, num_neurons=500, draws=3)
    assert all(np.array_equal(one.neurons_n2, other.neurons_n2) for one, other in zip(sets, again, strict=True))


def test_candidates_are_above_the_bar_and_not_chosen() -> None:
    rng = np.random.default_rng(0)
    active_CLF = rng.integers(0, 1000, (3, 2, 50)).astype(np.uint64)
    counts = CorpusCounts(None, ("a", "b", "c"), np.full(3, 1000, np.uint64), active_CLF, {})
    selection = lape(active_CLF, counts.tokens_C, counts.corpora, quantile=0.8, per_corpus=8)
    above = candidate_neurons(counts, selection)
    assert {name: len(pairs) for name, pairs in above.items()} == dict(selection.num_candidates)
    sets = mask_sets(selection.specific, 50, 1, above, candidate_draws=2)
    drawn = [one for one in sets if one.kind == "candidates"]
    assert len(drawn) == 6
    for one in drawn:
        assert len(one.neurons_n2) == 8
        assert rows(one.neurons_n2) <= rows(above[one.of]) - rows(selection.specific[one.of])
    few = mask_sets({"a": above["a"][1:]}, 50, 0, above, candidate_draws=1)
    assert few[-1].neurons_n2.tolist() == above["a"][:1].tolist()  # the one that is left


def test_polysemantic_neurons_are_spared() -> None:
    assert shared_neurons([A, B]).tolist() == [[0, 2]]
    spared = [one for one in mask_sets({"a": A, "b": B}, 20, 0, with_spared=True) if one.kind == "spared"]
    assert [(one.of, one.neurons_n2.tolist()) for one in spared] == [("a", [[0, 1], [2, 5]]), ("b", [[1, 1]])]
    assert not [one for one in mask_sets({"a": A}, 20, 0, with_spared=True) if one.kind == "spared"]


def test_the_origin_of_a_mask_file(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"trigger_documents": {"py": ["00" * 32], "go": ["ff" * 32]}, "polysemantic": []}))
    origin = read_origin(path)
    assert origin.trigger_documents == {bytes(32), b"\xff" * 32}
    assert origin.has_polysemantic
    path.write_text("{}")
    assert read_origin(path).trigger_documents is None
    path.write_text(json.dumps({"trigger_documents": {"py": ["nonsense"]}}))
    with pytest.raises(InputError, match="trigger_documents"):
        read_origin(path)
