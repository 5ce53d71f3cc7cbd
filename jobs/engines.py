"""Engines decide where the tasks of a run are done. All of them call the same functions: those of the pass's `Runner`.

An engine takes tasks while it has room and gives results in whatever order they come. What a task and a result
are is the pass's own matter; both travel between processes.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, cast

from neurotally.jobs.device_group import DeviceGroup, RankError
from neurotally.profiler.corpus.matches import stop_matching
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.allocation import reuse_freed_memory
from neurotally.profiler.model.load import LoadedModel, ModelFacts, load_model, resolve_device

MAX_FAILURES = 3
"""A task that raises so often stops the job."""
MAX_CRASHES = 5
"""A task that takes so many workers down stops the job."""


class JobError(RuntimeError):
    """The job can't go on; names the task and the cause. The store keeps all that was committed."""


@dataclass(frozen=True)
class ModelConfig:
    """Which model to load, and where."""

    spec: str
    """MODEL[@REVISION]."""
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    devices: int = 1
    """Those that hold it together, a process for each."""

    def load(self) -> LoadedModel | DeviceGroup:
        """The model, verified; on a CPU this process keeps the memory that it frees."""
        return DeviceGroup(self) if self.devices > 1 else self._load(sharded=False)

    def load_shard(self) -> LoadedModel:
        """The same on one of several devices: its part."""
        return self._load(sharded=True)

    def _load(self, sharded: bool) -> LoadedModel:
        if resolve_device(self.device) == "cpu":
            reuse_freed_memory()
        return load_model(self.spec, self.device, self.dtype, self.trust_remote_code, sharded=sharded)


class Task(Protocol):
    """A piece of work: one unit, one group of prompts. `str` of it names it to people."""

    @property
    def key(self) -> str:
        """What tells it from the run's other tasks."""

    @property
    def size(self) -> int:
        """How long it takes beside the others: bytes or characters of its text."""


class Outcome(NamedTuple):
    """A finished task."""

    key: str
    result: Any
    """What the pass makes of it; has `tokens`, the number that the model read, and `restarts`: how often the token
    budget was halved, since the device ran out of memory."""
    prepare_s: float
    """Seconds of reading and tokenising, beside the model."""
    model_s: float
    """Seconds in which the model and its kernels ran."""


class Runner(Protocol):
    """What a worker does with the tasks of one pass: pure functions of the pass's settings and the task."""

    def prepare(self, task: Any) -> Any:
        """Read and tokenise; runs in a thread beside `compute`."""

    def compute(self, task: Any, prepared: Any) -> Any:
        """Run the model over what was prepared: the `result` of an Outcome."""


class Listener(Runner, Protocol):
    """The runner of a pass whose reducers have news."""

    def hear(self, about: str, news: Any) -> None:
        """Take over what is known of all results so far; may come at any time, from another thread."""


MakeRunner = Callable[[Any], Runner]
"""A pass with its settings, to be put on what `ModelConfig.load` gives; travels between processes."""


class Engine(Protocol):
    """Where tasks run."""

    num_workers: int

    def start(self) -> ModelFacts:
        """Load the model on every worker; what it is."""

    def configure(self, make_runner: MakeRunner) -> None:
        """Fix the pass; before the first `submit`."""

    def has_room(self) -> bool:
        """Whether another task would find a worker that is idle, or that can prepare it meanwhile."""

    def submit(self, task: Task) -> None:
        """Hand over a task."""

    def tell(self, about: str, news: Any) -> None:
        """Let all workers hear it, soon; what was told about the same before is forgotten."""

    def next_result(self, timeout_s: float) -> Outcome | None:
        """A finished task, or None if none came in time. Raises JobError or InputError."""

    def close(self) -> None:
        """End all workers."""


class InProcessEngine:
    """Runs tasks one after the other in this process; the next one is prepared in a thread meanwhile."""

    num_workers = 1

    def __init__(self, model: ModelConfig):
        self._model_config = model
        self._model: LoadedModel | DeviceGroup | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._queue: deque[tuple[Task, Future[tuple[Any, float]]]] = deque()

    def start(self) -> ModelFacts:
        try:
            self._model = self._model_config.load()
        except RankError as error:
            raise JobError(f"the model's devices can't start: {error}") from error
        return self._model.facts

    def configure(self, make_runner: MakeRunner) -> None:
        self._runner = make_runner(self._model)

    def has_room(self) -> bool:
        """One task runs, one is prepared."""
        return len(self._queue) < 2

    def submit(self, task: Task) -> None:
        self._queue.append((task, self._prepare(task)))

    def tell(self, about: str, news: Any) -> None:
        cast(Listener, self._runner).hear(about, news)

    def next_result(self, timeout_s: float) -> Outcome | None:
        """Run the oldest task."""
        task, future = self._queue.popleft()
        for failures in range(1, MAX_FAILURES + 1):
            try:
                prepared, prepare_s = future.result()
                result, model_s = timed(self._runner.compute, task, prepared)
                return Outcome(task.key, result, prepare_s, model_s)
            except InputError:
                raise
            except Exception as error:
                if failures == MAX_FAILURES:
                    raise failed_task(task, failures, error) from error
                future = self._prepare(task)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Drop what is queued, and what is being prepared where that could take long."""
        stop_matching()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._model, DeviceGroup):
            self._model.close()

    def _prepare(self, task: Task) -> "Future[tuple[Any, float]]":
        return self._pool.submit(timed, self._runner.prepare, task)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and the seconds that it took."""
    start = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - start


def failed_task(task: Task, failures: int, error: BaseException) -> JobError:
    """The error of a task that raised too often."""
    return JobError(f"{task} failed {failures} times: {type(error).__name__}: {error}")
