"""Passes beside the neuron pass: each task leaves arrays, and those of all tasks become one group of the store.

    STORE/.run/passes/GROUP/plan.json   the pass's identity and its number of tasks
    STORE/.run/passes/GROUP/HASH.npz    the arrays of one finished task
    STORE/GROUP/                        the group, written once, when all tasks are done (GROUP: FAMILY/NAME)

The order in which tasks end doesn't matter: a part is there or not, and parts are put together in the order of
the tasks. So the same command goes on after any end of the process, with any number of workers, to the same bits.
"""

import hashlib
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.engines import Engine, Job, Task, make_engine
from neurotally.jobs.interrupts import StopRequest
from neurotally.jobs.progress import Progress
from neurotally.jobs.store_writer import open_store, versions, writer_lock
from neurotally.jobs.worker import ModelConfig
from neurotally.profiler import store
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts
from neurotally.profiler.whole_files import read_json, replace_json, whole_file

_RESTARTS = "_restarts"
"""Beside a part's own arrays."""


@dataclass(frozen=True)
class PassResult:
    """What one task leaves behind."""

    key: str
    arrays: dict[str, np.ndarray]
    """Numbers only; the pass decides their names and shapes."""
    tokens: int
    """Tokens that the model read."""
    model_s: float
    """Seconds in which the model ran."""
    restarts: int = 0
    """How often the device ran out of memory and the task began again with half the token budget."""


@dataclass(frozen=True)
class Plan:
    """What a pass will do, known when the model is: see `run_pass`."""

    job: Job
    """Its runner's `compute` gives a PassResult."""
    tasks: Sequence[Task]
    identity: Mapping[str, Any]
    """All that decides a bit of the result beside weights and tokenizer; JSON-ready, never a path."""
    assemble: Callable[[list[dict[str, np.ndarray]]], tuple[store.Arrays, dict[str, Any]]]
    """From the parts, in the order of the tasks, to the group's arrays and attributes."""
    schema: Mapping[str, store.ArraySpec]
    what: str
    """What a task is, for the progress bar: "prompt", "unit"."""


@dataclass(frozen=True)
class PassRequest:
    """Which model runs a pass, where, and where its group goes."""

    model: ModelConfig
    store: Path
    group: str
    """FAMILY/NAME."""
    workers: int | None = None
    """None: one a GPU, else 1."""
    address: str | None = None


def run_pass(request: PassRequest, make_plan: Callable[[ModelFacts, Path], Plan], progress: Progress) -> dict[str, Any]:
    """Bring `request.store` to hold the pass's group; returns the group's attributes.

    `make_plan` is given the facts of the loaded model and the store's path. A group that is committed already is
    left as it is: an InputError where it is of another identity. Raises InputError, JobError, or Interrupted.
    """
    with writer_lock(request.store):
        engine = make_engine(request.model, request.workers, request.store / store.RUN_FOLDER / "ray", request.address)
        try:
            with progress.loading(request.model.spec):
                facts = engine.start()
            for warning in open_store(request.store, facts, None):
                progress.note(f"warning: {warning}")
            plan = make_plan(facts, request.store)
            identity = {"dtype": facts.dtype, "device_type": facts.device_type, **plan.identity}
            if _is_committed(request.store, request.group):
                attributes = store.group_attributes(request.store, request.group)
                _refuse_other(request, identity, attributes["identity"])
                return attributes
            return _Run(request, plan, identity, engine, facts.device, progress).run()
        finally:
            engine.close()


class _Run:
    def __init__(
        self, request: PassRequest, plan: Plan, identity: dict[str, Any], engine: Engine, device: str,
        progress: Progress,
    ):  # fmt: skip
        self._request = request
        self._plan = plan
        self._identity = identity
        self._engine = engine
        self._device = device
        self._progress = progress
        self._folder = store.pass_folder(request.store, request.group)
        self._tokens = 0
        self._model_s = 0.0

    def run(self) -> dict[str, Any]:
        self._open()
        start = time.time()
        self._engine.configure(self._plan.job)
        todo = [task for task in self._plan.tasks if not self._is_done(task)]
        stop = StopRequest(self._progress.note)
        done = len(self._plan.tasks) - len(todo)
        with self._progress.counting(self._request.group, self._plan.what, len(self._plan.tasks), done) as on_result:
            with stop.listening():
                handed_out = finished = 0
                while finished < len(todo):
                    stop.check()
                    while handed_out < len(todo) and self._engine.has_room():
                        self._engine.submit(todo[handed_out])
                        handed_out += 1
                    result = self._engine.next_result(timeout_s=0.5)
                    if result is not None:
                        self._keep(result)
                        on_result(result.tokens)
                        finished += 1
        return self._publish(start)

    def _open(self) -> None:
        """Note the plan, or check that the parts that are there are of the same pass."""
        plan_file = self._folder / "plan.json"
        try:
            saved = read_json(plan_file, "identity")
        except InputError as error:
            raise InputError(f"{error}; remove {self._folder} to begin the pass again") from error
        if saved is not None:
            _refuse_other(self._request, self._identity, saved["identity"], self._folder)
        replace_json(plan_file, {"identity": self._identity, "tasks": len(self._plan.tasks)})

    def _part(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"

    def _is_done(self, task: Task) -> bool:
        return _read_part(self._part(task.key)) is not None

    def _keep(self, result: PassResult) -> None:
        with whole_file(self._part(result.key)) as partial:
            np.savez(partial, allow_pickle=False, **{_RESTARTS: np.array(result.restarts)}, **result.arrays)
        self._tokens += result.tokens
        self._model_s += result.model_s

    def _publish(self, start: float) -> dict[str, Any]:
        parts, restarted = [], []
        for task in self._plan.tasks:
            arrays = _read_part(self._part(task.key))
            if arrays is None:
                raise InputError(f"{self._part(task.key)} is damaged; the same command makes it again")
            if arrays.pop(_RESTARTS):
                restarted.append(task.key)
            parts.append(arrays)
        arrays, described = self._plan.assemble(parts)
        attributes = {
            **described,
            "identity": self._identity,
            "versions": versions(),
            "device": self._device,
            "started": start,
            "finished": time.time(),
            "workers": self._engine.num_workers,
            "restarted": restarted,
            # Of the run that finished; parts of earlier runs aside.
            "tokens_run": self._tokens,
            "model_seconds": self._model_s,
        }
        finished = self._folder / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        store.write_arrays(finished, arrays, attributes, self._plan.schema)
        store.publish(self._request.store, self._request.group, finished)
        shutil.rmtree(self._folder)
        return attributes


def _read_part(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of a part; None where it isn't there, or damaged: the checksums of the archive tell."""
    try:
        with np.load(path, allow_pickle=False) as part:
            arrays = dict(part)
    except (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return arrays if _RESTARTS in arrays else None


def _is_committed(path: Path, group: str) -> bool:
    family, _, name = group.partition("/")
    return name in store.committed(path, family)


def _refuse_other(
    request: PassRequest, ours: Mapping[str, Any], theirs: Mapping[str, Any], unfinished: Path | None = None
) -> None:
    if difference := first_difference(dict(ours), dict(theirs)):
        otherwise = f", or remove {unfinished} to begin it again" if unfinished else ""
        raise InputError(
            f"{request.group} of {request.store} is another one: {difference}; use another --name{otherwise}"
        )
