"""Run tasks on Ray actors: one model each, on a GPU of its own or on its share of the CPU cores.

The only file that imports ray. Results come back to the driver, which alone writes. A worker that dies is
replaced and its tasks run again; a task under suspicion runs alone on its worker, so that the culprit is
known. Nothing here waits for longer than it was asked to: a signal, or the end of Ray itself, ends a run at once.

A Ray that we start listens on all of this machine's interfaces. Who talks to it needs a token, drawn anew for every
process of ours that starts one; other users can't read it. A cluster at an address is as its owner made it.
"""

import contextlib
import functools
import io
import logging
import os
import secrets
import signal
import sys
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, cast

import psutil
import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError, WorkerCrashedError
from ray.util import metrics

from neurotally.jobs.engines import (
    MAX_CRASHES,
    MAX_FAILURES,
    JobError,
    MakeRunner,
    ModelConfig,
    Outcome,
    Task,
    failed_task,
)  # fmt: skip
from neurotally.jobs.interrupts import Interrupted
from neurotally.jobs.ray_session import SESSION_VARIABLE, Guard, end_leftovers, is_gone, ray_ended, ray_processes_of
from neurotally.jobs.ray_worker import ActorWorker
from neurotally.kernels.compiled import library
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model.load import ModelFacts, resolve_device

_IN_FLIGHT = 2
"""Tasks a worker holds: one is computed while the next is read and tokenised."""
_TOLD_AT_ONCE = 2
"""News that a worker hears when it starts late: units of one group and of the next are computed at a time."""
_START_TIMEOUT_S = 1800.0
_LOOK_EVERY_S = 0.5
"""So often, while it waits, the driver looks whether Ray is still there."""
_PUT_BACK_EVERY_S = 0.01
_DEAD = (RayActorError, WorkerCrashedError)


class _WithoutRay:
    """A stream that what Ray itself prints doesn't reach."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        is_rays = sys._getframe(1).f_globals.get("__name__", "").startswith("ray.")
        return len(text) if is_rays else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


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

    `session_file` remembers a Ray that we started on this machine while it runs, for `end_leftovers`.
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
        """References to the news, for workers that start later."""
        self._dead_starts = 0
        """Workers in a row that died while they loaded the model."""
        self._session_file = session_file
        self._ray_processes: dict[str, psutil.Process] = {}
        self._guard: Guard | None = None
        self._quiet = contextlib.ExitStack()
        """Ray tells of its troubles on stdout, which is for results; what ends a run is an error of ours."""
        try:
            self._connect(address, num_workers, device)
        except BaseException:
            self.close()
            raise

    def _connect(self, address: str | None, num_workers: int | None, device: str) -> None:
        self._quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if address is None:
            session = uuid.uuid4().hex
            self._session_file.write_text(session)
            self._guard = Guard(session)
            _start_ray(session)
            self._ray_processes = ray_processes_of(session)
        else:
            _join_ray(address)
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
        return held < _IN_FLIGHT * self.num_workers

    def submit(self, task: Task) -> None:
        """Queue a task and hand it to a worker with room."""
        with self._telling_of_its_end():
            self._waiting.append(task)
            self._hand_out()

    def tell(self, about: str, news: Any) -> None:
        """Put it where every node reads it once."""
        with self._telling_of_its_end():
            self._told.pop(about, None)
            self._told = dict([*self._told.items(), (about, ray.put(news))][-_TOLD_AT_ONCE:])
            for actor in self._actors:
                if actor.starting is None:
                    actor.handle.hear.remote(about, self._told[about])

    def next_result(self, timeout_s: float) -> Outcome | None:
        """A finished task, or None after `timeout_s`; replaces workers that died."""
        self._check_ray()
        owners = {reference: actor for actor in self._actors for reference in actor.in_flight}
        owners |= {actor.starting: actor for actor in self._actors if actor.starting is not None}
        with self._telling_of_its_end():
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
        """End the actors, and Ray if we started it: what doesn't go by itself is killed."""
        has_ended = self._ray_that_ended() is not None
        try:
            if not has_ended:  # else Ray would end this process, before it can say why
                for actor in self._actors:
                    ray.kill(actor.handle)
                _shut_down()
            self._actors = []
        finally:
            self._quiet.close()
            if has_ended:  # it goes on to tell of its end, at the end of this process
                sys.stdout = cast(TextIO, _WithoutRay(sys.stdout))
            end_leftovers(self._session_file)
            if self._guard is not None:
                self._guard.dismiss()

    def _new_handle(self) -> Any:
        cores, gpus = self._cores, self._model.devices if self._device == "cuda" else 0
        remote = ray.remote(num_cpus=cores if cores < 1 else int(cores), num_gpus=gpus, max_concurrency=_IN_FLIGHT + 1)
        return remote(ActorWorker).remote(self._model, _threads_each(cores))

    def _hand_out(self) -> None:
        """Give waiting tasks to the workers that hold fewest; a suspect only to an idle one, and nothing beside it."""
        for _ in range(len(self._waiting)):
            task = self._waiting.popleft()
            limit = 1 if self._crashes[task.key] else _IN_FLIGHT
            started = [actor for actor in self._actors if actor.starting is None]
            free = [actor for actor in started if len(actor.in_flight) < limit and not self._guards(actor)]
            if not free:
                self._waiting.append(task)
                continue
            actor = min(free, key=lambda candidate: len(candidate.in_flight))
            actor.in_flight[actor.handle.run.remote(task)] = task

    def _guards(self, actor: _Actor) -> bool:
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
            self._check_ray()
            try:
                found.append(ray.get(references[len(found)], timeout=_LOOK_EVERY_S))
            except RayTaskError as error:
                raise _failed_start(error) from error
            except _DEAD as error:
                self._check_ray()
                raise JobError(f"a worker died while it started: {first_line(error)}") from error
            except GetTimeoutError as error:
                if time.monotonic() > deadline:
                    raise _late_start() from error
        return found

    def _check_ray(self) -> None:
        """JobError if a process without which Ray waits for ever is gone."""
        if name := self._ray_that_ended():
            raise JobError(ray_ended(name))

    @contextlib.contextmanager
    def _telling_of_its_end(self) -> Iterator[None]:
        """What Ray raises is a JobError that says so where it is Ray that ended."""
        try:
            yield
        except (RayError, OSError):
            self._check_ray()
            raise

    def _ray_that_ended(self) -> str | None:
        return next((name for name, process in self._ray_processes.items() if is_gone(process)), None)


