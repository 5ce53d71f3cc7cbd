"""How the results of a group's tasks become a group of the store: folded in order into sums, or kept as parts.

    STORE/.run/FAMILY/NAME/plan.json        identity and number of tasks; written when the run starts
    STORE/.run/FAMILY/NAME/documents.json   names and sizes, where the tasks are units of one corpus
    STORE/.run/FAMILY/NAME/finished/        the group, until it is moved to STORE/FAMILY/NAME

`Fold` keeps also, for sums in which the order matters (float64), so that what is in is a number: tasks 0 to N-1,

    .../checkpoint-N/    a Zarr group: the sums of tasks 0 to N-1 and what is noted of them, together
    .../current.json     names the checkpoint that counts; replaced atomically

and `Parts`, where a task's arrays stand for themselves,

    .../HASH.npz         the arrays of one finished task

A run may end anywhere, and the same command goes on to the same bits, with any number of workers: a checkpoint that
counts is never written to and is dropped only when a later one counts or the group is committed; a part is there,
whole, or is made again.
"""

import hashlib
import shutil
import time
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.corpus_sums import CorpusSums
from neurotally.jobs.engines import Outcome, Task
from neurotally.jobs.plan import changed_document
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Manifest
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json, replace_json, sync_tree, whole_file


@dataclass(frozen=True)
class Plan:
    """What will become one group of the store."""

    group: str
    """FAMILY/NAME."""
    tasks: Sequence[Any]
    """Each a Task."""
    identity: Mapping[str, Any]
    """All that decides a bit of the group beside weights and tokenizer; JSON-ready, never a path."""
    reducer: "Callable[[Path, Plan], Reducer]"
    """`Fold` or `Parts` with what they need further."""
    what: str = "unit"
    """What a task is, to people."""
    manifest: Manifest | None = None
    """The documents, where the tasks are units of one corpus."""
    noted: Mapping[str, Any] = field(default_factory=dict)
    """What `status` needs to know further."""
    otherwise: str = "use another --name"
    """What to do where the store holds another group of the name."""


class Reducer(ABC):
    """Takes in the results of a plan's tasks and writes the group."""

    at_once: int | None = None
    """So many of its kind are under way at a time; None: any number."""

    def __init__(self, path: Path, plan: Plan):
        """Go on with what a former run left of the same plan. InputError where it left another's, or it is damaged."""
        self.plan = plan
        self._done: set[str] = set()
        """Keys of the tasks that are in."""
        self._store = path
        self._folder = store.run_folder(path, plan.group)
        with self._begin_again_hint():
            saved = read_json(self._folder / "plan.json", identity=dict)
        if saved is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            if plan.manifest is not None:
                documents = {"names": plan.manifest.names, "sizes": plan.manifest.sizes.tolist()}
                replace_json(self._folder / "documents.json", documents)
        else:
            refuse_other(path, plan, saved["identity"], self._folder)
        replace_json(
            self._folder / "plan.json", {"identity": dict(plan.identity), "tasks": len(plan.tasks), **plan.noted}
        )
        with self._begin_again_hint():
            self._resume()

    @property
    def todo(self) -> list[Task]:
        """The tasks that aren't in yet, in order."""
        return [task for task in self.plan.tasks if task.key not in self._done]

    @property
    def num_done(self) -> int:
        """Tasks that are in."""
        return len(self._done)

    @property
    def is_complete(self) -> bool:
        """Whether every task is in."""
        return self.num_done == len(self.plan.tasks)

    def get_ready(self) -> None:  # noqa: B027
        """What takes long before the first result, while workers compute it; called again and again."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """The group's entry in `neurotally status --json`."""

    def news(self) -> tuple[str, Any] | None:
        """What workers should hear of the results that are in (about what, and what), if that has changed enough."""
        return None

    @abstractmethod
    def take(self, outcome: Outcome) -> None:
        """Take in a result."""

    @abstractmethod
    def save(self) -> None:
        """Put on the disk what is in."""

    def publish(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Commit the complete group, with `facts` among its attributes, and drop the working state; the attributes."""
        assert self.is_complete
        finished = self._folder / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        attributes = self._write(finished, facts)
        store.publish(self._store, self.plan.group, finished)
        shutil.rmtree(self._folder)
        return attributes

    @abstractmethod
    def _resume(self) -> None: ...

    @abstractmethod
    def _write(self, finished: Path, facts: Mapping[str, Any]) -> dict[str, Any]: ...

    @contextmanager
    def _begin_again_hint(self) -> Iterator[None]:
        """Errors of damaged working state say what to do."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{error}; remove {self._folder} to begin it again") from error


