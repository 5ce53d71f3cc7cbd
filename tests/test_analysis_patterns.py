"""Patterns equal what plain Python counts, and tests pass no more null keys than they should."""

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import false_discovery_control, t, ttest_ind

from neurotally.analysis.keys.null_test import corrected, difference_from_draws, empirical_p, mean_difference, needed
from neurotally.analysis.keys.patterns import KeyCounts, Statistic, corpus_patterns, count_keys, key_p
from neurotally.analysis.keys.patterns_study import patterns_document, patterns_result, save_key_patterns
from neurotally.analysis.keys.places import KINDS, LexedFile, PlaceReader, Places, find_lexer
from neurotally.analysis.keys.trigger_lists import TriggerLists, first_in_row
from neurotally.profiler.corpus.texts import TokenText

SOURCE = """import os  # a comment
def f(x, y):
    "text" + 'more'
    return x and y == 12
class A: pass
"""
CONCEPTS = {"def": re.compile(r"^def\s", re.MULTILINE), "twelve": re.compile(r"\b12\b")}
SPECIAL = [0]


def tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Words and single other characters, each with the space before it; id 0 begins, and a word's id is its hash."""
    spans = [match.span() for match in re.finditer(r" ?(\w+|[^\w])", text)]
    ids = [sum(map(ord, text[a:b])) % 997 + 1 for a, b in spans]
    return np.array([0, *ids]), np.array([(0, 0), *spans])


def read(texts: list[str], window: int = 3, inside: bool = False, lexer: Any = "python") -> Places:
    reader = PlaceReader(find_lexer(lexer, []) if lexer else None, CONCEPTS, window, inside)
    for number, text in enumerate(texts):
        ids, spans = tokens(text)
        reader.add(TokenText(number, text, ids, spans, 1), np.arange(len(ids)), SPECIAL)
    return reader.places()


def test_kinds_of_the_last_character_that_is_not_space() -> None:
    places = read([SOURCE])
    _, spans = tokens(SOURCE)
    kinds = {SOURCE[a:b]: KINDS[kind] for (a, b), kind in zip(spans.tolist(), places.kind_P.tolist(), strict=True)}
    expected = {
        "import": "keyword", " os": "name", " a": "comment", "def": "keyword", " f": "name", "x": "name",
        "text": "literal", " +": "operator", "more": "literal", "return": "keyword", " and": "operator",
        " 12": "literal", ":": "punctuation", " pass": "keyword", "\n": "other", "  ": "other",
    }  # fmt: skip
    assert {text: kinds[text] for text in expected} == expected


@pytest.mark.parametrize(
    ("corpus", "names", "language"),
    [
        ("python", [], "Python"), ("c++", [], "C++"), ("c#", [], "C#"), ("Go", [], "Go"),
        ("javascript", [], "JavaScript"), ("python-stubs", ["a/b.pyi", "c.pyi", "d.txt"], "Python"),
        ("mine", ["x.java#L1-5"], "Java"), ("english", ["a.txt"], None), ("mine", ["LICENSE"], None),
        ("text", ["a.py"], None),
    ],
)  # fmt: skip
def test_lexers(corpus: str, names: list[str], language: str | None) -> None:
    lexer = find_lexer(corpus, names)
    assert (None if lexer is None else lexer.name) == language