def _cores_each(nodes: Sequence[Mapping[str, float]], num_workers: int, device: str, devices: int = 1) -> float:
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


def _join_ray(address: str) -> None:
    """Join a cluster."""
    try:
        _init_ray(address=address)
    except Exception as error:  # Ray raises its own kinds, and bare ones, of no common base
        raise InputError(f"can't connect to Ray at {address}: {first_line(error)}") from error


def _start_ray(session: str) -> None:
    """Start a Ray on this machine, whose processes can be told by their environment and ask for a token."""
    os.environ.pop("RAY_AUTH_MODE", None)  # unset, Ray asks for a token, from 2.59 on
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ["RAY_AUTH_TOKEN"] = _token()
    # The second keeps Ray's agents from writing their names over the environment that they are told by.
    told = {SESSION_VARIABLE: session, "SPT_NOENV": "1"}
    os.environ.update(told)
    try:
        _init_ray(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
    except Exception as error:  # as above
        raise JobError(f"can't start Ray on this machine: {first_line(error)}") from error
    finally:
        for name in told:  # later processes are not Ray's
            del os.environ[name]


def _init_ray(**settings: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _own_sigterm():
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)


@functools.cache
def _token() -> str:
    """One for this process: Ray reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray puts one in its place, which ends the process with a status of its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise Interrupted(signal.SIGTERM) from error
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray takes no signals either
            signal.signal(signal.SIGTERM, before)


def _shut_down() -> None:
    """Shut Ray down.

    Its core takes SIGTERM's handler with it, seconds before Ray's processes have ended, so that a signal would end this
    process on the spot. So it is put back, while another thread waits for these.
    """
    handler = signal.getsignal(signal.SIGTERM)
    shutting_down = threading.Thread(target=ray.shutdown)
    shutting_down.start()
    while shutting_down.is_alive():
        shutting_down.join(_PUT_BACK_EVERY_S)
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)


def _failed_start(error: RayTaskError) -> Exception:
    if isinstance(error.cause, InputError):
        return InputError(str(error.cause))
    return JobError(f"a worker can't start: {type(error.cause).__name__}: {first_line(error.cause)}")


def _late_start() -> JobError:
    return JobError(f"workers didn't start in {_START_TIMEOUT_S:.0f} s: are there enough free CPUs or GPUs?")
