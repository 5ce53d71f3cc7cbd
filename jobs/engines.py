"""Engines decide where the tasks of a pass run. All of them run the same functions: those of the pass's `Runner`.

An engine takes tasks while it has room and gives results in whatever order they come. What a task and a result
are is the pass's own matter; both travel between processes.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from neurotally.jobs.worker import ModelConfig
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import LoadedModel, ModelFacts, load_model

MAX_FAILURES = 3
"""A task that raises so often stops the job."""
MAX_CRASHES = 5
"""A task that takes so many workers down stops the job."""


class JobError(RuntimeError):
    """The job can't go on; names the task and the cause. The store keeps all that was committed."""


class Task(Protocol):
    """A piece of work: one unit, one group of prompts. `str` of it names it to people."""

    @property
    def key(self) -> str:
        """What tells it from the pass's other tasks."""


class Runner(Protocol):
    """What a worker does with the tasks of one pass: pure functions of the pass's config and the task."""

    def prepare(self, task: Any) -> Any:
        """Read and tokenise; runs in a thread beside `compute`."""

    def compute(self, prepared: Any, hint: np.ndarray | None = None) -> Any:
        """Run the model over what was prepared; the result. `hint` never changes what results add up to."""


class Job(Protocol):
    """The config of a pass."""

    def bind(self, model: LoadedModel) -> Runner:
        """The pass on a loaded model."""


class Engine(Protocol):
    """Where tasks run."""

    num_workers: int

    def start(self) -> ModelFacts:
        """Load the model on every worker; what it is."""

    def configure(self, job: Job) -> None:
        """Fix the pass; before the first `submit`."""

    def has_room(self) -> bool:
        """Whether another task would find a worker that is idle, or that can prepare it meanwhile."""

    def submit(self, task: Task, hint: np.ndarray | None = None) -> None:
        """Hand over a task."""

    def next_result(self, timeout_s: float) -> Any:
        """The result of a finished task, or None if none came in time. Raises JobError or InputError."""

    def close(self) -> None:
        """End all workers."""


class InProcessEngine:
    """Runs tasks one after the other in this process; the next one is prepared in a thread meanwhile."""

    num_workers = 1

    def __init__(self, model: ModelConfig):
        self._model_config = model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._queue: deque[tuple[Task, np.ndarray | None, Future[Any]]] = deque()

    def start(self) -> ModelFacts:
        """Load the model."""
        config = self._model_config
        self._model = load_model(config.spec, config.device, config.dtype, config.trust_remote_code)
        return self._model.facts

    def configure(self, job: Job) -> None:
        """Fix the pass."""
        self._runner = job.bind(self._model)

    def has_room(self) -> bool:
        """One task runs, one is prepared."""
        return len(self._queue) < 2

    def submit(self, task: Task, hint: np.ndarray | None = None) -> None:
        """Begin to prepare a task."""
        self._queue.append((task, hint, self._pool.submit(self._runner.prepare, task)))

    def next_result(self, timeout_s: float) -> Any:
        """Run the oldest task."""
        task, hint, prepared = self._queue.popleft()
        for failures in range(1, MAX_FAILURES + 1):
            try:
                return self._runner.compute(prepared.result(), hint)
            except InputError:
                raise
            except Exception as error:
                if failures == MAX_FAILURES:
                    raise failed_task(task, failures, error) from error
                prepared = self._pool.submit(self._runner.prepare, task)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Drop what is queued."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def failed_task(task: Task, failures: int, error: BaseException) -> JobError:
    """The error of a task that raised too often."""
    return JobError(f"{task} failed {failures} times: {type(error).__name__}: {error}")


def make_engine(model: ModelConfig, workers: int | None, session_file: Path, address: str | None = None) -> Engine:
    """In this process for one worker, on Ray for more or for a cluster. `workers` None: one a GPU, else 1."""
    if workers is None and address is None and model.device != "cpu":
        import torch

        workers = torch.cuda.device_count()
    if address is None and (workers or 1) <= 1:
        return InProcessEngine(model)
    from neurotally.jobs.ray_engine import RayEngine

    return RayEngine(model, workers, session_file, address)
