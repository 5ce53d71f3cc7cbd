"""Workers that compute nothing: a unit takes a given time on a clock of its own, and its result is drawn.

What the driver does takes the time that it takes; while it waits, the clock jumps to the next result. So hours on many
GPUs are tried in minutes, and nothing of the driver's part is scaled. What moving a result between processes takes is
left out: Ray's.
"""

import contextlib
import heapq
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neurotally.jobs.engines.engine import Outcome
from neurotally.kernels.statistics import STATISTICS
from neurotally.kernels.trigger_lists import UnitTriggers
from neurotally.profiler.neuron_sums import UnitNeurons
from neurotally.profiler.passes.worker import KnownThresholds, Task, UnitResult

HEARD_AFTER_S = 0.1
"""From the driver to a worker."""


class Clock:
    """Seconds of the run: those that `now` counts, without those that are left out, and with those that are skipped."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._at = 0.0
        self._since = now()

    def __call__(self) -> float:
        return self._at + self._now() - self._since

    def skip_to(self, at: float) -> None:
        """Unless it is later already."""
        self._at, self._since = max(self(), at), self._now()

    def back_to(self, at: float) -> None:
        """To the beginning of what other cores do."""
        self._at, self._since = at, self._now()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done meanwhile takes no time."""
        self._at = self()
        try:
            yield
        finally:
            self._since = self._now()