@pytest.mark.parametrize("window", [1, 2, 3, 5, 100])
def test_matches_equal_a_search_in_the_lines_around(window: int) -> None:
    places = read([SOURCE], window)
    lines = SOURCE.splitlines(keepends=True)
    _, spans = tokens(SOURCE)
    for place, (start, _) in enumerate(spans.tolist()):
        line = SOURCE[:start].count("\n")
        around = "".join(lines[max(0, line - window // 2) : line + (window - 1) // 2 + 1])
        around = SOURCE if len(lines) <= window else around
        expected = [pattern.search(around) is not None for pattern in CONCEPTS.values()]
        assert places.match_PC[place].tolist() == expected


def test_a_part_of_a_file_is_lexed_as_in_the_file() -> None:
    file = 'x = """\nif x is not in y\n"""\nif x: pass\n'
    windows = ['x = """\n', "if x is not in y\n", '"""\nif x: pass\n']
    reader, first = PlaceReader(find_lexer("python", []), {}), 0
    lexed = LexedFile(reader.lexer, file)
    for number, text in enumerate(windows):
        ids, spans = tokens(text)
        reader.add(TokenText(number, text, ids, spans, 1), np.arange(len(ids)), SPECIAL, lexed, first)
        first += len(text)
    whole, parts = read([file]), reader.places()
    kinds = [[KINDS[kind] for kind in places.kind_P[places.found_P]] for places in (whole, parts)]
    assert kinds[0] == kinds[1]
    assert kinds[1].count("keyword") == 2  # the `if` and the `pass` that aren't in the string


def test_a_match_without_characters_is_none() -> None:
    reader = PlaceReader(None, {"x": re.compile("x*")})
    for number, text in enumerate(("abc", "axc")):
        ids, spans = tokens(text)
        reader.add(TokenText(number, text, ids, spans, 1), np.array([1]), SPECIAL)
    assert reader.places().match_PC[:, 0].tolist() == [False, True]


def test_inside_needs_the_token_in_the_match() -> None:
    places = read([SOURCE], 5, inside=True)
    _, spans = tokens(SOURCE)
    inside = {SOURCE[a:b] for (a, b), match in zip(spans.tolist(), places.match_PC[:, 1], strict=True) if match}
    assert inside == {" 12"}


def reference(texts: list[str], key: list[tuple[int, int]], places: Places, window: int) -> tuple[int, dict[Any, int]]:
    """The counts of one key, in plain Python."""
    seen, endings, kinds, concepts = set(), [Counter[Any]() for _ in range(3)], Counter[str](), Counter[str]()
    for document, position in key:
        text = texts[document]
        ids, spans = tokens(text)
        if ids[position] in SPECIAL:
            continue
        start, end = spans[position].tolist()
        lines, line = text.split("\n"), text[:start].count("\n")
        first = max(0, line - window // 2)
        around = "\n".join(lines[first : line + (window - 1) // 2 + 1])
        context = (around, start - len("\n".join([*lines[:first], ""])), end - start)
        if context in seen:
            continue
        seen.add(context)
        for length, counter in enumerate(endings, 1):
            if position - length >= 0:
                counter[tuple(ids[position - length + 1 : position + 1].tolist())] += 1
        at = int(np.searchsorted(places.code_P, np.uint64(document << 32 | position)))
        kinds[KINDS[places.kind_P[at]]] += 1
        concepts.update(name for name, pattern in CONCEPTS.items() if pattern.search(around + "\n"))
    counts: dict[Any, int] = {name: max(of.values(), default=0) for name, of in
                              zip(("token", "bigram", "trigram"), endings, strict=True)}  # fmt: skip
    return len(seen), counts | {kind: kinds[kind] for kind in KINDS} | {name: concepts[name] for name in CONCEPTS}


def test_counts_equal_plain_python() -> None:
    rng = np.random.default_rng(0)
    texts = [SOURCE, SOURCE, "\n\n" + SOURCE, SOURCE.replace("12", "13"), "x = 1\n" * 6, "a b a b a b a b\n" * 3]
    places = read(texts)
    lengths = [len(tokens(text)[0]) for text in texts]
    keys = [
        [(d, int(rng.integers(min(9, lengths[d])))) for d in rng.permutation(len(texts)).tolist()] for _ in range(300)
    ]
    document, position = (np.array([[pair[at] for pair in key] for key in keys]) for at in (0, 1))
    index = places.index(document, position)
    index[5, 2:] = -1  # unused
    counts = count_keys(places, index.reshape(3, 100, -1))
    names = [statistic.name for statistic in counts.statistics]
    for number, key in enumerate(keys):
        distinct, expected = reference(texts, key[:2] if number == 5 else key, places, 3)
        layer, neuron = divmod(number, 100)
        assert counts.distinct[layer, neuron] == distinct
        assert dict(zip(names, counts.count_S[:, layer, neuron].tolist(), strict=True)) == expected


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    places = read([SOURCE, SOURCE + "x"])
    index = np.random.default_rng(1).integers(-1, len(places.code_P), (50, 7))
    whole = count_keys(places, index)
    monkeypatch.setattr("neurotally.analysis.keys.patterns._BLOCK", 7)
    assert (count_keys(places, index).count_S == whole.count_S).all()


def test_first_in_row_equals_a_set() -> None:
    rng = np.random.default_rng(2)
    values, valid = rng.integers(0, 5, (4, 30, 9)), rng.random((4, 30, 9)) < 0.7
    found = first_in_row(values, valid)
    for at in np.ndindex(4, 30):
        seen: set[int] = set()
        for column in range(9):
            is_first = bool(valid[(*at, column)]) and int(values[(*at, column)]) not in seen
            assert found[(*at, column)] == is_first
            if valid[(*at, column)]:
                seen.add(int(values[(*at, column)]))


def test_p_equals_the_formula() -> None:
    rng = np.random.default_rng(3)
    distinct, null_distinct = rng.integers(0, 9, 200), rng.integers(0, 9, 150)
    count, null = rng.integers(0, distinct + 1), rng.integers(0, null_distinct + 1)
    p = empirical_p(count, distinct, null, null_distinct)
    for at in range(200):
        share = count[at] / distinct[at] if distinct[at] else 0
        reach = sum(n >= count[at] or (n / d if d else 0) >= share for n, d in zip(null, null_distinct, strict=True))
        assert p[at] == (1.0 if not distinct[at] else (1 + reach) / 151)


def test_correction_is_scipys_over_all() -> None:
    p = np.random.default_rng(4).random((3, 40)) ** 3
    assert (corrected(p) == false_discovery_control(p.ravel()).reshape(3, 40)).all()
    assert corrected(np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(("keys", "null", "alpha"), [(2048, 4096, 0.05), (100, 10, 0.05), (100, 10_000, 0.01)])
def test_so_many_keys_are_needed(keys: int, null: int, alpha: float) -> None:
    number = needed(keys, null, alpha)
    for passing in (number - 1, number):
        p = np.ones(keys + number)[:keys]
        p[: min(passing, keys)] = 1 / (1 + null)
        if 0 < passing <= keys:
            assert (corrected(p) <= alpha).any() == (passing == number)


def test_by_layer_uses_the_layers_own_null_keys() -> None:
    rng = np.random.default_rng(5)

    def made(size: int) -> KeyCounts:
        return KeyCounts((Statistic("concepts", "x"),), np.full((2, size), 8, np.int32),
                         rng.integers(0, 9, (1, 2, size)).astype(np.int32))  # fmt: skip

    counts, null = made(30), made(50)
    found = key_p(counts, null, 2, by_layer=True)
    for layer in range(2):
        own = (null.count_S[0, layer][None] >= counts.count_S[0, layer][:, None]).sum(axis=1)
        assert found[0, layer] == pytest.approx((1 + own) / 51, rel=1e-15)


def lists(documents: int, positions: int, keys: int, seed: int, fixed: int | None = None) -> TriggerLists:
    """Random triggers, one a document; with `fixed` the first ten keys of layer 0 are triggered there alone."""
    rng = np.random.default_rng(seed)
    document = np.broadcast_to(np.arange(documents, dtype=np.uint32), (2, keys, documents)).copy()
    position = rng.integers(1, positions, (2, keys, documents)).astype(np.uint32)
    if fixed is not None:
        position[0, :10] = fixed
    return TriggerLists("python", np.ones(document.shape, np.float32), document, position, document >= 0, 0)


def test_keys_with_a_pattern_pass_and_null_keys_do_not(tmp_path: Path) -> None:
    texts = [f"v{number} = {number}\n{SOURCE}" for number in range(16)]
    places = read(texts, window=3)
    length = min(len(tokens(text)[0]) for text in texts)
    sampled = np.arange(0, len(places.code_P), 3)
    nulls = [lists(16, length, 400, seed) for seed in (1, 2)]
    found = corpus_patterns(lists(16, length, 60, 0, fixed=6), places, sampled, nulls, "Python", 0.05, 0)
    assert found.p_SLF is not None
    assert (found.p_SLF[0, 0, :10] <= 0.05).all()
    assert found.shallow_and_abstract()[0][0, :10].all()
    untrained = corpus_patterns(nulls[0], places, sampled, [nulls[1]], "Python", 0.05, 0)
    assert untrained.p_SLF is not None
    assert (untrained.p_SLF <= 0.05).mean() < 0.01
    settings = {"model": None, "all_keys": 0, "null": [None], "alpha": 0.05, "by_layer_tests": False, "window_lines": 3,
                "inside": False, "triggers": 16}  # fmt: skip
    document = patterns_document([found], {name: one.pattern for name, one in CONCEPTS.items()}, settings)
    token = document["corpora"]["python"]["ngrams"]["token"]
    share_LF = found.counts.count_S[0] / found.counts.distinct
    assert token["by_layer"] == pytest.approx(share_LF.mean(axis=1).tolist(), rel=1e-12)
    assert token["strongest"][0]["count"] == 16
    assert token["passing"] == int((found.p_SLF[0] <= 0.05).sum())
    result = patterns_result(document)
    assert result.frame("python").set_index("statistic").loc["token", "keys passing"] == token["passing"]
    save_key_patterns([found], tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as archive:
        assert (archive["python/count/ngrams/token"] == found.counts.count_S[0]).all()
    figure = result.figure()
    visible = [axes for axes in figure.axes if axes.get_visible()]
    assert len(visible) == 3 + 5 + 2 + 2
    assert list(visible[0].get_lines()[0].get_ydata()) == token["by_layer"]
    assert list(visible[0].get_lines()[1].get_ydata()) == token["null_by_layer"]


SETTINGS = {"model": None, "all_keys": 0, "null": [None], "alpha": 0.05, "by_layer_tests": False, "window_lines": 3,
            "inside": False, "triggers": 16}  # fmt: skip


def often_at(position: int, share: float, keys: int, seed: int) -> TriggerLists:
    """Random triggers, of which about a share are at one position of their documents."""
    made = lists(16, 30, keys, seed)
    is_there = np.random.default_rng(100 + seed).random(made.position_LFK.shape) < share
    return TriggerLists(made.corpus, made.value_LFK, made.document_LFK,
                        np.where(is_there, np.uint32(position), made.position_LFK), made.used_LFK, 0)  # fmt: skip


@pytest.mark.slow
def test_where_no_key_can_pass_the_zero_is_called_no_finding_and_the_layers_are_compared() -> None:
    places = read([f"v{number} = {number}\n{SOURCE}" for number in range(16)], window=3)
    sampled = np.arange(0, len(places.code_P), 3)
    keys, null = often_at(6, 0.35, 200, 0), often_at(6, 0.2, 40, 1)
    found = corpus_patterns(keys, places, sampled, [null], "Python", 0.05, 0)
    document = patterns_document([found], {}, SETTINGS)
    python = document["corpora"]["python"]
    assert python["needed"] == math.ceil(400 / (0.05 * 81))
    assert python["shallow_by_layer"] == [0, 0]
    of, own = python["ngrams"]["token"], found.counts
    assert found.null is not None
    highest = max(count / number for count, number in zip(found.null.count_S[0].flat, found.null.distinct.flat,
                                                          strict=True))  # fmt: skip
    beyond = sum(count / number > highest and count > found.null.count_S[0].max()
                 for count, number in zip(own.count_S[0].flat, own.distinct.flat, strict=True))  # fmt: skip
    assert 0 < of["beyond_null"] == beyond < python["needed"]
    for layer in range(2):
        share_F, null_M = (of.count_S[0, layer] / of.distinct[layer] for of in (own, found.null))
        interval = ttest_ind(share_F, null_M, equal_var=False).confidence_interval(0.95)
        difference, half = (of[f"over_null{name}_by_layer"][layer] for name in ("", "_half"))
        assert (difference - half, difference + half) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert difference - half > 0
    text = patterns_result(document).text()
    for said in (
        "0.0 % shallow",
        f"at least {python['needed']} keys must be beyond every null key together",
        "that none passes is no finding",
        f"beyond every null key are: {beyond} token",
        "over null layer 0",
    ):
        assert said in text, said  # fmt: skip
    titles = [panel.get_title("right") for panel in patterns_result(document).figure().axes]
    assert f"{python['needed']} needed for any" in titles
    many = corpus_patterns(keys, places, sampled, [often_at(6, 0.2, 4000, 2)], "Python", 0.05, 0)
    assert "no finding" not in patterns_result(patterns_document([many], {}, SETTINGS)).text()


def test_by_layer_the_fewest_null_keys_of_a_layer_say_how_many_are_needed() -> None:
    places = read([f"v{number} = {number}\n{SOURCE}" for number in range(16)], window=3)
    null = often_at(6, 0.2, 40, 1)
    null.used_LFK[1, 10:] = False
    found = corpus_patterns(often_at(6, 0.5, 50, 0), places, np.arange(3), [null], None, 0.05, 0, by_layer=True)
    assert found.needed == math.ceil(100 / (0.05 * 11))


def test_the_intervals_of_layers_are_as_wide_as_they_say() -> None:
    """Keys and null keys alike, their shares spread more than a binomial's: 10 of 200 intervals should miss 0."""

    def shares(size: int, rng: np.random.Generator) -> np.ndarray:
        distinct = rng.integers(8, 33, size)
        return rng.binomial(distinct, rng.beta(2, 3, size)) / distinct

    missed = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        found = mean_difference(shares(120, rng), shares(40, rng))
        missed += abs(found.difference) > found.half
    assert 2 <= missed <= 20  # 99.8 % of the time


def test_of_three_null_models_the_trained_one_is_one_more_draw() -> None:
    places = read([f"v{number} = {number}\n{SOURCE}" for number in range(16)], window=3)
    nulls = [often_at(6, 0.2, 40, seed) for seed in (1, 2, 3)]
    found = corpus_patterns(often_at(6, 0.35, 40, 0), places, np.arange(3), nulls, None, 0.05, 0)
    document = patterns_document([found], {}, SETTINGS)
    of = document["corpora"]["python"]["ngrams"]["token"]
    each = [corpus_patterns(null, places, np.arange(3), [], None, 0.05, 0).counts for null in nulls]
    for layer in range(2):
        a, b, c = ((counts.count_S[0, layer] / counts.distinct[layer]).mean() for counts in each)
        centre = (a + b + c) / 3
        deviation = (((a - centre) ** 2 + (b - centre) ** 2 + (c - centre) ** 2) / 2) ** 0.5
        own = (found.counts.count_S[0, layer] / found.counts.distinct[layer]).mean()
        assert of["over_null_by_layer"][layer] == pytest.approx(own - centre, rel=1e-9)
        assert of["over_null_half_by_layer"][layer] == pytest.approx(4.302653 * deviation * (4 / 3) ** 0.5, rel=1e-6)
    assert "the trained one taken for one more" in patterns_result(document).text()


def test_the_intervals_over_null_models_are_as_wide_as_they_say_though_keys_vary_together() -> None:
    """A layer's mean varies between models by more than its keys do: 10 of 200 intervals should miss 0."""
    missed = 0
    for seed in range(200):
        mean, *null_R = np.random.default_rng(seed).normal(0.4, 0.03, 6)
        found = difference_from_draws(mean, np.array(null_R))
        missed += abs(found.difference) > found.half
    assert 2 <= missed <= 20


def test_a_mean_difference_is_welchs_and_needs_two_values_a_side() -> None:
    one, other = np.array([0.1, 0.4, np.nan, 0.3]), np.array([0.2, 0.1])
    found = mean_difference(one, other)
    mean, null = (0.1 + 0.4 + 0.3) / 3, 0.15
    square = sum((value - mean) ** 2 for value in (0.1, 0.4, 0.3)) / 2 / 3
    null_square = 2 * 0.05**2 / 1 / 2
    freedom = (square + null_square) ** 2 / (square**2 / 2 + null_square**2 / 1)
    assert found == pytest.approx((mean - null, t.ppf(0.975, freedom) * (square + null_square) ** 0.5))
    assert np.isnan(mean_difference(one, other[:1])).all()
    assert mean_difference(np.ones(3), np.zeros(3)) == (1, 0)


def test_chance_is_the_rate_of_random_positions() -> None:
    texts = [SOURCE.replace("\n", f"  # {number}\n") for number in range(40)]  # no context twice
    places = read(texts, window=3)
    sampled = np.arange(0, len(places.code_P), 2)
    found = corpus_patterns(lists(4, 9, 5, 0), places, sampled, [], "Python", 0.05, 0)
    assert found.p_SLF is None
    used = sampled[places.found_P[sampled]]
    for number, statistic in enumerate(found.counts.statistics):
        share = found.chance.share(number, 1)
        if statistic.family == "concepts":
            rate = places.match_PC[used, places.concepts.index(statistic.name)].mean()
        elif statistic.family == "kinds":
            rate = (places.kind_P[used] == KINDS.index(statistic.name)).mean()
        else:
            continue
        assert share.mean() == pytest.approx(rate, abs=5 * share.std() / len(share) ** 0.5 + 1e-12)


def test_documents_without_a_text_are_left_out_and_named() -> None:
    reader = PlaceReader(None, {}, 3)
    ids, spans = tokens(SOURCE)
    reader.missing["gone.py"] = "gone"
    reader.add(TokenText(0, SOURCE, ids, spans, 1), np.array([0, 4]), SPECIAL)
    places = reader.places()
    assert places.index(np.array([0, 0, 1, 1, 2]), np.array([0, 4, 2, 3, 0])).tolist() == [-1, 1, -1, -1, -1]
    assert places.missing == {"gone.py": "gone"}
    assert count_keys(places, np.array([[1, -1]])).distinct.tolist() == [1]
