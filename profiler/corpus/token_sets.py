"""Sets of tokens by what they spell: the keywords of languages, English words, and random sets like them.

    KEYWORDS/NAME.json    {"name": str, "keywords": [str], "builtins": [str]}   (builtins may be absent)
    ENGLISH.txt           a word a line

The single-token rule (arXiv 2506.01074): an entry counts if the tokenizer makes one token of it as it stands, no
space before it, and if it is no number. A set's tokens are all that spell one of its entries once white space around
them is stripped, case as it is: `for` and ` for` are both in it. Special tokens are in no set.

Beside each language: `all`, the union of the languages; from a list of English words, `English` (less the numbers 0
to 100 and the paper's punctuation; of single letters, which the paper's list holds, only `a` and `I` are words) and
`English without keywords`.

Each set has D random sets to compare with. The tokens that spell something are ordered by how often they are in a text
(ties: by id, which in BPE is the order of merging). A draw takes as many tokens as the set has, without replacement,
from those that are no keyword of any language (nor an English word, for the English sets): as many as the set has among
the 64 most frequent of these, the next 64, the next 128, 256, and so on. A stratum joins the next one where it has
less than twice as many tokens as are drawn from it. Draws are independent; a draw has its set's numbers by stratum, so
one drawn for a draw is drawn by the same rule. A set too large for this (more than half of what is left) has none.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler.errors import InputError, first_line

ALL, ENGLISH, ENGLISH_ONLY = "all", "English", "English without keywords"
DRAWS = 20
_NOT_ENGLISH = frozenset(map(str, range(101))) | frozenset('{}()[]-+.,;"')
"""The paper's."""
_LETTERS_THAT_ARE_WORDS = frozenset("aI")
_FIRST_STRATUM = 64
_FEWEST_TO_ONE_DRAWN = 2


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
    draws_Dm: np.ndarray
    """int64, each row ascending: D random sets of as many tokens; no rows if too few tokens are left to draw from."""
    share: float
    """Of the text's tokens: how many are in the set. NaN without a text."""
    drawn_share: float
    """The same of the random sets, mean over draws."""


@dataclass(frozen=True)
class TokenSets:
    """The sets that have tokens, and those that have none."""

    sets: tuple[TokenSet, ...]
    empty: Mapping[str, int]
    """Name and distinct entries of the lists of which no entry is one token."""
    spelling: tuple[str, ...]
    """What each token of the tokenizer's vocabulary spells."""
    draws: int
    """Random sets to each set that has any."""

    @property
    def names(self) -> list[str]:
        """The sets' names, in order."""
        return [one.name for one in self.sets]

    @property
    def sha256(self) -> str:
        """Over names and tokens."""
        digest = hashlib.sha256()
        for one in self.sets:
            digest.update(json.dumps([one.name, one.ids.tolist(), one.draws_Dm.tolist()]).encode())
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
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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