@dataclass(frozen=True)
class Drawing:
    """Results as of a model: coefficients of a neuron over documents are normal numbers, cut at 0."""

    layers: int
    neurons: int
    num_triggers: int
    tokens: int = 600_000
    """Of a unit."""
    seed: int = 0

    def unit(self, task: Task, threshold_F: np.ndarray | None) -> UnitResult:
        """The same for a task however often it is asked for, but for what a threshold leaves out."""
        rng = np.random.default_rng([self.seed, task.index, *task.corpus.encode()])
        count, shape = len(task.names), (self.layers, self.neurons)
        sums = {one.name: (rng.random(shape, np.float32) * self.tokens / 4) for one in STATISTICS}
        sha256_n32 = rng.integers(0, 256, (count, 32), np.uint8)
        return UnitResult(
            UnitNeurons(
                {one.name: sums[one.name].astype(one.shipped) for one in STATISTICS},
                self._triggers(rng, task.first, count, threshold_F),
            ),
            tokens=self.tokens,
            special_tokens=count,
            status_n=np.zeros(count, np.uint8),
            sha256_n32=sha256_n32,
            document_tokens_n=np.full(count, self.tokens // count, np.uint32),
            restarts=0,
        )

    def _triggers(
        self, rng: np.random.Generator, first: int, num_documents: int, threshold_F: np.ndarray | None
    ) -> UnitTriggers:
        """The largest of so many normal numbers, one after the other."""
        total = self.layers * self.neurons
        # The share of normal numbers above the r-th largest of n grows by exponential steps of mean 1/n.
        above_F = np.full(total, np.finfo(np.float32).tiny)
        first_document_F = rng.integers(0, num_documents, total, np.uint32)
        neuron_n = np.arange(total)
        columns: list[tuple[np.ndarray, np.ndarray]] = []
        for _ in range(min(self.num_triggers, num_documents // 2)):
            above_F += rng.standard_exponential(total, np.float32) / np.float32(num_documents)
            value_n = np.sqrt(np.maximum(-2 * np.log(above_F[neuron_n]), 0))
            stays_n = value_n > 0 if threshold_F is None else (value_n > 0) & (value_n >= threshold_F[neuron_n])
            neuron_n = neuron_n[stays_n]
            if not len(neuron_n):
                break
            columns.append((neuron_n, value_n[stays_n]))
        count_F = np.zeros(total, np.uint32)
        for neuron_n, _ in columns:
            count_F[neuron_n] += 1
        start_F = np.cumsum(count_F, dtype=np.int64) - count_F
        value_N, document_N = (np.empty(int(count_F.sum()), dtype) for dtype in (np.float32, np.uint32))
        for rank, (neuron_n, value_n) in enumerate(columns):
            value_N[start_F[neuron_n] + rank] = value_n
            document_N[start_F[neuron_n] + rank] = (first_document_F[neuron_n] + rank) % num_documents + first
        return UnitTriggers(count_F, value_N, document_N, document_N % np.uint32(1024))


class _Later(Future[Any]):
    """Done at a time of the clock."""

    def __init__(self, clock: Clock):
        super().__init__()
        self.at = 0.0
        self._clock = clock

    def done(self) -> bool:
        return self._clock() >= self.at

    def result(self, timeout: float | None = None) -> Any:
        self._clock.skip_to(self.at)
        return super().result(timeout)


@dataclass
class _Worker:
    free_at: float = 0.0
    held: int = 0
    corpora: set[str] = field(default_factory=set)
    """Those that it has had units of."""
    known: KnownThresholds = field(default_factory=KnownThresholds)


class SyntheticEngine:
    """So many workers, each a unit in `unit_s`, one more prepared meanwhile."""

    def __init__(self, num_workers: int, unit_s: float, drawing: Drawing, now: Callable[[], float] = time.perf_counter):
        self.num_workers = num_workers
        self.clock = Clock(now)
        self.bytes_by_unit: list[int] = []
        self.triggers_after_the_first: list[float] = []
        """By unit, candidates a neuron; of units that weren't their worker's first of the corpus."""
        self.drawing_cpu_s = 0.0
        self._unit_s = unit_s
        self._drawing = drawing
        self._workers = [_Worker() for _ in range(num_workers)]
        self._finishing: list[tuple[float, int, int, Task]] = []
        self._number = 0
        self._background_until = 0.0
        self._told: dict[str, list[tuple[float, np.ndarray]]] = defaultdict(list)

    def start(self) -> Any:
        """Nothing to load."""

    def configure(self, make_runner: Any) -> None:
        """Nothing to run."""

    def has_room(self) -> bool:
        """As Ray's workers: two each."""
        return sum(worker.held for worker in self._workers) < 2 * self.num_workers

    def submit(self, task: Task) -> None:
        """To the worker that will be free first."""
        at = min(range(self.num_workers), key=lambda number: (self._workers[number].held, number))
        worker = self._workers[at]
        worker.held += 1
        worker.free_at = max(self.clock(), worker.free_at) + self._unit_s
        self._number += 1
        heapq.heappush(self._finishing, (worker.free_at, self._number, at, task))

    def in_background(self, work: Callable[[], Any]) -> "Future[Any]":
        """On cores of its own, and one after the other: done when the clock has gone on for as long as it took."""
        start = self.clock()
        done = _Later(self.clock)
        done.set_result(work())
        done.at = max(start, self._background_until) + self.clock() - start
        self._background_until = done.at
        self.clock.back_to(start)
        return done

    def tell(self, about: str, news: Any) -> None:
        """Heard a little later."""
        self._told[about].append((self.clock() + HEARD_AFTER_S, news.ravel()))

    def next_result(self, timeout_s: float) -> Outcome | None:
        """The next to finish, at the time when it does."""
        until = self.clock() + timeout_s
        if not self._finishing or self._finishing[0][0] > until:
            self.clock.skip_to(until)
            return None
        finished_at, _, at, task = heapq.heappop(self._finishing)
        self.clock.skip_to(finished_at)
        with self.clock.stopped():
            cpu = time.process_time()
            outcome = self._result(finished_at, self._workers[at], task)
            self.drawing_cpu_s += time.process_time() - cpu
            return outcome

    def close(self) -> None:
        """Nothing to end."""

    def _result(self, finished_at: float, worker: _Worker, task: Task) -> Outcome:
        for news in [news for heard_at, news in self._told[task.corpus] if heard_at <= finished_at][-1:]:
            worker.known.hear(task.corpus, news)
        result = self._drawing.unit(task, worker.known.of(task.corpus))
        if self._drawing.num_triggers:
            worker.known.hear(task.corpus, result.neurons.triggers.threshold(self._drawing.num_triggers))
        buffers: list[pickle.PickleBuffer] = []
        pickled = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        self.bytes_by_unit.append(len(pickled) + sum(buffer.raw().nbytes for buffer in buffers))
        if task.corpus in worker.corpora:
            triggers = len(result.neurons.triggers.value_N) / (self._drawing.layers * self._drawing.neurons)
            self.triggers_after_the_first.append(triggers)
        worker.corpora.add(task.corpus)
        worker.held -= 1
        return Outcome(task.key, pickle.loads(pickled, buffers=buffers), 0.0, self._unit_s)
