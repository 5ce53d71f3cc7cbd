"""Results kept as parts, where a task's arrays stand for themselves, and put together at the end.

    STORE/.run/FAMILY/NAME/HASH.npz    the arrays of one finished task, by the hash of its key

A part is there, whole, or is made again.
"""

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.engines.engine import Outcome
from neurotally.jobs.reducers.reducer import Plan, Reducer
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json, whole_file

_RESTARTS = "_restarts"
"""Beside a part's own arrays."""
_UNREADABLE = (
    OSError, ValueError, EOFError, RuntimeError, NotImplementedError, KeyError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises of a damaged part: the checksums of the archive tell."""


@dataclass(frozen=True)
class Part:
    """What one task leaves behind."""

    arrays: dict[str, np.ndarray]
    """Numbers only; the pass decides their names and shapes."""
    tokens: int
    restarts: int = 0


class KeptParts:
    """The parts of all tasks, in order, of which one array of one is in memory at a time."""

    def __init__(self, files: Sequence[Path]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @property
    def names(self) -> list[str]:
        """Of the arrays of a part."""
        with np.load(self._files[0], allow_pickle=False) as part:
            return list(part.files)

    def each(self, name: str) -> Iterator[np.ndarray]:
        """The array of every part."""
        for file in self._files:
            try:
                with np.load(file, allow_pickle=False) as part:
                    yield part[name]
            except _UNREADABLE as error:
                raise InputError(f"{file} is damaged; the same command makes it again") from error

    def joined(self, name: str) -> np.ndarray:
        """One small array of all parts, along its first axis."""
        return np.concatenate(list(self.each(name)))

    def blocks(self, name: str, length: int) -> store.Blocks:
        """A large one, `length` along its first axis, to be written part by part."""
        return store.Blocks((length, *next(self.each(name)).shape[1:]), 0, self.each(name))


Assemble = Callable[[KeptParts], tuple[dict[str, np.ndarray | store.Blocks], dict[str, Any]]]
"""From the parts to the group's arrays and attributes."""


class Parts(Reducer):
    """Keeps every task's arrays in a file of its own until all are there."""

    def __init__(self, path: Path, plan: Plan, assemble: Assemble, schema: Mapping[str, store.ArraySpec]):
        self._assemble = assemble
        self._schema = schema
        self._tokens, self._model_s = 0, 0.0
        super().__init__(path, plan)

    def progress(self) -> dict[str, Any]:
        return {"done": False, "tasks": len(self.plan.tasks), "tasks_done": self.num_done}

    def take(self, outcome: Outcome) -> None:
        """Write a part."""
        result: Part = outcome.result
        with whole_file(self._file(outcome.key)) as partial:
            np.savez(partial, allow_pickle=False, **{_RESTARTS: np.array(result.restarts)}, **result.arrays)
        self._done.add(outcome.key)
        self._tokens += result.tokens
        self._model_s += outcome.model_s

    def save(self) -> None:
        """Every part is on the disk already."""

    def _resume(self) -> None:
        self._done = {task.key for task in self.plan.tasks if _is_whole(self._file(task.key))}

    def _file(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    def _write(self, finished: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        keys = [task.key for task in self.plan.tasks]
        parts = KeptParts([self._file(key) for key in keys])
        restarted = [key for key, restarts in zip(keys, parts.each(_RESTARTS), strict=True) if restarts]
        arrays, described = self._assemble(parts)
        # Of the run that finished; parts of earlier runs aside.
        of_this_run = {"tokens_run": self._tokens, "model_seconds": self._model_s}
        attributes = {
            **described, "identity": dict(self.plan.identity), **facts, "restarted": restarted, **of_this_run,
        }  # fmt: skip
        store.write_arrays(finished, arrays, attributes, self._schema)
        return attributes


def kept_so_far(folder: Path) -> dict[str, Any]:
    """`Parts.progress` from its working state, while no run goes on."""
    plan = read_json(folder / "plan.json", tasks=int) or {"tasks": 0}
    return {"done": False, "tasks": plan["tasks"], "tasks_done": len(list(folder.glob("[!.]*.npz")))}


def _is_whole(file: Path) -> bool:
    try:
        with np.load(file, allow_pickle=False) as part:
            return _RESTARTS in dict(part)
    except _UNREADABLE:
        return False
