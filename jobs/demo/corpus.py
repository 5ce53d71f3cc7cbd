"""Real source for the demo, from what any machine with neurotally installed holds.

Python's standard library and headers and the installed packages give Python, its stubs, C++, and, where there
is enough of it, C, CUDA, Cython and Fortran; documentation, package descriptions and licences give English.

    TARGET/{train,heldout,evaluation}/LANGUAGE/{stdlib,site-packages,...}/...

The model is trained on the first, its neurons are chosen on the second, and judged on the third.

Which files, and on which side of the split, is decided by the hash of a file's path below its root (its time,
the folder's order and where Python is installed don't matter): the same packages give the same corpus. The
first kilobytes of a file are copied, up to the end of a line. Left out are files that call themselves
generated, aren't text, or say little new: at least half of a training file stands in lines that no training
file before it has, and of a held-out file in lines that no file before it has, training files first.
"""

import ast
import hashlib
import os
import re
import shutil
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from neurotally.jobs.demo.languages import LANGUAGES, is_of, languages_of
from neurotally.profiler.errors import InputError

TRAIN_BYTES = 1_200_000
HELDOUT_BYTES = 300_000
EVALUATION_BYTES = 100_000
"""What is copied of a language at most."""
MIN_TRAIN_BYTES, MIN_HELDOUT_BYTES, MIN_HELDOUT_FILES, MIN_EVALUATION_BYTES = 300_000, 60_000, 10, 10_000
"""A language with less is left out."""
MIN_LANGUAGES = 4
MIN_FILE_BYTES = 400
MAX_TRAIN_FILE_BYTES, MAX_HELDOUT_FILE_BYTES = 48_000, 16_000
"""What is copied of a file at most: held-out documents are to be many."""
MAX_FILES_PER_FOLDER = 64
"""Of one folder, in hash order: torch/include/ATen/ops alone holds thousands of headers."""
HELDOUT_SHARE = 4
"""One file in so many isn't trained on,"""
EVALUATION_SHARE = 4
"""and one in so many of these is kept for evaluation."""


@dataclass(frozen=True)
class Root:
    """A folder that source is taken from."""

    name: str
    """The first folder of the names of its files in the corpus."""
    path: Path


FileSizes = Mapping[str, Sequence[int]]
"""The bytes of each file of a language, by side of the split."""


