"""Runs killed at random, resumed until done: the store of an undisturbed run, bit for bit, and nobody left behind.

Each seed draws a command (`profile` half of the time, else a pass), one to three disturbed launches and a last one in
peace. A launch with one worker is killed just before one of its changes of files, of every kind of change in turn, or
gets a signal at a random moment; one with two or three workers, on Ray, has its driver, a worker, the raylet, the GCS
or the whole process group hit by SIGKILL, SIGTERM or SIGINT, or stopped for some seconds (SIGSTOP), while it starts or
while it works.
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from bench.attack.contents import contents, difference, leftovers
from bench.attack.findings import Findings
from bench.attack.launch import Fault, Launch, Outcome, left_behind, run, start
from bench.attack.material import PASSES, SMALL_TASKS, Material, make_material

from neurotally.profiler.store import RUN_FOLDER

_ENDS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGSTOP: 0}
_RAY_ENDS = {0, 1, 2, 130, 143, -9}
_TARGETS = ("driver", "worker", "raylet", "gcs_server", "group")
_LONGEST_STOP_S = 3.0
_LIMIT_S = 300.0
_RAY_LIMIT_S = 400.0
_MOST_DISTURBED = 3


@dataclass(frozen=True)
class Reference:
    """An undisturbed run of a command."""

    contents: dict[str, str]
    leftovers: list[str]
    changes: tuple[str, ...]
    """Of files, with one worker: see `Outcome.changes`."""
    kinds: Iterator[str]
    """Of changes, in a drawn order, over and over."""
    seconds: float
    """With one worker."""
    ray_seconds: float
    """With two."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of this attack."""
    parser.add_argument("--runs", type=int, default=80, help="Seeds whose launches all have one worker.")
    parser.add_argument("--ray-runs", type=int, default=20, help="Seeds whose launches have one to three workers.")
    parser.add_argument("--documents", type=int, default=40, help="In each of the three corpora.")
    parser.add_argument("--commands", default=",".join(["profile", *PASSES]), metavar="NAME,...")


def attack(arguments: argparse.Namespace, folder: Path) -> Findings:
    """All seeds."""
    findings = Findings("kills", seed=arguments.seed, runs=arguments.runs, ray_runs=arguments.ray_runs)
    os.environ["RAY_TMPDIR"] = str(folder)
    material = make_material(folder / "material", arguments.seed, arguments.documents)
    commands = arguments.commands.split(",")
    base = folder / "base"
    if set(commands) & set(PASSES):
        outcome = run(material.command("profile", base), folder / "log", settings=SMALL_TASKS)
        if outcome.status:
            raise RuntimeError(f"profile failed undisturbed: {outcome.err.decode()}")
    references: dict[str, Reference] = {}
    for number in range(arguments.runs + arguments.ray_runs):
        rng = random.Random(f"{arguments.seed} {number}")
        most_workers = 1 if number < arguments.runs else 3
        passes = [name for name in commands if name != "profile"]
        command = "profile" if not passes or ("profile" in commands and rng.random() < 0.5) else rng.choice(passes)
        if command not in references:
            references[command] = undisturbed(material, command, base, folder, arguments.ray_runs > 0)
        _Seed(f"run {number} ({command})", material, command, references[command], folder, findings, rng).run(
            base, most_workers
        )
    return findings


def undisturbed(material: Material, command: str, base: Path, folder: Path, on_ray: bool) -> Reference:
    """Run undisturbed, on one worker and, where Ray is attacked, on two."""
    path = new_store(command, base, folder / f"reference-{command}")
    log, arguments = folder / "log", material.command(command, path)
    outcome = run(arguments, log, settings=SMALL_TASKS, fault=Fault(path, 0))
    if outcome.status:
        raise RuntimeError(f"{command} failed undisturbed: {outcome.err.decode()}")
    alone, left = contents(path), leftovers(path)
    ray_seconds = 0.0
    if on_ray:
        other = new_store(command, base, folder / f"reference-{command}-2")
        on_two = run(
            material.command(command, other, "--workers", 2), log, _RAY_LIMIT_S, settings=SMALL_TASKS, fresh=True
        )
        if on_two.status or (differs := difference(contents(other), alone)):
            raise RuntimeError(f"{command} on two workers: {differs if not on_two.status else on_two.err.decode()}")
        ray_seconds = on_two.seconds
    kinds = sorted(set(outcome.changes))
    random.Random(command).shuffle(kinds)
    return Reference(alone, left, outcome.changes, itertools.cycle(kinds), outcome.seconds, ray_seconds)