def count_tokens(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """int64 [V]: how often each token is in the texts, each text on its own."""
    vocabulary = max(tokenizer.get_vocab().values()) + 1
    if not texts:
        return np.zeros(vocabulary, np.int64)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    return np.bincount(np.concatenate([np.array(ids, np.int64) for ids in encoded]), minlength=vocabulary)


def find_token_sets(
    tokenizer: Any, keywords: Mapping[str, Sequence[str]], english: Sequence[str] | None, texts: Sequence[str] = (),
    draws: int = DRAWS, seed: int = 0,
) -> TokenSets:  # fmt: skip
    """The token sets of one tokenizer. A list of which no entry is one token gives no set, and is named in `empty`.

    `texts`: those that tell how frequent a token is.
    """
    special = frozenset(tokenizer.all_special_ids)
    count_V = count_tokens(tokenizer, texts)
    spelling = tuple(tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in range(len(count_V)))
    by_spelling: dict[str, list[int]] = {}
    for token, text in enumerate(spelling):
        if token not in special and text.strip():
            by_spelling.setdefault(text.strip(), []).append(token)

    lists = {name: set(words) for name, words in keywords.items()}
    every = set().union(*lists.values())
    if lists:
        lists[ALL] = every
    if english is not None:
        lists[ENGLISH] = {word for word in english if not _is_mere_letter(word)} - _NOT_ENGLISH
        lists[ENGLISH_ONLY] = lists[ENGLISH] - every
    is_single = _single_tokens(tokenizer, sorted(set().union(*lists.values())))
    ids_of, num_single = {}, {}
    for name, words in lists.items():
        single = [word for word in sorted(words) if is_single[word] and word in by_spelling]
        num_single[name] = len(single)
        ids_of[name] = np.array(sorted(token for word in single for token in by_spelling[word]), np.int64)

    spelled = np.array(sorted(token for tokens in by_spelling.values() for token in tokens), np.int64)
    frequent_first = spelled[np.lexsort((spelled, -count_V[spelled]))]
    keywords_n = ids_of.get(ALL, np.empty(0, np.int64))
    sets = []
    for name, ids in ids_of.items():
        if len(ids):
            excluded_n = np.r_[keywords_n, ids_of[ENGLISH]] if name in (ENGLISH, ENGLISH_ONLY) else keywords_n
            drawn_Dm = _draw(frequent_first, excluded_n, ids, draws, name, seed)
            share, drawn_share = (_share(count_V, of) for of in (ids[None], drawn_Dm))
            sets.append(TokenSet(name, len(lists[name]), num_single[name], ids, drawn_Dm, share, drawn_share))
    empty = {name: len(lists[name]) for name, ids in ids_of.items() if not len(ids)}
    return TokenSets(tuple(sets), empty, spelling, draws)


def _is_mere_letter(word: str) -> bool:
    return len(word) == 1 and word.isalpha() and word not in _LETTERS_THAT_ARE_WORDS


def _share(count_V: np.ndarray, ids_Dm: np.ndarray) -> float:
    """The share of a text's tokens that are in a set, mean over sets; NaN without text or sets."""
    total = int(count_V.sum())
    return float(count_V[ids_Dm].sum(axis=1).mean() / total) if total and len(ids_Dm) else math.nan


def _draw(
    frequent_first: np.ndarray, excluded_n: np.ndarray, ids: np.ndarray, draws: int, name: str, seed: int
) -> np.ndarray:
    """int64 [D, m], rows ascending: sets like `ids`; [0, m] where too few tokens are left. Depends on seed and name."""
    is_left = ~np.isin(frequent_first, excluded_n)
    left = frequent_first[is_left]
    before: np.ndarray = np.cumsum(is_left) - is_left  # of each token: how many that are left come before it
    edges = [_FIRST_STRATUM]
    while edges[-1] < len(left):
        edges.append(2 * edges[-1])
    stratum = np.minimum(np.searchsorted(edges, before, side="right"), len(edges) - 1)
    wanted_B = np.bincount(stratum[np.isin(frequent_first, ids)], minlength=len(edges))
    joined = _join(wanted_B, np.diff(np.minimum(edges, len(left)), prepend=0))
    if joined is None:
        return np.empty((0, len(ids)), np.int64)
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    rng = np.random.default_rng((seed, key))
    drawn_Dm = np.empty((draws, len(ids)), np.int64)
    for drawn_m in drawn_Dm:
        parts, first = [], 0
        for wanted, size in joined:
            parts.append(rng.choice(left[first : first + size], wanted, replace=False))
            first += size
        drawn_m[:] = np.sort(np.concatenate(parts))
    return drawn_Dm


def _join(wanted_B: np.ndarray, size_B: np.ndarray) -> list[tuple[int, int]] | None:
    """(drawn, of how many) of neighbouring strata joined until each has enough; None if all together haven't."""
    joined: list[np.ndarray] = []
    for stratum in np.stack([wanted_B, size_B], axis=1):
        joined.append(stratum)
        if len(joined) > 1 and _has_too_few(joined[-2]):
            joined[-2:] = [joined[-2] + joined[-1]]
    while len(joined) > 1 and _has_too_few(joined[-1]):
        joined[-2:] = [joined[-2] + joined[-1]]
    return None if _has_too_few(joined[-1]) else [(int(wanted), int(size)) for wanted, size in joined]


def _has_too_few(stratum: np.ndarray) -> bool:
    wanted, size = stratum.tolist()
    return bool(size < _FEWEST_TO_ONE_DRAWN * wanted)


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
