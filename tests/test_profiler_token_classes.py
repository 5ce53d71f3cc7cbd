"""Token classes against a character-by-character reading of the definitions."""

import re
from typing import Any

import numpy as np
import pytest

from neurotally.profiler.corpus.token_classes import classify

TEXTS = {
    "plain": "import numpy as np\nx = np.zeros(3)\nprint(x)\n",
    "no final newline": "a\nb np.ones(1)",
    "windows line ends": "x = 1\r\ny = np.zeros(3)\r\n\r\nz\r\n",
    "unicode": "# é数 np.ones\nnp.é()\n数数\n",
    "a match over two lines": "a\nf(np.zeros(\n  3)) + y\nb\n",
    "none": "print()\n",
    "empty": "",
}
CONCEPTS = {
    "numpy": re.compile(r"np\.\w+", re.MULTILINE),
    "call": re.compile(r"zeros\(\s*3", re.MULTILINE),
    "without characters": re.compile(r"q*"),
    "start": re.compile(r"^\s*x = .*$", re.MULTILINE),
}


def expected(text: str, spans: list[tuple[int, int]], pattern: re.Pattern[str]) -> tuple[list[bool], list[bool]]:
    """By token: in a match, on a match's lines; the text with \\n line breaks, spans of it as it is."""
    marked, on_line = [False] * len(text), [False] * len(text)
    plain: str = ""
    where: list[list[int]] = []  # which characters of the text each one of `plain` is
    for at, character in enumerate(text):
        if character == "\n" and text[at - 1 : at] == "\r":
            where[-1].append(at)
            continue
        where.append([at])
        plain += "\n" if character == "\r" else character
    for match in pattern.finditer(plain):
        for place in range(match.start(), match.end()):
            first = plain.rfind("\n", 0, place) + 1
            last = plain.find("\n", place)
            for other in range(first, len(plain) if last < 0 else last + 1):
                for at in where[other]:
                    on_line[at] = True
            for at in where[place]:
                marked[at] = True
    inside = [any(marked[start:end]) for start, end in spans]
    return inside, [any(on_line[s:e]) and not hit for (s, e), hit in zip(spans, inside, strict=True)]


@pytest.mark.parametrize("name", TEXTS)
def test_equals_a_reading_by_characters(name: str, tokenizer: Any) -> None:
    text = TEXTS[name]
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    class_TS2 = classify(text, offsets, CONCEPTS)
    assert class_TS2.shape == (len(offsets), len(CONCEPTS), 2)
    for column, pattern in enumerate(CONCEPTS.values()):
        inside, on_line = expected(text, offsets, pattern)
        assert class_TS2[:, column, 0].tolist() == inside
        assert class_TS2[:, column, 1].tolist() == on_line


def test_a_token_over_the_edge_of_a_match_is_in_it() -> None:
    class_TS2 = classify("abcdef", [(0, 0), (0, 2), (2, 4), (4, 6)], {"cd": re.compile("bcd")})
    assert class_TS2[:, 0, 0].tolist() == [False, True, True, False]
    assert class_TS2[:, 0, 1].tolist() == [False, False, False, True]
    assert np.array_equal(class_TS2.any(axis=2).ravel(), [False, True, True, True])
