"""Which tokens of a text a named regular expression is about.

    match       tokens inside a match: their characters overlap it
    line        the other tokens of the lines that a match is on
    file        all other tokens of a document with a match
    elsewhere   tokens of documents without one

Expressions see the whole text with "\\n" line breaks; a match may span lines, and one without characters is none.
A document has a match if a token of it does: what was cut off by a limit on tokens doesn't count.
"""

from collections.abc import Mapping, Sequence
from re import Pattern

import numpy as np

from neurotally.profiler.corpus.matches import find_spans
from neurotally.profiler.corpus.texts import closed_gaps, universal_newlines


def classify(
    text: str,
    offsets: Sequence[tuple[int, int]] | np.ndarray,
    concepts: Mapping[str, Pattern[str]],
    name: str = "a document",
) -> np.ndarray:
    """bool [T, S, 2]: which of a text's T tokens are in a match of each of S concepts, and which on its lines.

    `offsets`: first character of each token and one past its last, as a fast tokenizer gives them. A token in a match
    isn't also on its lines. InputError, with the document's `name`, if an expression takes too long over it.
    """
    text, span_T2 = universal_newlines(text, closed_gaps(np.array(offsets, np.int64).reshape(-1, 2)))
    class_TS2 = np.zeros((len(span_T2), len(concepts), 2), bool)
    for column, (concept, pattern) in enumerate(concepts.items()):
        matches = find_spans(concept, pattern, [text], name)[0].tolist()
        lines = [(text.rfind("\n", 0, start) + 1, _line_end(text, end)) for start, end in matches]
        in_match_T = _overlap(len(text), matches, span_T2)
        class_TS2[:, column, 0] = in_match_T
        class_TS2[:, column, 1] = _overlap(len(text), lines, span_T2) & ~in_match_T
    return class_TS2


def _line_end(text: str, end: int) -> int:
    """One past the line break that ends the line of the character before `end`."""
    at = text.find("\n", end - 1)
    return len(text) if at < 0 else at + 1


def _overlap(num_characters: int, marks: Sequence[tuple[int, int]], span_T2: np.ndarray) -> np.ndarray:
    """bool [T]: whether a token has a character that lies in one of the marked stretches."""
    step = np.zeros(num_characters + 1, np.int64)
    for start, end in marks:
        step[start] += 1
        step[end] -= 1
    marked_before = np.r_[0, np.cumsum(np.cumsum(step)[:-1] > 0)]
    overlap_T: np.ndarray = marked_before[span_T2[:, 1]] > marked_before[span_T2[:, 0]]
    return overlap_T