def gather(target: Path, roots: Sequence[Root] | None = None, progress: bool = True) -> dict[str, FileSizes]:
    """Lay out a corpus at `target`, which must not exist: it appears whole, or not at all; its languages by name.

    Takes from `roots`, else from this interpreter's own folders. Raises InputError where there is text enough
    for fewer than four languages.
    """
    if target.exists():
        raise InputError(f"{target} exists already; name a new folder, or remove it")
    unfinished = target.with_name(f".{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    candidates = _list_candidates(installed_roots() if roots is None else roots)
    gathered = {}
    for language in tqdm(LANGUAGES, desc="gathering source", unit="language", disable=not progress):
        sizes = _lay_out(unfinished, language, candidates[language])
        if _is_enough(sizes):
            gathered[language] = sizes
        else:
            for side in sizes:
                shutil.rmtree(unfinished / side / language, ignore_errors=True)
    if len(gathered) < MIN_LANGUAGES:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InputError(
            f"expected source in {MIN_LANGUAGES} languages among the installed packages, found enough of "
            f"{', '.join(gathered) or 'none'}; run the demo in the environment neurotally is installed in"
        )
    unfinished.rename(target)
    return gathered


def installed_roots() -> list[Root]:
    """The folders of the running Python: standard library, C headers, installed packages."""
    paths = sysconfig.get_paths()
    roots = [Root("stdlib", Path(paths["stdlib"])), Root("include", Path(paths["include"]))]
    packages = map(Path, (paths["purelib"], paths["platlib"], *sys.path))
    roots += [Root("site-packages", path) for path in packages if path.name in _PACKAGE_FOLDERS]
    unique = {root.path.resolve(): root for root in reversed(roots) if root.path.is_dir()}
    return list(reversed(unique.values()))


@dataclass(frozen=True)
class _Candidate:
    name: str
    """Relative POSIX path in the corpus."""
    read: Callable[[], bytes]

    @cached_property
    def rank(self) -> int:
        """Hash of the name: the order in which files are taken."""
        digest = hashlib.sha256(self.name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big")


class _Side(NamedTuple):
    """One side of the split."""

    name: str
    max_bytes: int
    max_file_bytes: int


_TRAIN = _Side("train", TRAIN_BYTES, MAX_TRAIN_FILE_BYTES)
_HELDOUT = _Side("heldout", HELDOUT_BYTES, MAX_HELDOUT_FILE_BYTES)
_EVALUATION = _Side("evaluation", EVALUATION_BYTES, MAX_HELDOUT_FILE_BYTES)
_TOPICS = "stdlib/pydoc_data/topics.py"
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")
_OWN_FILES = re.compile(r"neurotally([-.]|$)")
_GENERATED = re.compile(r"\bgenerated\b.{0,60}\b(by|from)\b|\bdo not edit\b", re.IGNORECASE)
_HEAD = 1500
"""Characters in which a file would say that it is generated."""
_MAX_LINE = 1000
_MIN_LINE = 12
"""Shorter lines, such as `return None`, are never news."""


def _is_enough(sizes: FileSizes) -> bool:
    """Whether the language can be trained on and measured."""
    return (
        sum(sizes["train"]) >= MIN_TRAIN_BYTES
        and sum(sizes["heldout"]) >= MIN_HELDOUT_BYTES
        and len(sizes["heldout"]) >= MIN_HELDOUT_FILES
        and sum(sizes["evaluation"]) >= MIN_EVALUATION_BYTES
    )


def _lay_out(folder: Path, language: str, candidates: Sequence[_Candidate]) -> FileSizes:
    """Copy training, held-out and evaluation files, each up to its budget."""
    seen: set[bytes] = set()
    sizes = {}
    for side in (_TRAIN, _HELDOUT, _EVALUATION):
        of_side = [candidate for candidate in candidates if _side_of(candidate) is side]
        sizes[side.name] = _copy(of_side, folder, language, side, seen)
    return sizes


def _side_of(candidate: _Candidate) -> _Side:
    number, remainder = divmod(candidate.rank, HELDOUT_SHARE)
    if remainder:
        return _TRAIN
    return _HELDOUT if number % EVALUATION_SHARE else _EVALUATION


def _copy(candidates: Sequence[_Candidate], folder: Path, language: str, side: _Side, seen: set[bytes]) -> list[int]:
    """Copy acceptable candidates until the side is full; returns their sizes. Adds their lines to `seen`."""
    sizes: list[int] = []
    for candidate in candidates:
        if sum(sizes) >= side.max_bytes:
            break
        content = _beginning(candidate.read(), side.max_file_bytes)
        if content is None or not is_of(language, content.decode()) or not _says_news(content, seen):
            continue
        path = folder / side.name / language / candidate.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        sizes.append(len(content))
    return sizes


def _beginning(content: bytes, max_bytes: int) -> bytes | None:
    """The first whole lines of a text; None where it isn't one that somebody wrote."""
    if len(content) > max_bytes:
        content = content[: content.rfind(b"\n", 0, max_bytes) + 1]
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None
    if len(content) < MIN_FILE_BYTES or "\0" in text or _GENERATED.search(text[:_HEAD]):
        return None
    return None if max(map(len, text.splitlines())) > _MAX_LINE else content


def _says_news(content: bytes, seen: set[bytes]) -> bool:
    """Whether at least half of the text stands in lines not `seen` before; then they are."""
    lines = [line for line in map(bytes.strip, content.splitlines()) if len(line) >= _MIN_LINE]
    new = {line for line in lines if line not in seen}
    if 2 * sum(map(len, new)) < sum(map(len, lines)) or not new:
        return False
    seen |= new
    return True


def _list_candidates(roots: Sequence[Root]) -> dict[str, list[_Candidate]]:
    """By language, in hash order, with a bounded number of files from any one folder."""
    files = [file for root in roots for file in _walk(root)]
    everything = {candidate.name: candidate for candidate in reversed(files)}
    ranked = sorted(everything.values(), key=lambda candidate: (candidate.rank, candidate.name))
    listed: dict[str, list[_Candidate]] = {language: [] for language in LANGUAGES}
    taken: Counter[tuple[str, str]] = Counter()
    for candidate in ranked:
        folder = candidate.name.rpartition("/")[0]
        for language in languages_of(candidate.name):
            taken[language, folder] += 1
            if taken[language, folder] <= MAX_FILES_PER_FOLDER:
                listed[language].append(candidate)
    return listed


def _walk(root: Root) -> Iterator[_Candidate]:
    """Every file below a root that may be of use, in any order; dot names and this package are left out."""
    for folder, subfolders, files in os.walk(root.path):
        subfolders[:] = [name for name in subfolders if _is_of_interest(name)]
        for file in files:
            path = Path(folder, file)
            name = f"{root.name}/{path.relative_to(root.path).as_posix()}"
            if name == _TOPICS:
                yield from _topics(path)
            elif _is_of_interest(file) and languages_of(name) and _is_readable(path):
                yield _Candidate(name, partial(_read, path))


def _is_of_interest(name: str) -> bool:
    return not (name.startswith(".") or name in (*_PACKAGE_FOLDERS, "__pycache__") or _OWN_FILES.match(name))


def _is_readable(path: Path) -> bool:
    try:
        return path.stat().st_size >= MIN_FILE_BYTES and os.access(path, os.R_OK)
    except OSError:
        return False


def _read(path: Path) -> bytes:
    """A file's content; of package metadata the description alone, which is a README."""
    with path.open("rb") as file:
        content = file.read(4 * MAX_TRAIN_FILE_BYTES)
    return content.partition(b"\n\n")[2] if path.name == "METADATA" else content


def _topics(path: Path) -> Iterator[_Candidate]:
    """The chapters of Python's language reference that `help()` shows."""
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign):
            for topic, text in ast.literal_eval(node.value).items():
                name = f"{_TOPICS.removesuffix('.py')}/{topic}.txt"
                yield _Candidate(name, partial(str.encode, text))
