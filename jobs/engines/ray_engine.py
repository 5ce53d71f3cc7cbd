"""Run tasks on Ray actors: one model each, on a GPU of its own or on its share of the CPU cores.

Results come back to the driver, which alone writes. A worker that dies is replaced and its tasks run again; a task
under suspicion runs alone on its worker, so that the culprit is known. Nothing here waits for longer than it was asked
to: a signal, or the end of Ray itself (`ray_connection`), ends a run at once.
"""

import logging
import os
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError, WorkerCrashedError
from ray.util import metrics

from neurotally.jobs.engines.engine import (
    GROUPS_AT_ONCE,
    IN_FLIGHT,
    MAX_CRASHES,
    MAX_FAILURES,
    JobError,
    MakeRunner,
    Outcome,
    Task,
    failed_task,
)  # fmt: skip
from neurotally.jobs.engines.ray_connection import RayConnection
from neurotally.jobs.engines.ray_worker import ActorWorker
from neurotally.jobs.model_config import ModelConfig
from neurotally.kernels.compiled import library
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model.load import ModelFacts, resolve_device

_START_TIMEOUT_S = 1800.0
_LOOK_EVERY_S = 0.5
"""So often, while it waits, the driver looks whether Ray is still there."""
_DEAD = (RayActorError, WorkerCrashedError)


class _Metrics:
    """What Ray's dashboard and its Prometheus endpoint show of a run, by worker."""

    def __init__(self) -> None:
        described = {
            "tokens": "Tokens that the model read.",
            "units": "Units of work that are done.",
            "restarts": "Times that a worker died and was replaced.",
        }
        self._counters = {
            name: metrics.Counter(f"neurotally_{name}", text, tag_keys=("worker",)) for name, text in described.items()
        }

    def count(self, worker: int, **numbers: int) -> None:
        """Add to a worker's counters."""
        for name, number in numbers.items():
            if number:  # Ray refuses to add 0
                self._counters[name].inc(number, {"worker": str(worker)})


@dataclass
class _Actor:
    number: int
    handle: Any
    in_flight: dict[Any, Task] = field(default_factory=dict)
    """Result reference: task."""
    starting: Any = None
    """Reference that is ready once it has loaded the model; None: it has."""
    started_at: float = 0.0


