"""Run the end of a corpus, or of a pass, and let it die or fail at one file operation after the other.

    python tests/dying.py profile|pass FOLDER [STRIDE]

Each trial is a forked process on a copy of an unfinished store, watched by an audit hook, that at its n-th operation
inside the store is

    killed    before the operation
    torn      when a file has been opened and holds half a line
    full      from there on: nothing new can be written
    refused   by an error of the disk, once

Then the same work is done again, undisturbed, and must leave the bits that an undisturbed run leaves, and nothing
else. Every operation that moves, replaces or removes outside a group is tried; of those that write or remove the many
files of a group, every STRIDE-th (1: all). Prints what went wrong, and exits with 1 if anything did.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.corpora import list_corpus
from neurotally.jobs.engines.in_process import InProcessEngine
from neurotally.jobs.loop import Loop, RunReport
from neurotally.jobs.model_config import ModelConfig
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers.corpus_sums import CorpusSums
from neurotally.jobs.reducers.fold import Fold
from neurotally.jobs.reducers.parts import Part, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.status import status
from neurotally.jobs.store_identity import open_store
from neurotally.jobs.store_writer import writer_lock
from neurotally.kernels.statistics import STATISTICS
from neurotally.kernels.trigger_lists import UnitTriggers
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts
from neurotally.profiler.neuron_sums import UnitNeurons
from neurotally.profiler.passes.worker import PassConfig, Task, UnitResult

LAYERS, NEURONS, GROUPS = 2, 3, 2
CONFIG = PassConfig("documents", 8, None, 8, 40, GROUPS, 2, keep_texts=True, kernels="plain")
FACTS = ModelFacts(
    id="m", revision=None, architecture="M", checkpoint_dtype="float32", fingerprint="f", tokenizer_fingerprint="t",
    num_layers=LAYERS, num_neurons=NEURONS, width=4, num_heads=1, gated=True, dtype="float32", device_type="cpu",
    device="cpu", attention="sdpa", kernels="plain", row_tokens=8, max_row_tokens=8,
)  # fmt: skip
MODES = ("killed", "torn", "full", "refused")
EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
WHERE = {"torn": {"open"}, "full": {"open", "os.mkdir"}}
"""Operations at which a mode makes a difference."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class NoModelEngine(InProcessEngine):
    """The engine of one process, for jobs that need no model."""

    def start(self) -> Any:
        self._model = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Counting:
    """A pass whose results follow from a task's number; fails at the tasks from `until` on."""

    until: int

    def __call__(self, _model: Any) -> "Counting":
        return self

    def prepare(self, task: Any) -> Any:
        return None

    def hear(self, about: str, news: Any) -> None:
        pass

    def compute(self, task: Any, _prepared: Any) -> Any:
        if task.index >= self.until:
            raise InputError("as far as that")
        rng = np.random.default_rng(task.index)
        if isinstance(task, PartTask):
            return Part({"number": rng.normal(size=4)}, 1)
        count = len(task.names)
        files = [Path(task.source.path, name).read_bytes() for name in task.names]
        return UnitResult(
            neurons=_neurons(rng, task), tokens=7 * count, special_tokens=count, status_n=np.zeros(count, np.uint8),
            sha256_n32=np.stack([np.frombuffer(hashlib.sha256(file).digest(), np.uint8) for file in files]),
            document_tokens_n=np.full(count, 7, np.uint32), restarts=int(task.index == 1),
        )  # fmt: skip


@dataclass(frozen=True)
class PartTask:
    index: int
    size: int = 1

    @property
    def key(self) -> str:
        return str(self.index)


def _neurons(rng: np.random.Generator, task: Task) -> UnitNeurons:
    number, shape = LAYERS * NEURONS, (LAYERS, NEURONS)
    return UnitNeurons(
        {one.name: (7 * rng.random(shape)).astype(one.stored) for one in STATISTICS},
        UnitTriggers(np.ones(number, np.uint32), rng.random(number, np.float32),
                     np.full(number, task.first, np.uint32), np.zeros(number, np.uint32)),
    )  # fmt: skip


def run_profile(path: Path, until: int = sys.maxsize) -> None:
    """The loop of `profile` over a corpus of four units."""
    with writer_lock(path):
        open_store(path, FACTS, CONFIG.to_json())
        listed = list_corpus("a", str(path.parent / "corpora" / "a"), None, path)
        units = listed.units(CONFIG.max_unit_bytes, GROUPS)
        make_sums = partial(CorpusSums, listed, units, CONFIG, LAYERS, NEURONS)
        plan = Plan(
            "corpora/a", [listed.task(unit) for unit in units], listed.identity, partial(Fold, make_sums=make_sums),
            manifest=listed.manifest, noted={"documents": len(listed.manifest.names)},
        )  # fmt: skip
        _run(path, plan, until)


def run_pass(path: Path, until: int = sys.maxsize) -> None:
    """A pass of four parts, of which the last is still to do."""
    schema = {"number": store.ArraySpec("float64", ("part",), np.nan)}
    keep = partial(Parts, assemble=lambda parts: ({"number": parts.blocks("number", 16)}, {}), schema=schema)
    with writer_lock(path):
        open_store(path, FACTS, None)
        _run(path, Plan("numbers/all", [PartTask(index) for index in range(4)], {"parts": 4}, keep, "part"), until)


