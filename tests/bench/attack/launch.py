"""Runs of the command line that may be killed, may hang, and whose every word is kept.

`start` runs a command in a process and session of its own: forked from this one, where all that is slow to import is
loaded already, or from a fresh interpreter (`fresh`), as Ray needs it. A `Fault` ends a forked run at one of its
changes of files, counted: by SIGKILL just before the change, or with the error of a full disk in its place.
"""

import contextlib
import errno
import importlib
import inspect
import json
import os
import re
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PRELOADED = (
    "torch", "transformers", "pyarrow.parquet", "zarr", "scipy.stats", "matplotlib.figure", "pygments.lexers", "jinja2",
    "neurotally.jobs.cli", "neurotally.jobs.door", "neurotally.jobs.passes.neurons", "neurotally.jobs.passes.embed",
    "neurotally.jobs.passes.lens", "neurotally.jobs.passes.ablation", "neurotally.jobs.passes.agreement",
    "neurotally.analysis.keys.triggers", "neurotally.analysis.report.page", "neurotally.analysis.render.charts",
    "neurotally.analysis.keys.patterns_study", "neurotally.analysis.languages.lape_study",
    "neurotally.analysis.layers.mexa_study",
)  # fmt: skip
RUN_VARIABLE = "NEUROTALLY_ATTACK"
"""In the environment of fresh runs and so of all that they start: tells their processes from anybody else's."""
MOST_BYTES = 12 * 2**30
"""Of address space: a run that wants more is a finding, and must not take the machine down."""
_GRACE_S = 15.0

Settings = Mapping[str, Mapping[str, Any]]
"""MODULE:FUNCTION: {keyword: value}; the defaults that a run changes before it begins."""

_FRESH = """
import importlib, inspect, json, os, pathlib
for place, defaults in json.loads(os.environ["NEUROTALLY_ATTACK_SETTINGS"]).items():
    module, _, name = place.partition(":")
    inspect.unwrap(getattr(importlib.import_module(module), name)).__kwdefaults__.update(defaults)
from neurotally.jobs.cli import main
pathlib.Path(os.environ["NEUROTALLY_ATTACK_READY"]).touch()
main()
"""


@dataclass(frozen=True)
class Fault:
    """What happens at the `operation`-th change (from 1) of a file below `below`; 0: nothing, changes are counted."""

    below: Path
    operation: int
    kind: str = "kill"
    """`kill`, or `full`: this change and all after it meet a full disk."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: int | None
    """As Python gives it: negative for a signal; None for a run that was ended at its time limit."""
    out: bytes
    err: bytes
    seconds: float
    peak_bytes: int
    changes: tuple[str, ...] = ()
    """Of files, in order, where a Fault asked for them: what was done, and below which folder or to which file."""

    @property
    def last_line(self) -> str:
        """Of stderr, to show."""
        lines = self.err.decode(errors="replace").strip().splitlines()
        return ascii(lines[-1])[1:-1][:300] if lines else ""


@dataclass
class Launch:
    """A run that was started."""

    pid: int
    folder: Path
    """Holds its `out`, `err` and `ready`."""
    run_id: str | None
    started: float = field(default_factory=time.monotonic)
    ended: tuple[int, Any] | None = None

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.ended is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.ended = (os.waitstatus_to_exitcode(status), usage)
        return self.ended is not None

    def wait_ready(self, limit_s: float = 120.0) -> None:
        """Until the command line has the word."""
        deadline = time.monotonic() + limit_s
        while not (self.folder / "ready").exists() and not self.poll() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.01)

    def processes(self) -> list[psutil.Process]:
        """Itself and all that it started and that is still its descendant."""
        try:
            own = psutil.Process(self.pid)
            return [own, *own.children(recursive=True)]
        except psutil.Error:
            return []

    def finish(self, limit_s: float, idle_s: float | None = None) -> Outcome:
        """Wait for its end; end it and its group at the limit, or when it computes nothing for `idle_s`."""
        deadline = time.monotonic() + limit_s
        busy, busy_at = 0.0, time.monotonic()
        while not self.poll() and time.monotonic() < deadline:
            time.sleep(0.005)
            if idle_s is not None and time.monotonic() > busy_at + idle_s:
                before, busy, busy_at = busy, self._computed_s(), time.monotonic()
                if busy == before:
                    break
        hung = not self.poll()
        if hung:
            _kill_group(self.pid)
            while not self.poll():
                time.sleep(0.005)
        assert self.ended is not None
        status, usage = self.ended
        if self.run_id and status == 1:
            _still_there(set(), {self.run_id})  # the guard says why the driver ended
        counted = self.folder / "changes"
        return Outcome(
            status=None if hung else status,
            out=(self.folder / "out").read_bytes(),
            err=(self.folder / "err").read_bytes(),
            seconds=time.monotonic() - self.started,
            peak_bytes=usage.ru_maxrss * 1024,
            changes=tuple(json.loads(counted.read_text())) if counted.exists() else (),
        )

    def _computed_s(self) -> float:
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return float("inf")
        return times.user + times.system


def preload() -> None:
    """Import all that commands need, once, and keep it from starting threads that a fork would lose."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("MPLBACKEND", "agg")
    for name in PRELOADED:
        importlib.import_module(name)
    importlib.import_module("torch").set_num_threads(1)


