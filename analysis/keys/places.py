"""What stands at the places where neurons are triggered: tokens, their kind, and named patterns in the lines around.

A place is a (document, token position) of one corpus. Many neurons share places, so everything is looked up once a
place and neurons hold indices:

    token, bigram, trigram   the token there, and it with the one or two before
    kind                     what Pygments' lexer of the corpus's language makes of the token's last character that
                             isn't white space: keyword, name, literal, comment, operator, punctuation, directive
    concepts                 named regular expressions, searched for in the lines around
    context                  those lines and where in them the token is: equal for copies of a text

Pygments counts `and` and `in` among the operators of Python, doc strings among literals; `directive` is what it
calls a preprocessor's comment. Regular expressions see "\\n" line breaks, with `^` and `$` at each line (MULTILINE).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import tomllib

from neurotally.profiler.corpus.matches import find_spans
from neurotally.profiler.corpus.texts import TokenText
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import parsed_file

KINDS = ("keyword", "name", "literal", "comment", "operator", "punctuation", "directive", "other")
WINDOW_LINES = 5
"""The papers' unit."""
_OTHER = KINDS.index("other")
_NOT_THERE = -1

Patterns = Mapping[str, re.Pattern[str]]


@dataclass(frozen=True, eq=False)
class Places:
    """What stands at P places of a corpus whose texts were found, in the order of `place_codes`."""

    code_P: np.ndarray
    """uint64, ascending: see `place_codes`."""
    found_P: np.ndarray
    """bool: the token isn't a special one, of which nothing counts."""
    context_P: np.ndarray
    """uint64: equal where lines and the token's place in them are."""
    token_P: np.ndarray
    """int64: the token's id; -1 for special ones."""
    bigram_P: np.ndarray
    """int64: equal where the last two tokens are; -1 where the document has only one."""
    trigram_P: np.ndarray
    kind_P: np.ndarray
    """uint8: index into KINDS."""
    match_PC: np.ndarray
    """bool: concept c is found in the lines around."""
    concepts: tuple[str, ...]
    has_kinds: bool
    """False where no lexer is known for the corpus."""
    missing: Mapping[str, str]
    """Documents without a text, by name, with the reason."""

    def index(self, document: np.ndarray, position: np.ndarray) -> np.ndarray:
        """int64: which place each (document, position) is; -1 where it isn't one of these, or has no text."""
        code = place_codes(document, position)
        at = np.minimum(np.searchsorted(self.code_P, code), len(self.code_P) - 1)
        return np.where((self.code_P[at] == code) & self.found_P[at], at, _NOT_THERE)


def find_line(text: str, start: int, end: int, num_lines: int = WINDOW_LINES, first_line: int = 1) -> dict[str, Any]:
    """Where a token, characters `start` to `end` of a text, stands in the middle of `num_lines` lines.

    Its `line` and `column`, from 1, where it begins; `token`; `text`: the lines around; `text_line`: the number of the
    first of them; `text_start`: where in them it begins, in characters. The text's own first line is `first_line`.
    """
    starts = _line_starts(text)
    line = int(np.searchsorted(starts, start, side="right")) - 1
    first, last = _windows(text, starts, np.array([line]), num_lines)[0].tolist()
    window_line = int(np.searchsorted(starts, first, side="right")) - 1
    return {
        "line": first_line + line, "column": start - int(starts[line]) + 1, "token": text[start:end],
        "text": text[first:last], "text_line": first_line + window_line, "text_start": start - first,
    }  # fmt: skip


def place_codes(document: np.ndarray, position: np.ndarray) -> np.ndarray:
    """uint64: document · 2^32 + position."""
    code: np.ndarray = (document.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)
    return code


def read_concepts(path: Path) -> Patterns:
    """The regular expressions of a TOML file with a table `[concepts]`, by name; InputError naming what is wrong."""
    concepts = parsed_file(path, tomllib.loads, "TOML").get("concepts")
    if not isinstance(concepts, dict) or not concepts:
        raise InputError(f"{path} has no concepts; expected a table [concepts] with lines such as main = 'def main\\('")
    return {name: _compiled(path, name, pattern) for name, pattern in concepts.items()}


