"""Commits beside the loop, where several workers compute: in a thread, with workers that compute nothing."""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from bench import bench_scale
from bench.bench_scale import SIZES, measure
from reference import everything
from synthetic import SyntheticEngine

from neurotally.jobs.engines.engine import Outcome
from neurotally.jobs.interrupts import Interrupted
from neurotally.jobs.reducers.fold import Fold
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

MANY: dict[str, Any] = {"size": "tiny", "unit_s": 15.5, "units": 16, "corpora": 4, "triggers": 8, "groups": 4}


class Noted(Fold):
    """Notes what happens in which order; `publishing` meddles with commits."""

    seen: list[str]
    publishing: Callable[[str], None]

    def take(self, outcome: Outcome) -> None:
        super().take(outcome)
        self.seen.append(f"take {self.plan.group[-3:]}")

    def publish(self, facts: Any) -> dict[str, Any]:
        name = self.plan.group[-3:]
        self.seen.append(f"begin {name}")
        type(self).publishing(name)
        attributes = super().publish(facts)
        self.seen.append(f"end {name}")
        return attributes


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(SIZES, "tiny", (2, 40))
    monkeypatch.setattr(bench_scale, "Fold", Noted)
    seen: list[str] = []
    monkeypatch.setattr(Noted, "seen", seen, raising=False)
    monkeypatch.setattr(Noted, "publishing", lambda name: None, raising=False)
    return seen


@pytest.fixture
def threaded(monkeypatch: pytest.MonkeyPatch, seen: list[str]) -> list[str]:
    """With commits in a thread, as of Ray's workers."""

    class Engine(SyntheticEngine):
        def __init__(self, *settings: Any):
            super().__init__(*settings)
            self.in_background = ThreadPoolExecutor(1).submit  # type: ignore[method-assign]

    monkeypatch.setattr(bench_scale, "SyntheticEngine", Engine)
    return seen


@pytest.mark.slow
def test_results_are_taken_while_a_corpus_is_committed_and_a_third_waits(
    tmp_path: Path, threaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_the_next_is_complete(name: str) -> None:
        limit = time.monotonic() + 30
        while name == "000" and threaded.count("take 001") < MANY["units"] and time.monotonic() < limit:
            time.sleep(0.01)

    monkeypatch.setattr(Noted, "publishing", until_the_next_is_complete)
    measure(tmp_path / "beside", 3, **MANY)
    committed = threaded.index("end 000")
    assert [event for event in threaded[:committed] if event.startswith("take 001")] == ["take 001"] * MANY["units"]
    assert "take 002" not in threaded[:committed]  # two corpora have sums at a time
    assert [event for event in threaded if event.startswith("begin")] == [f"begin 00{number}" for number in range(4)]
    monkeypatch.setattr(bench_scale, "SyntheticEngine", SyntheticEngine)
    measure(tmp_path / "alone", 1, **MANY)
    assert everything(tmp_path / "beside") == everything(tmp_path / "alone")


@pytest.mark.slow
def test_a_commit_that_fails_ends_the_run_and_the_same_command_goes_on(
    tmp_path: Path, threaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        if name == "001":
            raise InputError("no space left")

    monkeypatch.setattr(Noted, "publishing", fail)
    with pytest.raises(InputError, match="no space left"):
        measure(tmp_path / "s", 3, **MANY)
    assert store.committed_corpora(tmp_path / "s") == ["000"]
    assert (tmp_path / "s/.run/corpora/001/checkpoint-16").is_dir()
    monkeypatch.setattr(Noted, "publishing", lambda name: None)
    threaded.clear()
    measure(tmp_path / "s", 3, **MANY)
    assert not {"take 000", "take 001"} & set(threaded)
    measure(tmp_path / "whole", 1, **MANY)
    assert everything(tmp_path / "s") == everything(tmp_path / "whole")


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.slow
def test_a_signal_leaves_no_thread_behind_that_writes(
    signals: int, tmp_path: Path, threaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(name: str) -> None:
        for _ in range(signals if name == "000" else 0):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(0.3)

    monkeypatch.setattr(Noted, "publishing", interrupt)
    with pytest.raises(Interrupted):
        measure(tmp_path / "s", 3, **MANY)
    assert "end 000" in threaded
    assert store.committed_corpora(tmp_path / "s") == ["000"]
    monkeypatch.setattr(Noted, "publishing", lambda name: None)
    measure(tmp_path / "s", 3, **MANY)
    measure(tmp_path / "whole", 1, **MANY)
    assert everything(tmp_path / "s") == everything(tmp_path / "whole")
