"""The loop of a pass: hands out tasks, takes in results, saves; and commits beside that, one group after the other."""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from neurotally.jobs.engines.engine import Engine, Outcome, Task
from neurotally.jobs.interrupts import Interrupted, StopRequest
from neurotally.jobs.progress import Progress, Took
from neurotally.jobs.reducers.reducer import Reducer
from neurotally.jobs.versions import versions

_CHECKPOINT_SHARE = 0.05
"""Of the driver's time, at most; of large mixtures a checkpoint is gigabytes."""

Attributes = dict[str, Any]
InBackground = Callable[[Callable[[], Attributes]], "Future[Attributes]"]


@dataclass
class RunReport:
    """What a run did, and where its time went."""

    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Attributes of the groups committed by this run."""
    warnings: list[str] = field(default_factory=list)
    tokens: int = 0
    wall_s: float = 0.0
    """From the first task handed out to the last group committed."""
    model_s: float = 0.0
    """Seconds in which a worker ran the model and its kernels, summed over workers."""
    prepare_s: float = 0.0
    """Seconds of reading and tokenising, beside the model."""
    write_s: float = 0.0
    """Seconds in which the driver wrote checkpoints and commits, these beside other work."""
    workers: int = 1


@dataclass
class Loop:
    """Hands out tasks, takes in results, saves; and commits beside that, one group after the other."""

    store: Path
    engine: Engine
    device: str
    reducers: list[Reducer]
    report: RunReport
    checkpoint_every_s: float
    progress: Progress
    still_writes: Callable[[], None] = lambda: None
    """Raises where another run has become the store's writer."""
    clock: Callable[[], float] = time.monotonic
    in_background: InBackground | None = None
    """What commits; None: a thread, or this one where there is one worker, which may compute in this process."""

    def __post_init__(self) -> None:
        self._waiting = deque((reducer, task) for reducer in self.reducers for task in reducer.todo)
        self._running: dict[str, tuple[Reducer, Task]] = {}
        self._num_early = 0
        """Results that a reducer holds until those before them are in."""
        self._saved_at = self.clock()
        self._save_took_s = 0.0
        self._started_at = time.time()
        self._stop = StopRequest(self.progress.note)
        self._commits: dict[Reducer, Future[Attributes]] = {}
        """Those that go on, in their order."""
        beside: InBackground = ThreadPoolExecutor(1).submit if self.engine.num_workers > 1 else _now
        self._begin_commit = self.in_background or beside

    def run(self) -> None:
        """Run to the end. Raises Interrupted after saving, if a signal asked for it."""
        start = self.clock()
        with self.progress.running(self.reducers, self.store) as took, self._stop.listening():
            try:
                self._publish_complete()  # what a former run finished but didn't commit
                while self._waiting or self._running:
                    self._hand_out()
                    if not self._running:  # the next group begins when one of those before it is committed
                        self._finish_commit()
                        continue
                    outcome = self.engine.next_result(timeout_s=0.5)
                    if outcome is not None:
                        self._take(outcome, took)
                    self._publish_complete()
                    if self.clock() - self._saved_at >= self._checkpoint_pause_s():
                        self._save()
                    self._stop.check()
                while self._commits:
                    self._finish_commit()
            finally:
                self._let_commits_end()
                self._save()
                self.report.wall_s = self.clock() - start

    def _hand_out(self) -> None:
        """At most 2 x workers results may wait for an earlier one: no task further ahead than that is begun."""
        ahead = 2 * self.engine.num_workers + 1
        while self._waiting and len(self._running) + self._num_early < ahead and self.engine.has_room():
            reducer, task = self._waiting[0]
            if reducer not in self.reducers[: reducer.at_once]:
                break  # until one of those before it is committed
            self._waiting.popleft()
            self._tell(reducer)  # at its first task, of what a former run has added up
            self._running[task.key] = reducer, task
            self.engine.submit(task)
        if self.engine.num_workers > 1:  # meanwhile they compute
            for reducer in {reducer for reducer, _ in self._running.values()}:
                reducer.get_ready()

    def _take(self, outcome: Outcome, took: Took) -> None:
        reducer, task = self._running.pop(outcome.key)
        before = reducer.num_done
        reducer.take(outcome)
        self._num_early += 1 - (reducer.num_done - before)
        self._tell(reducer)
        self.report.tokens += outcome.result.tokens
        self.report.model_s += outcome.model_s
        self.report.prepare_s += outcome.prepare_s
        took(reducer, task, outcome.result.tokens)

    def _tell(self, reducer: Reducer) -> None:
        if not reducer.is_complete and (news := reducer.news()) is not None:
            self.engine.tell(*news)

    def _publish_complete(self) -> None:
        """Begin to commit what is complete, and note what is committed."""
        for reducer in self.reducers:
            if reducer.is_complete and reducer not in self._commits:
                self._commits[reducer] = self._begin_commit(partial(self._commit, reducer))
        while self._commits and next(iter(self._commits.values())).done():
            self._finish_commit()

    def _commit(self, reducer: Reducer) -> Attributes:
        start = self.clock()
        facts = {
            "versions": versions(),
            "device": self.device,
            "started": self._started_at,
            "finished": time.time(),
            "workers": self.engine.num_workers,
        }
        self.still_writes()
        attributes = reducer.publish(facts)
        self.report.write_s += self.clock() - start
        return attributes

    def _finish_commit(self) -> None:
        """Wait for the first commit, and note it, or raise what it raised."""
        reducer, commit = next(iter(self._commits.items()))
        self.report.groups[reducer.plan.group] = commit.result()
        self.reducers.remove(reducer)
        del self._commits[reducer]

    def _let_commits_end(self) -> None:
        """Where the run ends early: nobody else may write before the thread has ended, whatever signals say."""
        for commit in self._commits.values():
            commit.cancel()
        while self._commits:
            try:
                reducer, commit = next(iter(self._commits.items()))
                if not commit.cancelled() and commit.exception() is None:
                    self._finish_commit()
                self._commits.pop(reducer, None)
            except Interrupted:
                self.progress.note("writing what is complete first")

    def _save(self) -> None:
        """Save what goes on; a group may be complete where committing it failed, or was not begun."""
        start = self.clock()
        for reducer in self.reducers:
            if reducer not in self._commits:
                reducer.save()
        self._saved_at = self.clock()
        self._save_took_s = self._saved_at - start
        self.report.write_s += self._save_took_s

    def _checkpoint_pause_s(self) -> float:
        """So long that checkpoints take no larger share of the time, however large they are; 0: one whenever it can."""
        return self.checkpoint_every_s and max(self.checkpoint_every_s, self._save_took_s / _CHECKPOINT_SHARE)


def _now(work: Callable[[], Attributes]) -> "Future[Attributes]":
    """Commit at once: two corpora's sums aren't there at a time."""
    done: Future[Attributes] = Future()
    done.set_result(work())
    return done
