"""Which languages the demo knows, and in which a file is: by its name, and where that leaves it open by its text."""

import os
import re
from collections.abc import Mapping

_SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "c": (".c", ".h"),
    "c++": (".cc", ".cpp", ".cxx", ".h", ".hh", ".hpp", ".hxx"),
    "cuda": (".cu", ".cuh"),
    "cython": (".pxd", ".pxi", ".pyx"),
    "english": (".md", ".rst", ".txt"),
    "fortran": (".f", ".f90", ".f95", ".for"),
    "python": (".py",),
    "python-stubs": (".pyi",),
}
LANGUAGES = tuple(_SUFFIXES)
"""In name order."""
_LICENCE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)([-_.]|$)", re.IGNORECASE)
_CPLUSPLUS_BLOCK = re.compile(
    r"^[ \t]*#[ \t]*if(def|[ \t]+defined)[ (]*__cplusplus\b.*?^[ \t]*#[ \t]*endif", re.M | re.S
)
_C_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"", re.S)
_CPP = re.compile(
    r"\b(namespace|template|typename|constexpr|nullptr|noexcept|decltype)\b|::|\bclass\s+\w"
    r"|\b(public|private|protected)\s*:|#\s*include\s*<([a-z_]+|(ATen|c10|torch|pybind11)/.*)>"
)
_WORD = re.compile(r"[A-Za-z]+")
_SMALL_WORDS = frozenset([
    "a", "an", "and", "are", "as", "at", "be", "by", "for", "from", "if", "in", "is", "it", "not", "of", "on", "or",
    "that", "the", "this", "to", "with", "you",
])  # fmt: skip
_PROSE_LETTERS = 0.77
_PROSE_SMALL_WORDS = 0.15


def languages_of(name: str) -> list[str]:
    """The languages that a file may be in, by its name."""
    base = name.rpartition("/")[2]
    suffix = os.path.splitext(base)[1].lower()
    languages = [language for language, suffixes in _SUFFIXES.items() if suffix in suffixes]
    if not languages and (base == "METADATA" or _LICENCE.match(base)):
        return ["english"]
    return languages


def is_of(language: str, text: str) -> bool:
    """Whether a text is in a language that its file's name allows."""
    if language == "english":
        return _is_prose(text)
    if language in ("c", "c++"):
        is_cpp = _CPP.search(_C_COMMENT.sub("", _CPLUSPLUS_BLOCK.sub("", text))) is not None
        return is_cpp == (language == "c++")
    return True


def _is_prose(text: str) -> bool:
    """Whether a text is mostly letters and has the small words of English where prose has them."""
    words = _WORD.findall(text)
    letters = sum(map(len, words)) + text.count(" ")
    small = sum(word.lower() in _SMALL_WORDS for word in words)
    return letters >= _PROSE_LETTERS * len(text) and small >= _PROSE_SMALL_WORDS * len(words) > 0
