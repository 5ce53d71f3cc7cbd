"""Sets of tokens by what they spell: the keywords of languages, English words, and random sets of their sizes.

    KEYWORDS/NAME.json    {"name": str, "keywords": [str], "builtins": [str]}   (builtins may be absent)
    ENGLISH.txt           a word a line

The single-token rule (arXiv 2506.01074): an entry counts if the tokenizer makes one token of it as it stands, no
space before it, and if it is no number. A set's tokens are all that spell one of its entries once white space around
them is stripped, case as it is: `for` and ` for` are both in it. Special tokens are in no set.

Beside each language: `all`, the union of the languages; from a list of English words, `English` (less the numbers 0
to 100 and the paper's punctuation) and `English without keywords`. Each set has a control: as many tokens drawn
without replacement from all that spell something.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler.errors import InputError, first_line

ALL, ENGLISH, ENGLISH_ONLY = "all", "English", "English without keywords"
_NOT_ENGLISH = frozenset(map(str, range(101))) | frozenset('{}()[]-+.,;"')
"""The paper's."""


@dataclass(frozen=True)
class TokenSet:
    """The tokens of one set, and how it came to them."""

    name: str
    entries: int
    """Distinct entries of its list."""
    single: int
    """How many of them are one token."""
    ids: np.ndarray
    """int64, ascending: all tokens that spell one of these."""
    control_ids: np.ndarray
    """int64, ascending: as many random tokens."""


@dataclass(frozen=True)
class TokenSets:
    """The sets that have tokens, and those that have none."""

    sets: tuple[TokenSet, ...]
    empty: Mapping[str, int]
    """Name and distinct entries of the lists of which no entry is one token."""
    spelling: tuple[str, ...]
    """What each token of the tokenizer's vocabulary spells."""

    @property
    def names(self) -> list[str]:
        """The sets' names, in order."""
        return [one.name for one in self.sets]

    @property
    def sha256(self) -> str:
        """Over names and tokens."""
        digest = hashlib.sha256()
        for one in self.sets:
            digest.update(json.dumps([one.name, one.ids.tolist(), one.control_ids.tolist()]).encode())
        return digest.hexdigest()


def read_keywords(folder: Path) -> dict[str, list[str]]:
    """Keywords and builtins by language, in the order of the names; raises InputError naming the file at fault."""
    files = sorted(folder.glob("*.json"))
    if not files:
        raise InputError(f"--keywords {folder}: expected a .json file for each language, found none")
    keywords: dict[str, list[str]] = {}
    for path in files:
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            name, words = document["name"], [*document["keywords"], *document.get("builtins", [])]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{path}: expected {{"name": ..., "keywords": [...], "builtins": [...]}}: {first_line(error)}'
            ) from error
        if not isinstance(name, str) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{path}: expected text in name, keywords and builtins")
        if name in keywords or name in (ALL, ENGLISH, ENGLISH_ONLY):
            raise InputError(f"{path}: the name {name!r} is taken")
        keywords[name] = words
    return dict(sorted(keywords.items()))


def read_words(path: Path) -> list[str]:
    """The words of a list, one a line."""
    try:
        return [word for line in path.read_text(encoding="utf-8").splitlines() if (word := line.strip())]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--english {path}: expected a text file of one word a line: {first_line(error)}") from error


def find_token_sets(
    tokenizer: Any, keywords: Mapping[str, Sequence[str]], english: Sequence[str] | None, seed: int = 0
) -> TokenSets:
    """The token sets of one tokenizer. A list of which no entry is one token gives no set, and is named in `empty`."""
    special = frozenset(tokenizer.all_special_ids)
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    spelling = tuple(tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in range(vocabulary))
    by_spelling: dict[str, list[int]] = {}
    for token, text in enumerate(spelling):
        if token not in special and text.strip():
            by_spelling.setdefault(text.strip(), []).append(token)
    drawn_from = np.sort(np.concatenate([*by_spelling.values()])).astype(np.int64)

    lists = {name: set(words) for name, words in keywords.items()}
    every = set().union(*lists.values())
    if lists:
        lists[ALL] = every
    if english is not None:
        lists[ENGLISH] = set(english) - _NOT_ENGLISH
        lists[ENGLISH_ONLY] = lists[ENGLISH] - every
    is_single = _single_tokens(tokenizer, sorted(set().union(*lists.values())))
    sets, empty = [], {}
    for name, words in lists.items():
        single = [word for word in sorted(words) if is_single[word] and word in by_spelling]
        ids = np.array(sorted(token for word in single for token in by_spelling[word]), np.int64)
        if len(ids):
            sets.append(TokenSet(name, len(words), len(single), ids, _draw(drawn_from, len(ids), name, seed)))
        else:
            empty[name] = len(words)
    return TokenSets(tuple(sets), empty, spelling)


def _single_tokens(tokenizer: Any, words: Sequence[str]) -> dict[str, bool]:
    """Whether each word is one token, and no number."""
    if not words:
        return {}
    ids = tokenizer(list(words), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return {word: len(tokens) == 1 and not _is_number(word) for word, tokens in zip(words, ids, strict=True)}


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return not word.isalpha()  # "nan" and "inf" are words here


def _draw(drawn_from: np.ndarray, size: int, name: str, seed: int) -> np.ndarray:
    """As many random tokens as a set has; the draw depends on seed and name, not on the other sets."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    drawn: np.ndarray = np.sort(np.random.default_rng((seed, key)).choice(drawn_from, size, replace=False))
    return drawn
