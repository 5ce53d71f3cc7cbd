"""Token sets: the single-token rule on a real tokenizer, and the papers' keyword files where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotally.profiler.corpus.token_sets import find_token_sets, read_keywords, read_words
from neurotally.profiler.errors import InputError

SHARED = Path(__file__).parents[2] / "shared" / "data" / "keywords"


@pytest.mark.skipif(not SHARED.exists(), reason="the papers' keyword files aren't here")
def test_the_papers_keyword_files() -> None:
    keywords = read_keywords(SHARED)
    assert len(keywords) == 23
    counts = {"C#": 158, "C++": 522, "C": 337, "Elixir": 15, "Python 2": 31, "Python 3": 185, "Rust": 185}
    assert {name: len(set(keywords[name])) for name in counts} == counts
    assert len(set().union(*keywords.values())) == 1475


def test_a_set_is_all_tokens_that_spell_its_single_token_words(tokenizer: Any) -> None:
    keywords = {"one": ["self", "if", "if", "else if", "zzqqzz", "12", "in", "return"], "two": ["return", "</s>"]}
    english = ["the", "if", ";", "7", "zyzzyva"]
    found = find_token_sets(tokenizer, keywords, english)
    vocabulary = {token: tokenizer.decode([token]) for token in range(len(tokenizer))}
    words = {
        "one": {"self", "if", "in", "return"}, "two": {"return"}, "all": {"self", "if", "in", "return"},
        "English": {"the", "if"}, "English without keywords": {"the"},
    }  # fmt: skip
    single = {word for word in set().union(*words.values()) if len(tokenizer.tokenize(word)) == 1}
    assert {"in", "self"} <= single
    for one in found.sets:
        expected = [token for token, text in vocabulary.items() if text.strip() in words[one.name] & single]
        assert one.ids.tolist() == expected
        assert one.single == len(words[one.name] & single)
        assert one.draws_Dm.shape == (20, len(one.ids))
        for drawn in one.draws_Dm.tolist():
            assert len(set(drawn)) == len(drawn)
            assert not set(drawn) & {0, 1}
            assert all(vocabulary[token].strip() for token in drawn)
    assert [one.entries for one in found.sets if one.name == "one"] == [7]
    assert list(found.spelling) == list(vocabulary.values())


def test_a_list_without_a_single_token_is_named_and_draws_follow_the_seed(tokenizer: Any) -> None:
    found = find_token_sets(tokenizer, {"none": ["else if", "42"], "some": ["if", "in"]}, None, seed=3)
    assert found.names == ["some", "all"]
    assert found.empty == {"none": 2}
    again = find_token_sets(tokenizer, {"some": ["if", "in"]}, None, seed=3)
    other = find_token_sets(tokenizer, {"some": ["if", "in"]}, None, seed=4)
    assert np.array_equal(found.sets[0].draws_Dm, again.sets[0].draws_Dm)
    assert found.sets[0].draws_Dm.tolist() != other.sets[0].draws_Dm.tolist()
    assert found.sha256 == again.sha256 != other.sha256


def test_single_letters_are_no_english_words(tokenizer: Any) -> None:
    words = ["a", "I", "A", "x", "e", "the", "in"]
    (english,) = [one for one in find_token_sets(tokenizer, {}, words).sets if one.name == "English"]
    spelled = {tokenizer.decode([token]).strip() for token in english.ids.tolist()}
    assert {"a", "I"} <= spelled <= {"a", "I", "the", "in"}


class Letters:
    """A tokenizer of V tokens, each of them one word of its own: `w7 ` is token 7."""

    all_special_ids = (0,)

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def get_vocab(self) -> dict[str, int]:
        return {f"w{token}": token for token in range(self._vocabulary)}

    def decode(self, ids: list[int], **_: Any) -> str:
        return f"w{ids[0]}"

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word[1:]) for word in text.split()] for text in texts]}


def strata_by_hand(counts: np.ndarray, left: set[int], tokens: list[int]) -> list[int]:
    """The stratum of each token, one token at a time: which doubling run of the tokens left it falls into."""
    order = sorted(range(1, len(counts)), key=lambda token: (-counts[token], token))
    found = []
    for token in tokens:
        before = sum(other in left for other in order[: order.index(token)])
        stratum, end = 0, 64
        while before >= end and end < len(left):
            stratum, end = stratum + 1, 2 * end
        found.append(stratum)
    return found


@pytest.mark.slow
def test_draws_are_as_frequent_as_their_set_and_hold_no_keyword() -> None:
    vocabulary, rng = 1000, np.random.default_rng(0)
    tokens = np.minimum(rng.zipf(1.3, 40_000), vocabulary - 1)
    texts = [" ".join(f"w{token}" for token in part) for part in np.split(tokens, 40)]
    counts = np.bincount(tokens, minlength=vocabulary)
    members = {"A": [2, 5, 9, 70, 71, 300, 999], "B": [5, 6, 8, 120, 500, 501]}
    english = [f"w{token}" for token in range(40, 60)]
    found = find_token_sets(
        Letters(vocabulary), {name: [f"w{token}" for token in of] for name, of in members.items()}, english, texts,
        draws=200,
    )  # fmt: skip
    keywords = {token for of in members.values() for token in of}
    for one in found.sets:
        left = set(range(1, vocabulary)) - keywords - (set(range(40, 60)) if "English" in one.name else set())
        wanted = sorted(strata_by_hand(counts, left, one.ids.tolist()))
        for drawn in one.draws_Dm.tolist():
            assert set(drawn) <= left
            assert len(set(drawn)) == len(one.ids)
            assert sorted(strata_by_hand(counts, left, drawn)) == wanted, one.name
        assert one.share == counts[one.ids].sum() / len(tokens)
        assert one.drawn_share == pytest.approx(np.mean([counts[of].sum() for of in one.draws_Dm]) / len(tokens))
    # Within a stratum every token is as likely: 200 draws of 2 or 3 among the first 64, 7.8 expected of each.
    first = found.sets[0].draws_Dm
    order = [token for token in sorted(range(1, vocabulary), key=lambda token: (-counts[token], token))
             if token not in keywords][:64]  # fmt: skip
    times = np.array([(first == token).sum() for token in order])
    expected = times.sum() / 64
    assert ((times - expected) ** 2 / expected).sum() < 115  # the chi-square's 0.01 % of 63 degrees of freedom: 114.8


def test_strata_that_are_too_small_are_joined_and_a_set_that_is_too_large_has_no_draws() -> None:
    of_80 = find_token_sets(Letters(1000), {"A": [f"w{token}" for token in range(1, 81)]}, None).sets[0]
    assert of_80.draws_Dm.max() > 80 + 128  # 80 tokens before all others: more than half of the first 64 and next 64
    assert of_80.draws_Dm.max() <= 80 + 256
    for size, draws in ((333, 20), (334, 0)):  # of 999: twice as many are left, and one too few
        of = find_token_sets(Letters(1000), {"A": [f"w{token}" for token in range(1, size + 1)]}, None).sets[0]
        assert of.draws_Dm.shape == (draws, size)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected"),
        (json.dumps({"name": "X"}), "keywords"),
        (json.dumps({"name": "X", "keywords": [1]}), "expected text"),
        (json.dumps({"name": "all", "keywords": []}), "'all' is taken"),
    ],
    ids=["no JSON", "no keywords", "no text", "a taken name"],
)
def test_keyword_files_that_can_not_be_read_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=rf"x\.json.*{message}"):
        read_keywords(tmp_path)


def test_lists_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        read_keywords(tmp_path)
    with pytest.raises(InputError, match="one word a line"):
        read_words(tmp_path / "words.txt")