def new_store(command: str, base: Path, path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    if command != "profile":
        shutil.copytree(base, path)
    return path


class _Seed:
    """One store: disturbed launches, a last one in peace, and what is there then."""

    def __init__(
        self, where: str, material: Material, command: str, reference: Reference, folder: Path, findings: Findings,
        rng: random.Random,
    ):  # fmt: skip
        self._where = where
        self._material = material
        self._command = command
        self._reference = reference
        self._folder = folder
        self._findings = findings
        self._rng = rng
        self._seen: set[psutil.Process] = set()
        self._run_ids: set[str] = set()
        self._story: list[str] = []

    def run(self, base: Path, most_workers: int) -> None:
        """From nothing to the comparison."""
        self._store = new_store(self._command, base, self._folder / "store")
        for _ in range(self._rng.randint(1, _MOST_DISTURBED)):
            workers = self._rng.randint(1, most_workers)
            self._disturb(workers)
        self._finish(self._rng.randint(1, most_workers))
        self._findings.count("stores")

    def _disturb(self, workers: int) -> None:
        if workers > 1:
            self._hit_ray(workers)
        elif self._rng.random() < 0.6:
            kind, operation = draw_change(self._reference, self._rng)
            self._story.append(f"kill at change {operation} of {len(self._reference.changes)} ({kind})")
            outcome = self._start(1, Fault(self._store, operation)).finish(_LIMIT_S)
            self._note(outcome, {0, -9})
            self._findings.count("kills at a change of files", int(outcome.status == -9))
        else:
            number = self._rng.choice(list(_ENDS))
            launch = self._start(1)
            launch.wait_ready()
            self._story.append(f"{number.name} to the driver")
            self._wait(launch, self._rng.uniform(0, 1.1 * self._reference.seconds))
            again = self._rng.random() < 0.2
            self._send(launch.pid, number, "driver")
            if again:
                self._wait(launch, self._rng.uniform(0, 0.5))
                self._send(launch.pid, number, "driver")
            self._note(launch.finish(_LIMIT_S), {0, _ENDS[number]})

    def _hit_ray(self, workers: int) -> None:
        """While it starts, or when it has begun to work."""
        launch, began = self._start(workers), time.time()
        launch.wait_ready()
        whole, at_work = self._reference.ray_seconds, self._rng.random() < 0.6
        if at_work:
            deadline = time.monotonic() + 2 * whole
            while not self._works(began) and not launch.poll() and time.monotonic() < deadline:
                self._wait(launch, 0.05)
            self._wait(launch, self._rng.uniform(0, self._reference.seconds))
        else:
            self._wait(launch, self._rng.uniform(0, whole))
        target, number = self._rng.choice(_TARGETS), self._rng.choice([signal.SIGKILL, *_ENDS])
        if target in ("worker", "raylet", "gcs_server") and number == signal.SIGINT:
            number = signal.SIGTERM
        self._story.append(f"{number.name} to {target} of {workers} workers, {'at work' if at_work else 'at any time'}")
        processes = launch.processes()
        self._seen.update(processes[1:])
        if target in ("driver", "group"):
            self._send(launch.pid, number, target)
        elif victims := [process for process in processes[1:] if _is(process, target)]:
            self._send(self._rng.choice(victims).pid, number, target)
        self._note(launch.finish(_RAY_LIMIT_S), _RAY_ENDS)

    def _finish(self, workers: int) -> None:
        """The launch in peace: it must bring the store to what an undisturbed run makes."""
        self._story.append(f"last launch, {workers} workers")
        outcome = self._start(workers).finish(_RAY_LIMIT_S if workers > 1 else _LIMIT_S)
        self._note(outcome, {0})
        where = f"{self._where}: {'; '.join(self._story)}"
        if outcome.status != 0:
            self._findings.fail("lost", where, "the store can't be finished")
        elif differs := difference(contents(self._store), self._reference.contents):
            self._findings.fail("lost", where, f"other than undisturbed: {differs}")
        elif (left := leftovers(self._store)) != self._reference.leftovers:
            self._findings.fail(
                "files left behind", where, ", ".join(sorted(set(left) - set(self._reference.leftovers)))
            )
        for process in left_behind(self._seen, self._run_ids):
            self._findings.fail("process left behind", where, process)

    def _start(self, workers: int, fault: Fault | None = None) -> Launch:
        more = ["--workers", workers] if workers > 1 else []
        arguments = self._material.command(self._command, self._store, *more)
        launch = start(arguments, self._folder / "log", SMALL_TASKS, fault, fresh=workers > 1)
        if launch.run_id:
            self._run_ids.add(launch.run_id)
        self._findings.count("launches on Ray" if workers > 1 else "launches with one worker")
        return launch

    def _note(self, outcome: Outcome, allowed: set[int]) -> None:
        self._findings.check(f"{self._where}: {'; '.join(self._story)}", outcome, allowed)

    def _send(self, pid: int, number: signal.Signals, target: str) -> None:
        send = os.killpg if target == "group" else os.kill
        with contextlib.suppress(ProcessLookupError):
            send(pid, number)
            self._findings.count(f"{number.name} to {target}")
            if number == signal.SIGSTOP:
                time.sleep(self._rng.uniform(0, _LONGEST_STOP_S))
                send(pid, signal.SIGCONT)

    def _wait(self, launch: Launch, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not launch.poll():
            time.sleep(min(0.01, seconds))

    def _works(self, since: float) -> bool:
        """Whether the run has noted its plan or its progress."""
        run_folder = self._store / RUN_FOLDER
        files = [run_folder / "progress.json", *run_folder.glob("*/*/plan.json")]
        for file in files:
            with contextlib.suppress(OSError):
                if file.stat().st_mtime >= since:
                    return True
        return False


def draw_change(reference: Reference, rng: random.Random) -> tuple[str, int]:
    """The next kind of change of files, so that the rare ones are met too; the number, from 1, of one of them."""
    kind = next(reference.kinds)
    at = rng.choice([number for number, change in enumerate(reference.changes, 1) if change == kind])
    return kind, at + rng.choice((0, 1))


def _is(process: psutil.Process, target: str) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name().startswith("ray::_Actor" if target == "worker" else target)
    return False