def start(
    arguments: Sequence[object],
    folder: Path,
    settings: Settings | None = None,
    fault: Fault | None = None,
    fresh: bool = False,
    cwd: Path | None = None,
) -> Launch:
    """Start `neurotally ARGUMENTS`; `folder` is emptied for what it prints."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err", "ready", "changes"):
        (folder / name).unlink(missing_ok=True)
    run_id = f"{os.getpid()}-{time.monotonic_ns()}" if fresh else None
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            _redirect(folder)
            os.chdir(cwd or folder)
            if fresh:
                _run_fresh(arguments, folder, settings or {}, run_id or "")
            _run_forked([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments], folder, settings, fault)
        finally:
            os._exit(70)
    return Launch(pid, folder, run_id)


def run(
    arguments: Sequence[object], folder: Path, limit_s: float = 300.0, idle_s: float | None = None, **options: Any
) -> Outcome:
    """Run `neurotally ARGUMENTS` to its end, or to a limit."""
    return start(arguments, folder, **options).finish(limit_s, idle_s)


def left_behind(seen: set[psutil.Process], run_ids: set[str]) -> list[str]:
    """Processes of ended runs that don't end by themselves; they are then ended here. `seen`: descendants."""
    names = []
    for process in _still_there(seen, run_ids):
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
            process.kill()
    return names


def _still_there(seen: set[psutil.Process], run_ids: set[str]) -> set[psutil.Process]:
    """Those that don't end within _GRACE_S."""
    deadline = time.monotonic() + _GRACE_S
    while alive := {process for process in seen if _is_alive(process)} | _of_runs(run_ids):
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return alive


def _is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _of_runs(run_ids: set[str]) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter() if run_ids else ():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(RUN_VARIABLE) in run_ids and _is_alive(process):
                found.add(process)
    return found


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _redirect(folder: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)


def _run_fresh(arguments: Sequence[object], folder: Path, settings: Settings, run_id: str) -> None:
    environment = {
        **os.environ,
        RUN_VARIABLE: run_id,
        "NEUROTALLY_ATTACK_SETTINGS": json.dumps(settings),
        "NEUROTALLY_ATTACK_READY": str(folder / "ready"),
    }
    os.execve(sys.executable, [sys.executable, "-c", _FRESH, *map(str, arguments)], environment)


def _run_forked(arguments: list[str], folder: Path, settings: Settings | None, fault: Fault | None) -> None:
    """Run the command in this process and end it as the interpreter would, threads included."""
    from neurotally.jobs.cli import main

    sys.stdout.reconfigure(encoding="utf-8", errors="strict")  # type: ignore[union-attr]
    sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for place, defaults in (settings or {}).items():
        module, _, name = place.partition(":")
        function = inspect.unwrap(getattr(importlib.import_module(module), name))
        assert defaults.keys() <= function.__kwdefaults__.keys(), f"{place} has no {sorted(defaults)}"
        function.__kwdefaults__.update(defaults)
    sys.argv = ["neurotally", *arguments]
    (folder / "ready").touch()
    changes = _count_changes(fault) if fault else None
    status: Any = 0
    try:
        main()
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    if changes is not None:
        (folder / "changes").write_text(json.dumps(changes))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_LABEL_PARTS = 4


def _count_changes(fault: Fault) -> list[str]:
    """Note this process's changes of files and strike at the one asked for."""
    lock, noted, below = threading.Lock(), list[str](), os.fspath(fault.below)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event == "open":
            _, mode, flags = values
            if not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not set(str(mode)) & set("wax+"):
                return
        elif event not in _CHANGES:
            return
        path = os.fsdecode(values[0]) if isinstance(values[0], (str, bytes, os.PathLike)) else ""
        if not path.startswith(below):
            return
        parts = path.removeprefix(below).strip("/").split("/")[:_LABEL_PARTS]
        with lock:
            noted.append(f"{event} {re.sub('[0-9a-f]{32}|[0-9]+', 'N', '/'.join(parts))}")
            number = len(noted)
        if fault.operation and number >= fault.operation:
            if fault.kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif event in ("open", "os.mkdir", "os.rename"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    sys.addaudithook(hook)
    return noted
