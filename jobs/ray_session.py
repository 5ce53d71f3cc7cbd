"""The processes of a Ray that we started, and a guard that ends them when the run can't.

Ray's core ends the driver's process on the spot when its raylet is gone, without an exception; and a driver may be
killed. So a process beside it waits for its end: `python -m neurotally.jobs.ray_session SESSION PID...`, which
reads from the driver. The driver closes with a word when it has tidied up; if its end comes without, the guard
tells why, where one of Ray's processes `PID` is gone, and ends what is left of this session: the next run may have
begun one of its own meanwhile.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

SESSION_VARIABLE = "NEUROTALLY_RAY_SESSION"
"""Set in the environment of a Ray that we start; its processes inherit it."""
_KILL_WAIT_S = 5.0
_TIDY = b"tidy"


def ray_ended(name: str) -> str:
    """What to say where a process without which Ray waits for ever is gone."""
    return f"Ray's process {name} ended; the same command goes on from the last checkpoint"


def processes_of(session: str) -> list[psutil.Process]:
    """The processes of a session, other than this one."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(SESSION_VARIABLE) == session and process.pid != os.getpid():
                found.append(process)
    return found


def end_leftovers(session_file: Path) -> None:
    """End the processes of a Ray whose driver was killed: its workers go by themselves, some of its agents don't."""
    if not session_file.exists():
        return
    _end_session(session_file.read_text(errors="replace"))
    session_file.unlink(missing_ok=True)


def _end_session(session: str) -> None:
    """Until none is found: one that is killed may just have started another."""
    while left := processes_of(session):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(left, timeout=_KILL_WAIT_S)
        if alive:
            break


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Guard:
    """The process beside a driver, which outlives its end, its group's and its terminal's."""

    def __init__(self, session: str, ray_processes: Iterable[psutil.Process]):
        watched = [str(process.pid) for process in ray_processes]
        command = [sys.executable, "-m", __name__, session, *watched]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd=os.sep
        )

    def dismiss(self) -> None:
        """Let it go: the driver has tidied up."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(_TIDY)
            self._process.stdin.close()
        self._process.wait()


def _guard(session: str, watched: Iterable[int]) -> None:
    processes = {}
    for pid in watched:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            processes[process.name()] = process
    if sys.stdin.buffer.read() == _TIDY:
        return
    gone = [name for name, process in processes.items() if is_gone(process)]
    if gone:
        print(f"neurotally: {ray_ended(gone[0])}", file=sys.stderr)
    _end_session(session)


if __name__ == "__main__":
    _guard(sys.argv[1], map(int, sys.argv[2:]))
