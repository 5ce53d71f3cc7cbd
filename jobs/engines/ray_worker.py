"""The worker of `ray_engine` in its actor; Ray starts it by this module, which imports PyTorch only when it loads."""

import threading
from typing import TYPE_CHECKING, Any, cast

from neurotally.jobs.engines.engine import Listener, MakeRunner, Outcome, Task, timed
from neurotally.jobs.model_config import ModelConfig
from neurotally.jobs.starting import import_pytorch

if TYPE_CHECKING:
    from neurotally.profiler.model.load import ModelFacts


class ActorWorker:
    """A worker in an actor of three threads: one computes, one prepares, one hears news."""

    def __init__(self, model: ModelConfig, num_threads: int):
        self._model_config = model
        self._num_threads = num_threads
        self._computing = threading.Lock()

    def start(self, make_runner: MakeRunner | None) -> "ModelFacts":
        """Load the model; `make_runner`, if the pass is fixed already."""
        import_pytorch()
        self._set_threads()
        self._model = self._model_config.load()
        if make_runner is not None:
            self.configure(make_runner)
        return self._model.facts

    def configure(self, make_runner: MakeRunner) -> None:
        self._runner = make_runner(self._model)

    def hear(self, about: str, news: Any) -> None:
        """See `Listener`."""
        cast(Listener, self._runner).hear(about, news)

    def run(self, task: Task) -> Outcome:
        self._set_threads()
        prepared, prepare_s = timed(self._runner.prepare, task)
        with self._computing:
            result, model_s = timed(self._runner.compute, task, prepared)
        return Outcome(task.key, result, prepare_s, model_s)

    def _set_threads(self) -> None:
        """PyTorch keeps this setting for every thread that asks."""
        import torch

        torch.set_num_threads(self._num_threads)
