"""An engine of several workers that share this process: for what doesn't depend on where workers are.

Each has a model of its own. What goes between them and the driver is pickled, tasks go to any of them, and results
come out of order. Ray's actors, of processes of their own, are tried with one family and with one other pass.
"""

import pickle
import random
from typing import Any

from ray import cloudpickle

from neurotally.jobs.engines.engine import MakeRunner, Outcome, Task
from neurotally.jobs.engines.in_process import InProcessEngine
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler.model.load import ModelFacts


def _moved(value: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(value))


class SeveralWorkers:
    """`num_workers` of them; see `neurotally.jobs.engines.engine.Engine`."""

    def __init__(self, model: ModelConfig, num_workers: int):
        self.num_workers = num_workers
        self._workers = [InProcessEngine(_moved(model)) for _ in range(num_workers)]
        self._num_held = [0] * num_workers
        self._random = random.Random(0)

    def start(self) -> ModelFacts:
        facts = [worker.start() for worker in self._workers]
        assert all(other == facts[0] for other in facts)
        return _moved(facts[0])

    def configure(self, make_runner: MakeRunner) -> None:
        for worker in self._workers:
            worker.configure(_moved(make_runner))

    def has_room(self) -> bool:
        return any(worker.has_room() for worker in self._workers)

    def submit(self, task: Task) -> None:
        number = self._random.choice([n for n, worker in enumerate(self._workers) if worker.has_room()])
        self._num_held[number] += 1
        self._workers[number].submit(_moved(task))

    def tell(self, about: str, news: Any) -> None:
        for worker in self._workers:
            worker.tell(about, _moved(news))

    def next_result(self, timeout_s: float) -> Outcome | None:
        number = self._random.choice([n for n, held in enumerate(self._num_held) if held])
        outcome = self._workers[number].next_result(timeout_s)
        self._num_held[number] -= 1
        return _moved(outcome)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()
