"""Concepts: the keys that match equal a plain count; a planted concept is found, an untrained model's keys are not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control

from neurotally.analysis.keys.concepts import concepts_document, concepts_result, find_concept, polysemantic
from neurotally.analysis.keys.patterns import CorpusPatterns, KeyCounts, Statistic
from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.keys.tested import CorpusKeys
from neurotally.analysis.keys.trigger_lists import TriggerLists
from neurotally.analysis.masking.masks import read_mask
from neurotally.profiler.corpus.texts import CorpusTexts
from neurotally.profiler.errors import InputError

NAMES = ("main", "numpy", "absent")
STATISTICS = (Statistic("ngrams", "main"), *(Statistic("concepts", name) for name in NAMES))
K = 16


def counts(rng: np.random.Generator, shape: tuple[int, ...], planted: dict[str, list[tuple[int, int]]]) -> KeyCounts:
    """Ten percent of 16 contexts match by chance; planted keys match in 15 of them; `absent` matches nowhere."""
    count_S = rng.binomial(K, 0.1, (len(STATISTICS), *shape)).astype(np.int32)
    count_S[3] = 0
    for name, keys in planted.items():
        for key in keys:
            count_S[(1 + NAMES.index(name), *key)] = 15
    return KeyCounts(STATISTICS, np.full(shape, K, np.int32), count_S)


def corpus(name: str, seed: int, planted: dict[str, list[tuple[int, int]]], null: bool = True) -> CorpusKeys:
    rng = np.random.default_rng(seed)
    shape = (3, 20, K)
    document = rng.integers(0, 30, shape).astype(np.uint32)
    used = rng.random(shape) < 0.9
    triggers = TriggerLists(name, np.ones(shape, np.float32), document, document, used, 0)
    patterns = CorpusPatterns(
        name, None, counts(rng, shape[:2], planted), counts(rng, (100,), {}),
        counts(rng, (3, 400), {}) if null else None, 1, 4, 0.05, False, 0, 0, 0, {"x.py": "gone"},
    )  # fmt: skip
    sha256_D32, number_D = rng.integers(0, 256, (30, 32)).astype(np.uint8), np.ones(30, np.uint64)
    texts = CorpusTexts(Path(), name, [f"{n}.py" for n in range(30)], number_D, sha256_D32, number_D, number_D, None,
                        None, None)  # fmt: skip
    return CorpusKeys(triggers, texts, patterns)


PLANTED = {"main": [(0, 1), (0, 2), (1, 5), (2, 19)], "numpy": [(0, 2), (2, 0)]}
SETTINGS = {"model": {"id": "m", "fingerprint": "f"}, "null": [None], "alpha": 0.05, "by_layer_tests": False,
            "window_lines": 5, "inside": False, "min_matches": 8}  # fmt: skip


def test_planted_keys_are_found_and_no_others() -> None:
    corpora = [corpus("c", 0, {}), corpus("python", 1, PLANTED)]
    found = {name: find_concept(name, corpora, 8) for name in NAMES}
    assert {name: list(map(tuple, one.neurons.tolist())) for name, one in found.items()} == {**PLANTED, "absent": []}
    assert polysemantic(list(found.values())) == [(0, 2, ["main", "numpy"])]


def test_p_is_corrected_over_keys_and_corpora_where_the_concept_occurs() -> None:
    corpora = [corpus("c", 0, {}), corpus("python", 1, PLANTED)]
    of_c = corpora[0].patterns
    of_c.counts.count_S[2] = of_c.chance.count_S[2] = 0  # no numpy in c
    assert of_c.null is not None
    of_c.null.count_S[2] = 0
    for name, where in (("main", [0, 1]), ("numpy", [1]), ("absent", [])):
        at, raw = 1 + NAMES.index(name), []
        for number in where:
            counts, null = corpora[number].patterns.counts, corpora[number].patterns.null
            assert null is not None
            reach = (null.count_S[at].ravel()[None] >= counts.count_S[at].ravel()[:, None]).sum(axis=1)
            raw.append((1 + reach) / 1201)
        p_CLF = find_concept(name, corpora, 8).p_CLF
        assert p_CLF is not None
        if raw:
            expected = false_discovery_control(np.concatenate(raw))
            np.testing.assert_allclose(p_CLF[where].ravel(), expected, rtol=1e-12)
        assert (np.delete(p_CLF, where, axis=0) == 1).all()


@pytest.mark.parametrize("min_matches", [1, 2, 5, 15, 16])
def test_without_null_keys_only_the_threshold_counts(min_matches: int) -> None:
    one = corpus("python", 1, PLANTED, null=False)
    found = find_concept("main", [one], min_matches)
    assert found.p_CLF is None
    assert found.neurons.tolist() == np.argwhere(one.patterns.counts.count_S[1] >= min_matches).tolist()


def test_the_document_is_a_mask_and_names_the_documents_that_chose(tmp_path: Path) -> None:
    corpora = [corpus("c", 0, {}), corpus("python", 1, PLANTED)]
    found = [find_concept(name, corpora, 8) for name in NAMES]
    patterns = {"main": "main", "numpy": r"np\.", "absent": "x"}
    document: dict[str, Any] = concepts_document(corpora, found, patterns, SETTINGS)
    (tmp_path / "c.json").write_text(json.dumps(document).replace("NaN", "null"))
    mask = read_mask(tmp_path / "c.json", "f", 3, 20)
    assert mask["main"].tolist() == [list(key) for key in PLANTED["main"]]
    chosen = {key for keys in PLANTED.values() for key in keys}
    lists = corpora[1].triggers
    numbers = {
        int(n) for layer, neuron in chosen for n in lists.document_LFK[layer, neuron][lists.used_LFK[layer, neuron]]
    }
    assert document["trigger_names"] == {"c": [], "python": sorted(f"{number}.py" for number in numbers)}
    hashes = sorted(bytes(corpora[1].texts.sha256_D32[number]).hex() for number in numbers)
    assert document["trigger_documents"] == {"c": [], "python": hashes}
    assert document["overlap"]["common"] == [[4, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert document["overlap"]["jaccard"][0][1] == pytest.approx(1 / 5)
    assert document["polysemantic"] == [[0, 2, ["main", "numpy"]]]
    assert document["by_layer"]["main"] == [2, 1, 1]
    assert document["by_corpus"]["main"]["python"]["keys"] == 4
    assert document["strongest"]["main"][0]["matches"] == 15
    assert "Keys over all corpora: main 4, numpy 2, absent 0." in concepts_result(document).text()
    figure = concepts_result(document).figure()
    assert [axes.get_title(loc="right") for axes in figure.axes if axes.get_visible()] == ["4 keys", "2 keys", "0 keys"]


def test_regular_expressions_see_lines(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[concepts]\nmain = '''^main$'''\nany = '(?i)X'\n")
    found = read_concepts(tmp_path / "c.toml")
    assert found["main"].search("a\nmain\nb")
    assert found["any"].search("x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[concepts]\nmain = '('\n", "'main' doesn't compile"),
        ("[concepts]\nmain = 3\n", "'main' must be a regular expression in quotes, got 3"),
        ("[concepts]\n", "has no concepts"),
        ("main = 'x'\n", "has no concepts"),
        ("[concepts\n", "isn't TOML"),
        (None, "can't be read"),
    ],
)
def test_bad_files_are_refused(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "c.toml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_concepts(tmp_path / "c.toml")
