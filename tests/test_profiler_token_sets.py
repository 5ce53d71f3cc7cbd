"""Token sets: the single-token rule on a real tokenizer, and the papers' keyword files where they are."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotally.profiler.errors import InputError
from neurotally.profiler.token_sets import find_token_sets, read_keywords, read_words

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
        assert len(set(one.control_ids.tolist())) == len(one.ids)
        assert not set(one.control_ids.tolist()) & {0, 1}
        assert all(vocabulary[token].strip() for token in one.control_ids.tolist())
    assert [one.entries for one in found.sets if one.name == "one"] == [7]
    assert list(found.spelling) == list(vocabulary.values())


def test_a_list_without_a_single_token_is_named_and_controls_follow_the_seed(tokenizer: Any) -> None:
    found = find_token_sets(tokenizer, {"none": ["else if", "42"], "some": ["if", "in"]}, None, seed=3)
    assert found.names == ["some", "all"]
    assert found.empty == {"none": 2}
    again = find_token_sets(tokenizer, {"some": ["if", "in"]}, None, seed=3)
    other = find_token_sets(tokenizer, {"some": ["if", "in"]}, None, seed=4)
    assert np.array_equal(found.sets[0].control_ids, again.sets[0].control_ids)
    assert found.sets[0].control_ids.tolist() != other.sets[0].control_ids.tolist()
    assert found.sha256 == again.sha256 != other.sha256


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
