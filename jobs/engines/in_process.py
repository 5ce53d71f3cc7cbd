"""The engine of one worker: this process."""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

from neurotally.jobs.engines.device_group import DeviceGroup, RankError
from neurotally.jobs.engines.engine import (
    IN_FLIGHT,
    MAX_FAILURES,
    JobError,
    Listener,
    MakeRunner,
    Outcome,
    Task,
    failed_task,
    timed,
)  # fmt: skip
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler.corpus.matches import stop_matching
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import LoadedModel, ModelFacts


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
        return len(self._queue) < IN_FLIGHT

    def submit(self, task: Task) -> None:
        self._queue.append((task, self._prepare(task)))

    def tell(self, about: str, news: Any) -> None:
        cast(Listener, self._runner).hear(about, news)

    def next_result(self, timeout_s: float) -> Outcome | None:
        """Run the oldest task."""
        task, future = self._queue.popleft()
        failures = 0
        while True:
            try:
                prepared, prepare_s = future.result()
                result, model_s = timed(self._runner.compute, task, prepared)
                return Outcome(task.key, result, prepare_s, model_s)
            except InputError:
                raise
            except Exception as error:
                failures += 1
                if failures == MAX_FAILURES:
                    raise failed_task(task, error) from error
                future = self._prepare(task)

    def close(self) -> None:
        """Drop what is queued, and what is being prepared where that could take long."""
        stop_matching()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(self._model, DeviceGroup):
            self._model.close()

    def _prepare(self, task: Task) -> "Future[tuple[Any, float]]":
        return self._pool.submit(timed, self._runner.prepare, task)