class RayEngine:
    """`num_workers` actors on this machine, or on the cluster at `address`; None: one per GPU, else 1.

    `session_file`: see `RayConnection`.
    """

    def __init__(self, model: ModelConfig, num_workers: int | None, session_file: Path, address: str | None = None):
        device = resolve_device(model.device) if address is None else model.device
        self._model = model
        self._make_runner: MakeRunner | None = None
        self._actors: list[_Actor] = []
        self._waiting: deque[Task] = deque()
        self._failures: Counter[str] = Counter()
        self._crashes: Counter[str] = Counter()
        self._told: dict[str, Any] = {}
        """References to the latest news, for workers that start later."""
        self._dead_starts = 0
        """Workers in a row that died while they loaded the model."""
        self._ray = RayConnection(session_file)
        try:
            self._ray.open(address)
            self._share_machines(num_workers, device)
        except BaseException:
            self.close()
            raise

    def _share_machines(self, num_workers: int | None, device: str) -> None:
        """Fix the number of workers, their device, and the cores of each."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        num_gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        self._device = device if device != "auto" else "cuda" if num_gpus else "cpu"
        if self._device == "cuda":
            room = sum(int(node.get("GPU", 0)) // self._model.devices for node in nodes)
            if not room and self._model.devices > 1:
                raise InputError(f"--devices-per-worker {self._model.devices}: no machine has so many GPUs")
        self.num_workers = num_workers or (max(1, room) if self._device == "cuda" else 1)
        self._cores = _cores_each(nodes, self.num_workers, self._device, self._model.devices)

    def start(self) -> ModelFacts:
        """Start the actors and load the model on each of them."""
        library()  # built once here, before workers would all build it
        self._metrics = _Metrics()
        self._actors = [_Actor(number, self._new_handle()) for number in range(self.num_workers)]
        facts: list[ModelFacts] = self._get_all([actor.handle.start.remote(None) for actor in self._actors])
        if any(other.fingerprint != facts[0].fingerprint for other in facts):
            raise InputError(f"the workers loaded different weights of {self._model.spec}")
        return facts[0]

    def configure(self, make_runner: MakeRunner) -> None:
        self._make_runner = make_runner
        self._get_all([actor.handle.configure.remote(make_runner) for actor in self._actors])

    def has_room(self) -> bool:
        held = len(self._waiting) + sum(len(actor.in_flight) for actor in self._actors)
        return held < IN_FLIGHT * self.num_workers

    def submit(self, task: Task) -> None:
        """Queue a task and hand it to a worker with room."""
        with self._ray.telling_of_its_end():
            self._waiting.append(task)
            self._hand_out()

    def tell(self, about: str, news: Any) -> None:
        """Put it where every node reads it once."""
        with self._ray.telling_of_its_end():
            self._told.pop(about, None)
            self._told = dict([*self._told.items(), (about, ray.put(news))][-GROUPS_AT_ONCE:])
            for actor in self._actors:
                if actor.starting is None:
                    actor.handle.hear.remote(about, self._told[about])

    def next_result(self, timeout_s: float) -> Outcome | None:
        """A finished task, or None after `timeout_s`; replaces workers that died."""
        self._ray.check()
        owners = {reference: actor for actor in self._actors for reference in actor.in_flight}
        owners |= {actor.starting: actor for actor in self._actors if actor.starting is not None}
        with self._ray.telling_of_its_end():
            ready, _ = ray.wait(list(owners), num_returns=1, timeout=timeout_s) if owners else ([], [])
            if not ready:
                self._check_starts()
                return None
            actor = owners[ready[0]]
            if ready[0] == actor.starting:
                self._note_start(actor)
                return None
            try:
                outcome: Outcome = ray.get(ready[0])
            except _DEAD as error:
                self._replace(actor, error)
                return None
            except RayTaskError as error:
                self._note_failure(actor.in_flight.pop(ready[0]), error)
                return None
            del actor.in_flight[ready[0]]
            self._metrics.count(actor.number, units=1, tokens=outcome.result.tokens)
            self._hand_out()
            return outcome

    def close(self) -> None:
        """End the actors, and Ray if we started it."""
        actors, self._actors = self._actors, []
        self._ray.close([actor.handle for actor in actors])

    def _new_handle(self) -> Any:
        cores, gpus = self._cores, self._model.devices if self._device == "cuda" else 0
        remote = ray.remote(num_cpus=cores if cores < 1 else int(cores), num_gpus=gpus, max_concurrency=IN_FLIGHT + 1)
        return remote(ActorWorker).remote(self._model, _threads_each(cores))

    def _hand_out(self) -> None:
        """Give waiting tasks to the workers that hold fewest; a suspect only to an idle one, and nothing beside it."""
        for _ in range(len(self._waiting)):
            task = self._waiting.popleft()
            limit = 1 if self._crashes[task.key] else IN_FLIGHT
            started = [actor for actor in self._actors if actor.starting is None]
            free = [actor for actor in started if len(actor.in_flight) < limit and not self._has_suspect(actor)]
            if not free:
                self._waiting.append(task)
                continue
            actor = min(free, key=lambda candidate: len(candidate.in_flight))
            actor.in_flight[actor.handle.run.remote(task)] = task

    def _has_suspect(self, actor: _Actor) -> bool:
        return any(self._crashes[task.key] for task in actor.in_flight.values())

    def _note_failure(self, task: Task, error: RayTaskError) -> None:
        cause = error.cause
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from error
        self._failures[task.key] += 1
        if self._failures[task.key] >= MAX_FAILURES:
            raise failed_task(task, cause) from error
        self._waiting.appendleft(task)
        self._hand_out()

    def _replace(self, dead: _Actor, error: Exception) -> None:
        tasks = list(dead.in_flight.values())
        for task in tasks:
            self._crashes[task.key] += 1
            if self._crashes[task.key] >= MAX_CRASHES:
                raise JobError(f"{task} took {MAX_CRASHES} workers down: {first_line(error)}") from error
        logging.getLogger(__name__).warning("a worker died; its %d tasks run again", len(tasks))
        dead.in_flight = {}
        self._start_again(dead)
        self._waiting.extendleft(reversed(tasks))
        self._hand_out()

    def _start_again(self, dead: _Actor) -> None:
        """Begin to load the model on a new worker; `next_result` sees when it has."""
        ray.kill(dead.handle)
        self._metrics.count(dead.number, restarts=1)
        dead.handle = self._new_handle()
        dead.starting = dead.handle.start.remote(self._make_runner)
        dead.started_at = time.monotonic()

    def _note_start(self, actor: _Actor) -> None:
        """A replacement has loaded the model, or died of it."""
        try:
            ray.get(actor.starting)
        except _DEAD as error:
            self._dead_starts += 1
            if self._dead_starts >= MAX_CRASHES:
                raise JobError(
                    f"{MAX_CRASHES} workers in a row died while they loaded the model: {first_line(error)}"
                ) from error
            self._start_again(actor)
        except RayTaskError as error:
            raise _failed_start(error) from error
        else:
            self._dead_starts = 0
            actor.starting = None
            for about, news in self._told.items():
                actor.handle.hear.remote(about, news)
            self._hand_out()

    def _check_starts(self) -> None:
        now = time.monotonic()
        if any(actor.starting is not None and now - actor.started_at > _START_TIMEOUT_S for actor in self._actors):
            raise _late_start()

    def _get_all(self, references: Sequence[Any]) -> list[Any]:
        deadline = time.monotonic() + _START_TIMEOUT_S
        found: list[Any] = []
        while len(found) < len(references):
            self._ray.check()
            try:
                found.append(ray.get(references[len(found)], timeout=_LOOK_EVERY_S))
            except RayTaskError as error:
                raise _failed_start(error) from error
            except _DEAD as error:
                self._ray.check()
                raise JobError(f"a worker died while it started: {first_line(error)}") from error
            except GetTimeoutError as error:
                if time.monotonic() > deadline:
                    raise _late_start() from error
        return found


def _cores_each(nodes: Sequence[Mapping[str, float]], num_workers: int, device: str, devices: int) -> float:
    """The cores of an actor, so that every node has room for its share of them; `devices`: GPUs of an actor."""
    if device == "cuda" and any(node.get("GPU", 0) >= devices for node in nodes):
        nodes = [node for node in nodes if node.get("GPU", 0) >= devices]
        actors = [min(num_workers, int(node["GPU"]) // devices) for node in nodes]
    else:
        actors = [-(-num_workers // len(nodes))] * len(nodes)
    return min(node.get("CPU", 1) / number for node, number in zip(nodes, actors, strict=True))


def _threads_each(cores: float) -> int:
    """CPU threads of an actor: its cores, or as many as the user's OMP_NUM_THREADS says if these are fewer."""
    whole = max(1, int(cores))
    return min(whole, torch.get_num_threads()) if os.environ.get("OMP_NUM_THREADS") else whole


def _failed_start(error: RayTaskError) -> Exception:
    if isinstance(error.cause, InputError):
        return InputError(str(error.cause))
    return JobError(f"a worker can't start: {type(error.cause).__name__}: {first_line(error.cause)}")


def _late_start() -> JobError:
    return JobError(f"workers didn't start in {_START_TIMEOUT_S:.0f} s: are there enough free CPUs or GPUs?")
