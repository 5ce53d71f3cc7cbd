"""Results folded into sums, in the order of the tasks, which matters to float64: so what is in is a number.

    STORE/.run/FAMILY/NAME/checkpoint-N/    a Zarr group: the sums of tasks 0 to N-1 and what is noted of them, together
    STORE/.run/FAMILY/NAME/current.json     names the checkpoint that counts; replaced atomically

A checkpoint that counts is never written to and is dropped only when a later one counts or the group is committed.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotally.jobs.engines.engine import GROUPS_AT_ONCE, Outcome
from neurotally.jobs.reducers.reducer import Plan, Reducer
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json, replace_json, sync_tree

if TYPE_CHECKING:
    from neurotally.jobs.reducers.corpus_sums import CorpusSums

PROGRESS_KEYS = ("units", "units_done", "documents", "documents_done", "skipped", "tokens")
"""What `neurotally status` says of a corpus, of what is noted of its sums."""


class Fold(Reducer):
    """Adds results in the order of the tasks, and saves the sums now and then.

    It has sums from the first task on, or the first look at those of a former run, which are checked before.
    """

    at_once = GROUPS_AT_ONCE

    def __init__(self, path: Path, plan: Plan, make_sums: "Callable[[], CorpusSums]"):
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


def folded_so_far(folder: Path) -> dict[str, Any]:
    """`Fold.progress` from its working state, while no run goes on."""
    plan = read_json(folder / "plan.json", tasks=int, documents=int) or {"tasks": 0, "documents": 0}
    nothing_done = {**dict.fromkeys(PROGRESS_KEYS, 0), "units": plan["tasks"], "documents": plan["documents"]}
    current: dict[str, Any] = read_json(folder / "current.json", **dict.fromkeys(PROGRESS_KEYS, int)) or nothing_done
    return current