def _run(path: Path, plan: Plan, until: int) -> None:
    if plan.group not in store.committed_groups(path):
        progress = Progress(quiet=True)
        Loop(path, _engine(until), "cpu", [plan.reducer(path, plan)], RunReport(), 60.0, progress).run()


def _engine(until: int) -> NoModelEngine:
    engine = NoModelEngine(ModelConfig("m"))
    engine.start()
    engine.configure(Counting(until))
    return engine


class Fate:
    """An audit hook: notes every operation inside `path` that changes it, and meddles with the n-th."""

    def __init__(self, path: Path, mode: str = "", step: int = -1):
        self._inside, self._mode, self._step = str(path), mode, step
        self.seen: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        sys.addaudithook(self.watch)
        fsync = os.fsync
        os.fsync = lambda descriptor: (self._note("fsync", f"{self._inside}/fsync"), fsync(descriptor))[1]

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in EVENTS or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not (arguments[2] or 0) & WRITES:
            return
        target = os.fsdecode(arguments[0])
        if target.startswith(self._inside) or not os.path.isabs(target):  # relative ones: rmtree, in an open folder
            self._note(event, target)

    def _note(self, event: str, target: str) -> None:
        with self._lock:
            self.seen.append((event, target))
            step = len(self.seen) - 1
        if self._mode == "full":
            if step >= self._step and event in ("open", "os.mkdir"):
                raise OSError(errno.ENOSPC, "No space left on device", target)
        elif step == self._step:
            if self._mode == "refused":
                raise OSError(errno.EIO, "Input/output error", target)
            if self._mode == "torn" and event == "open":
                self._mode = ""
                Path(target).write_bytes(b'{"half')
            os._exit(9)


def forked(work: Callable[[], None]) -> int:
    """The exit status of `work` in a process of its own: 0, 1 after an exception, 9 if it was killed."""
    if process := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    try:
        work()
    except OSError:
        os._exit(1)
    except BaseException:
        traceback.print_exc()
        os._exit(2)
    os._exit(0)


def bits(path: Path) -> dict[str, Any]:
    """All that is committed, and what of its attributes doesn't depend on the run."""
    volatile = {"started", "finished", "versions", "device", "workers", "tokens_run", "model_seconds", "source_path"}
    found = {}
    for group in store.committed_groups(path):
        arrays = store.read_group(path, group)
        attributes = store.group_attributes(path, group)
        found[group] = {
            **{name: hashlib.sha256(repr(array.tolist()).encode()).hexdigest() for name, array in arrays.items()},
            "attributes": {key: value for key, value in attributes.items() if key not in volatile},
        }
    return found


def make_corpus(folder: Path) -> None:
    """The corpus that `run_profile` reads, beside the store."""
    (folder / "corpora" / "a").mkdir(parents=True)
    for number in range(4):
        (folder / "corpora" / "a" / f"{number}.txt").write_text(f"document {number}")


def main(what: str, folder: Path, stride: int) -> int:
    run = {"profile": run_profile, "pass": run_pass}[what]
    make_corpus(folder)
    begun, whole, trial, noted = (folder / name for name in ("begun", "whole", "trial", "noted.json"))
    run(whole)  # here, so that the forks find imported what it needs

    def begin() -> None:
        with contextlib.suppress(InputError):
            run(begun, until=3)

    forked(begin)

    def listed() -> None:
        fate = Fate(trial)
        run(trial)
        noted.write_text(json.dumps(fate.seen))

    def result(of: Path) -> dict[str, Any]:
        forked(lambda: noted.write_text(json.dumps(bits(of))))
        return json.loads(noted.read_text())

    shutil.copytree(begun, trial)
    forked(listed)
    operations = json.loads(noted.read_text())
    expected = result(whole)
    many = [step for step, (event, target) in enumerate(operations) if _is_one_of_many(event, target)]
    steps = sorted(set(range(len(operations))) - set(many) | set(many[::stride]))
    failures = 0
    trials = 0
    for mode in MODES if stride == 1 else MODES[:-1]:
        for step in steps:
            if operations[step][0] not in WHERE.get(mode, EVENTS | {"fsync"}):
                continue
            trials += 1
            shutil.rmtree(trial)
            shutil.copytree(begun, trial)

            def disturbed(mode: str = mode, step: int = step) -> None:
                Fate(trial, mode, step)
                run(trial)

            def again() -> None:
                for group, found in bits(trial).items():
                    assert found == expected[group], f"{group} was committed with other bits"
                run(trial)
                assert bits(trial) == expected, "other bits"
                assert status(trial)["state"] == "complete"
                left = {entry.name for entry in (trial / ".run").iterdir()}
                assert left == {"lock"}, left

            code = forked(disturbed)
            if code == 2 or forked(again):
                failures += 1
                print(f"{mode} at operation {step}, {operations[step]}: exit {code}")
    print(f"{trials} trials at {len(steps)} of {len(operations)} operations, {failures} failures")
    return int(failures > 0)


def _is_one_of_many(event: str, target: str) -> bool:
    """Of the many files of a group that is being written, forced to the disk or removed; or a folder that is there."""
    return (
        event in ("fsync", "os.mkdir")
        or not os.path.isabs(target)
        or any(part == "finished" or part.startswith("checkpoint-") for part in Path(target).parent.parts)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1))