def find_lexer(corpus: str, document_names: Sequence[str]) -> Any:
    """Pygments' lexer of a corpus: by its name, else by its documents' most frequent suffix; None for plain text."""
    from pygments.lexers import find_lexer_class_for_filename, get_lexer_by_name
    from pygments.lexers.special import TextLexer
    from pygments.util import ClassNotFound

    lexer: Any = None
    try:
        lexer = get_lexer_by_name(corpus.lower())
    except ClassNotFound:
        suffixes = Counter(Path(name.partition("#")[0]).suffix for name in document_names)
        for suffix, _ in suffixes.most_common(1):
            found = find_lexer_class_for_filename(f"x{suffix}") if suffix else None
            lexer = found and found()
    return None if isinstance(lexer, TextLexer) else lexer


@dataclass
class PlaceReader:
    """Collects what stands at places, a document at a time."""

    lexer: Any
    concepts: Patterns
    window_lines: int = WINDOW_LINES
    inside: bool = False
    """A concept counts only where the token lies in the match, not anywhere in the lines around."""
    missing: dict[str, str] = field(default_factory=dict)
    """Documents without a text, by name, with the reason."""
    _parts: list[tuple[np.ndarray, ...]] = field(default_factory=list)

    def add(
        self, document: TokenText, position_P: np.ndarray, special_ids: Sequence[int],
        file: "LexedFile | None" = None, first_character: int = 0, name: str = "a document",
    ) -> None:  # fmt: skip
        """Look at some tokens of a document; `position_P` ascends.

        `file`: the file of which the document is the part from `first_character` on; None: it is all of it.
        InputError, with its `name`, if an expression takes too long over it.
        """
        text = document.text
        starts = _line_starts(text)
        span_P2 = document.span_T2[position_P]
        line_P = np.searchsorted(starts, span_P2[:, 0], side="right") - 1
        window_P2 = _windows(text, starts, line_P, self.window_lines)
        windows, which_P = np.unique(window_P2, axis=0, return_inverse=True)
        lines = [text[first:last] for first, last in windows.tolist()]
        in_window_P2 = span_P2 - window_P2[:, :1]
        last_P3 = _last_tokens(document.ids_T, special_ids, position_P)
        self._parts.append(
            (
                place_codes(np.full(len(position_P), document.number), position_P),
                last_P3[:, -1] != _NOT_THERE,
                _contexts(lines, which_P.ravel(), in_window_P2),
                last_P3,
                (file or LexedFile(self.lexer, text)).kinds(text, span_P2, first_character),
                self._matches(lines, which_P.ravel(), in_window_P2, name),
            )
        )

    def places(self) -> Places:
        """All that was added: one document or more."""
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        order = np.argsort(columns[0], kind="stable")
        code_P, found_P, context_P, last_P3, kind_P, match_PC = (column[order] for column in columns)
        before_P = _pairs(last_P3[:, 0], last_P3[:, 1])
        _, number_P = np.unique(before_P, return_inverse=True)
        return Places(
            code_P=code_P,
            found_P=found_P,
            context_P=context_P,
            token_P=last_P3[:, 2],
            bigram_P=_pairs(last_P3[:, 1], last_P3[:, 2]),
            trigram_P=_pairs(np.where(before_P < 0, _NOT_THERE, number_P), last_P3[:, 2]),
            kind_P=kind_P,
            match_PC=match_PC,
            concepts=tuple(self.concepts),
            has_kinds=self.lexer is not None,
            missing=self.missing,
        )

    def _matches(self, lines: Sequence[str], which_P: np.ndarray, in_window_P2: np.ndarray, name: str) -> np.ndarray:
        """bool [P, C]: whether each concept is found in the lines, and overlaps the token if it must lie inside."""
        match_PC = np.zeros((len(which_P), len(self.concepts)), bool)
        for column, (concept, pattern) in enumerate(self.concepts.items()):
            spans = find_spans(concept, pattern, lines, name)
            match_PC[:, column] = np.array([len(span_M2) > 0 for span_M2 in spans], bool)[which_P]
            for place in np.flatnonzero(match_PC[:, column]).tolist() if self.inside else ():
                start, end = in_window_P2[place].tolist()
                span_M2 = spans[which_P[place]]
                match_PC[place, column] = bool(((span_M2[:, 0] < end) & (start < span_M2[:, 1])).any())
        return match_PC


def _compiled(path: Path, name: str, pattern: Any) -> re.Pattern[str]:
    if not isinstance(pattern, str):
        raise InputError(f"{path}: concept {name!r} must be a regular expression in quotes, got {pattern!r:.60}")
    try:
        return re.compile(pattern, re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f"{path}: the regular expression of concept {name!r} doesn't compile: {error}") from error