def refuse_other(path: Path, plan: Plan, theirs: Mapping[str, Any], unfinished: Path | None = None) -> None:
    """Raise InputError where the group that is committed, or begun in the folder `unfinished`, isn't that of `plan`."""
    difference = first_difference(dict(plan.identity), dict(theirs))
    if difference is None:
        return
    if unfinished is not None and plan.manifest is not None:
        saved = read_json(unfinished / "documents.json", names=list, sizes=list) or {"names": [], "sizes": []}
        difference += f" ({changed_document(plan.manifest, saved['names'], saved['sizes'])})"
    begin_again = f", or remove {unfinished} to begin it again" if unfinished else ""
    raise InputError(f"{plan.group} of {path} is another one: {difference}; {plan.otherwise}{begin_again}")


class Fold(Reducer):
    """Adds results in the order of the tasks, and saves the sums now and then.

    It has sums from the first task on, or the first look at those of a former run, which are checked before.
    """

    at_once = 2
    """Tasks of the next begin while the last ones of this are computed."""

    def __init__(self, path: Path, plan: Plan, make_sums: Callable[[], CorpusSums]):
        self._sums = make_sums()
        self._saved = -1
        self._early: dict[str, Any] = {}
        self._is_whole = True
        """False while a result is being added: an exception there leaves sums that must not be saved."""
        super().__init__(path, plan)

    def progress(self) -> dict[str, Any]:
        return self._sums.noted()

    def get_ready(self) -> None:
        self._sums.get_ready()

    def news(self) -> tuple[str, Any] | None:
        """See `CorpusSums.news`."""
        return self._sums.news()

    def take(self, outcome: Outcome) -> None:
        """Add a result, or hold it until those before it are in."""
        self._early[outcome.key] = outcome.result
        while not self.is_complete and (key := self.plan.tasks[self.num_done].key) in self._early:
            self._is_whole = False
            self._sums.add(self.num_done, self._early.pop(key))
            self._done.add(key)
            self._is_whole = True

    def save(self) -> None:
        """Save sums and notes together in a new folder and make it the one that counts."""
        if self.num_done in (0, self._saved) or not self._is_whole:
            return
        target = self._folder / f"checkpoint-{self.num_done}"
        shutil.rmtree(target, ignore_errors=True)  # of a run that died here
        # A name of its own: where a signal has cut a save short, Zarr's threads may still write into that one's folder.
        fresh = target.with_name(f"{target.name}.{time.time_ns()}.partial")
        store.write_arrays(fresh, self._sums.added(), {"noted": self._sums.noted()})
        sync_tree(fresh)
        fresh.rename(target)
        replace_json(self._folder / "current.json", {"folder": target.name, **self._sums.noted()})
        self._saved = self.num_done
        for other in self._folder.glob("checkpoint-*"):
            if other != target:
                shutil.rmtree(other, ignore_errors=True)

    def _write(self, finished: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
        attributes = {**self.plan.identity, **self._sums.attributes(), **facts}
        store.write_arrays(finished, self._sums.arrays(), attributes)
        self._sums.keep_texts(finished)
        return attributes

    def _resume(self) -> None:
        """Take over the checkpoint that counts, once it is seen to be whole and the one that was noted."""
        file = self._folder / "current.json"
        current = read_json(file, folder=str, units_done=int)
        if current is None:
            return
        done = current["units_done"]
        if not 0 < done <= len(self.plan.tasks) or current["folder"] != f"checkpoint-{done}":
            raise InputError(f"{file} has {done!r} of {len(self.plan.tasks)} units done in {current['folder']!r}")
        checkpoint = self._folder / current.pop("folder")
        noted = store.unlisted_attributes(checkpoint).get("noted", {})
        for key in noted | current:
            if key not in current or key not in noted or current[key] != noted[key]:
                raise InputError(
                    f"{file} doesn't agree with {checkpoint.name}: "
                    f"{key} is {current.get(key)!r}, expected {noted.get(key)!r}"
                )
        expected = self._sums.shapes()
        arrays = store.read_arrays(checkpoint, list(expected))
        for name, shape in expected.items():
            if name not in arrays:
                raise InputError(f"{checkpoint} lacks the array {name}")
            if arrays[name].shape != shape:
                raise InputError(f"{checkpoint / name} has shape {arrays[name].shape}, expected {shape}")
        self._sums.load(arrays, noted, done, checkpoint)
        self._done = {task.key for task in self.plan.tasks[:done]}
        self._saved = done


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


def _is_whole(file: Path) -> bool:
    try:
        with np.load(file, allow_pickle=False) as part:
            return _RESTARTS in dict(part)
    except _UNREADABLE:
        return False
