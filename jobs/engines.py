"""Engines decide where units run. All of them run the same function: `neurotally.jobs.worker.Worker`.

An engine takes tasks while it has room and gives results in whatever order they come.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

from neurotally.jobs.worker import ModelConfig, PassConfig, PreparedUnit, Task, UnitResult, Worker
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import ModelFacts, load_model

MAX_FAILURES = 3
"""A unit that raises so often stops the job."""
MAX_CRASHES = 5
"""A unit that takes so many workers down stops the job."""


class JobError(RuntimeError):
    """The job can't go on; names the unit and the cause. The store keeps all that was committed."""


class Engine(Protocol):
    """Where units run."""

    num_workers: int

    def start(self) -> ModelFacts:
        """Load the model on every worker; what it is."""

    def configure(self, config: PassConfig) -> None:
        """Fix the pass; before the first `submit`."""

    def has_room(self) -> bool:
        """Whether another task would find a worker that is idle, or that can prepare it meanwhile."""

    def submit(self, task: Task, bar_LF: np.ndarray | None) -> None:
        """Hand over a task."""

    def next_result(self, timeout_s: float) -> UnitResult | None:
        """A finished unit, or None if none came in time. Raises JobError or InputError."""

    def close(self) -> None:
        """End all workers."""


class InProcessEngine:
    """Runs units one after the other in this process; the next one is tokenised in a thread meanwhile."""

    num_workers = 1

    def __init__(self, model: ModelConfig):
        self._model_config = model
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._queue: deque[tuple[Task, np.ndarray | None, Future[PreparedUnit]]] = deque()

    def start(self) -> ModelFacts:
        """Load the model."""
        config = self._model_config
        self._model = load_model(config.spec, config.device, config.dtype, config.trust_remote_code)
        return self._model.facts

    def configure(self, config: PassConfig) -> None:
        """Fix the pass."""
        self._worker = Worker(self._model, config)

    def has_room(self) -> bool:
        """One task runs, one is prepared."""
        return len(self._queue) < 2

    def submit(self, task: Task, bar_LF: np.ndarray | None) -> None:
        """Begin to prepare a task."""
        self._queue.append((task, bar_LF, self._pool.submit(self._worker.prepare, task)))

    def next_result(self, timeout_s: float) -> UnitResult | None:
        """Run the oldest task."""
        task, bar_LF, prepared = self._queue.popleft()
        for failures in range(1, MAX_FAILURES + 1):
            try:
                return self._worker.compute(prepared.result(), bar_LF)
            except InputError:
                raise
            except Exception as error:
                if failures == MAX_FAILURES:
                    raise failed_unit(task, failures, error) from error
                prepared = self._pool.submit(self._worker.prepare, task)
        raise AssertionError("unreachable")

    def close(self) -> None:
        """Drop what is queued."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def failed_unit(task: Task, failures: int, error: BaseException) -> JobError:
    """The error of a unit that raised too often."""
    return JobError(f"{task} failed {failures} times: {type(error).__name__}: {error}")
