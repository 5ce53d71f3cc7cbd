"""How the results of a group's tasks become a group of the store: what `Fold` and `Parts` have in common.

    STORE/.run/FAMILY/NAME/plan.json        identity and number of tasks; written when the run starts
    STORE/.run/FAMILY/NAME/documents.json   names and sizes, where the tasks are units of one corpus
    STORE/.run/FAMILY/NAME/finished/        the group, until it is moved to STORE/FAMILY/NAME

A run may end anywhere, and the same command goes on to the same bits, with any number of workers.
"""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neurotally.jobs.engines.engine import Outcome, Task
from neurotally.profiler import store
from neurotally.profiler.corpus.documents import Manifest
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json, replace_json


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
        difference += f" ({_changed_document(plan.manifest, saved['names'], saved['sizes'])})"
    begin_again = f", or remove {unfinished} to begin it again" if unfinished else ""
    raise InputError(f"{plan.group} of {path} is another one: {difference}; {plan.otherwise}{begin_again}")


def _changed_document(manifest: Manifest, names: list[str], sizes: list[int]) -> str:
    """Name the first document that differs from a saved manifest."""
    ours = dict(zip(manifest.names, manifest.sizes.tolist(), strict=True))
    theirs = dict(zip(names, sizes, strict=True))
    for name in sorted(ours.keys() | theirs.keys()):
        if name not in theirs:
            return f"{name!r} is new"
        if name not in ours:
            return f"{name!r} is gone"
        if ours[name] != theirs[name]:
            return f"{name!r} has {ours[name]} bytes, it had {theirs[name]}"
    return "the order of the documents"
