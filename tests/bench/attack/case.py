"""A bad input: what lies where, the command line, and how it may end."""

import json
import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from bench.attack.launch import Launch, Outcome
from bench.attack.material import Material

from neurotally.profiler import store

CANARY = "CANARY_9d41_nobody_named_me"
"""Text of a file that lies outside of all that commands are given."""
REFUSED = frozenset({2})
DONE = frozenset({0})
EITHER = DONE | REFUSED


@dataclass(frozen=True)
class Place:
    """Where a case lays out its files: an empty folder, and things to copy."""

    folder: Path
    material: Material
    finished: Path
    """A finished store, not to be written."""

    @property
    def outside(self) -> Path:
        """A folder that no case names; `secret.py` and `folder/` in it."""
        return self.folder / "outside"

    @property
    def secret(self) -> Path:
        """The file with CANARY."""
        return self.outside / "secret.py"

    @property
    def new(self) -> Path:
        """A store that isn't there yet."""
        return self.folder / "new.store"

    @property
    def marker(self) -> Path:
        """What code that must not run would make."""
        return self.folder / "code-ran"

    def put(self, name: str | bytes, content: str | bytes = "x = 1\n") -> Path:
        """A file below the folder."""
        path = self.folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def corpora(self, name: str = "python") -> Path:
        """A folder of corpora with one corpus of three good documents; the corpus's folder."""
        for number in range(3):
            self.put(f"corpora/{name}/{number}.py", f"def f{number}(x):\n    return x + {number}\n")
        return self.folder / "corpora" / name

    def profile(self, *options: object) -> list[object]:
        """`profile` of a new store, with the folder's corpora where there are no options."""
        return ["profile", self.material.model, self.new, *(options or ("--corpora", self.folder / "corpora"))]

    def store(self) -> Path:
        """A copy of the finished store."""
        return Path(shutil.copytree(self.finished, self.folder / "old.store"))

    def model(self) -> Path:
        """A copy of the model."""
        return Path(shutil.copytree(self.material.model, self.folder / "model"))


@dataclass(frozen=True)
class Case:
    """`arguments` lays it out and gives the command line."""

    name: str
    arguments: Callable[[Place], list[object]]
    allowed: Collection[int] = REFUSED
    says: str = ""
    """What must be in stdout or stderr."""
    check: Callable[[Place, Outcome], str | None] = lambda place, outcome: None
    """What is wrong afterwards, if anything."""
    during: Callable[[Place, Launch], None] | None = None
    """What happens while it runs."""
    limit_s: float = 300.0
    may_open_outside: bool = False
    """The store says that its corpus lies there; what it has must still not be shown, nor whether it is there."""
    is_costly: bool = False
    """Needs much memory, or time where it is not refused."""


def edited(path: Path, **changes: object) -> Path:
    """Change keys of a JSON file; None removes one."""
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    return path


def rewritten(path: Path, group: str, **arrays: Callable[..., object]) -> Path:
    """Change arrays of a committed group, in its files and in the root's metadata; the store."""
    attributes, found = store.group_attributes(path, group), store.read_group(path, group)
    for name, change in arrays.items():
        found[name] = change(found[name])  # type: ignore[assignment]
    shutil.rmtree(path / group)
    store.write_arrays(path / group, found, attributes)
    root = json.loads((path / "zarr.json").read_text())
    for node in [path / group, *(child for child in (path / group).iterdir() if child.is_dir())]:
        name = node.relative_to(path).as_posix()
        root["consolidated_metadata"]["metadata"][name] = json.loads((node / "zarr.json").read_text())
    (path / "zarr.json").write_text(json.dumps(root))
    return path


def deep(levels: int = 200_000) -> str:
    """JSON of many nested lists."""
    return "[" * levels + "]" * levels


def skips(number: int, corpus: str = "python") -> Callable[[Place, Outcome], str | None]:
    """So many documents of a new store's corpus are skipped and counted."""

    def check(place: Place, _outcome: Outcome) -> str | None:
        found = sum(store.corpus_attributes(place.new, corpus)["skipped"].values())
        return None if found == number else f"{found} documents skipped, expected {number}"

    return check


def documents(number: int, corpus: str = "python") -> Callable[[Place, Outcome], str | None]:
    """So many documents are in a new store's corpus."""

    def check(place: Place, _outcome: Outcome) -> str | None:
        found = store.corpus_attributes(place.new, corpus)["documents"]
        return None if found == number else f"{found} documents, expected {number}"

    return check