def _line_starts(text: str) -> np.ndarray:
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    starts: np.ndarray = np.r_[0, np.flatnonzero(characters == ord("\n")) + 1]
    return starts


def _windows(text: str, starts: np.ndarray, line_P: np.ndarray, num_lines: int) -> np.ndarray:
    """int64 [P, 2]: first character of the lines around each line, and one past the last; all of so few lines."""
    if len(starts) - text.endswith("\n") <= num_lines:
        return np.tile([[0, len(text)]], (len(line_P), 1))
    ends = np.r_[starts[1:], len(text)]
    first_P = np.maximum(0, line_P - num_lines // 2)
    last_P = np.minimum(len(starts) - 1, line_P + (num_lines - 1) // 2)
    return np.stack([starts[first_P], ends[last_P]], axis=1)


def _contexts(lines: Sequence[str], which_P: np.ndarray, in_window_P2: np.ndarray) -> np.ndarray:
    """uint64 [P]: a hash of the lines and of where the token is in them."""
    hashed = [hashlib.blake2b(window.encode(), digest_size=8).digest() for window in lines]
    window_hash = np.frombuffer(b"".join(hashed), np.uint64)
    offset_P2 = in_window_P2.astype(np.uint64)
    # Odd constants of the golden ratio and of MurmurHash3's finaliser: any two offsets move the hash apart.
    with np.errstate(over="ignore"):
        mixed = offset_P2[:, 0] * np.uint64(0x9E3779B97F4A7C15) + offset_P2[:, 1] * np.uint64(0xFF51AFD7ED558CCD)
        context_P: np.ndarray = window_hash[which_P] + mixed
    return context_P


def _last_tokens(ids_T: np.ndarray, special_ids: Sequence[int], position_P: np.ndarray) -> np.ndarray:
    """int64 [P, 3]: the tokens that end at each position; -1 before the document and for special tokens."""
    padded = np.r_[_NOT_THERE, _NOT_THERE, np.where(np.isin(ids_T, special_ids), _NOT_THERE, ids_T)]
    tokens_P3: np.ndarray = padded[position_P[:, None] + np.arange(3)]
    return tokens_P3


def _pairs(first_P: np.ndarray, second_P: np.ndarray) -> np.ndarray:
    """int64: a number for every two numbers below 2^31; -1 where one is -1."""
    return np.where((first_P < 0) | (second_P < 0), _NOT_THERE, first_P << 32 | second_P)


class LexedFile:
    """What kind of token a file's characters are in: a part of it alone may lie in a comment that began before it."""

    def __init__(self, lexer: Any, text: str):
        lexed = () if lexer is None else lexer.get_tokens_unprocessed(text if text.endswith("\n") else text + "\n")
        # A few lexers yield nested tokens out of order.
        ordered = sorted(((start, _kind(token_type)) for start, token_type, _ in lexed), key=itemgetter(0))
        self._start_X = np.array([start for start, _ in ordered], np.int64)
        self._kind_X = np.array([kind for _, kind in ordered], np.uint8)

    def kinds(self, text: str, span_P2: np.ndarray, first_character: int) -> np.ndarray:
        """uint8 [P]: the kind of each token's last character that isn't white space.

        `text`: the file's, from `first_character` on.
        """
        if not len(self._start_X):
            return np.full(len(span_P2), _OTHER, np.uint8)
        length_P = np.array([len(text[start:end].rstrip()) for start, end in span_P2.tolist()], np.int64)
        last_P = first_character + span_P2[:, 0] + length_P - 1
        at_P = np.maximum(0, np.searchsorted(self._start_X, last_P, side="right") - 1)
        return np.where(length_P > 0, self._kind_X[at_P], np.uint8(_OTHER)).astype(np.uint8)


@cache
def _kind(token_type: Any) -> int:
    from pygments.token import Comment, Keyword, Literal, Name, Operator, Punctuation

    classes = (
        (Comment.Preproc, "directive"), (Comment.PreprocFile, "directive"), (Keyword, "keyword"), (Name, "name"),
        (Literal, "literal"), (Comment, "comment"), (Operator, "operator"), (Punctuation, "punctuation"),
    )  # fmt: skip
    return KINDS.index(next((kind for parent, kind in classes if token_type in parent), "other"))
