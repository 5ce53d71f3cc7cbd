"""The processes of a Ray that we started, and a guard that ends them when the run can't.

Ray's core ends the driver's process on the spot when its raylet is gone, or its GCS while Ray starts, without an
exception; and a driver may be killed. So a process beside it waits for its end, from before Ray starts. It is this
file, run as a module, and reads from the driver. The driver closes with a word when it has tidied up; if its end comes
without, the guard tells why, where one of Ray's processes is gone, and ends what is left of this session: the next run
may have begun one of its own meanwhile.
"""

import contextlib
import os
import select
import subprocess
import sys
from pathlib import Path

import psutil

SESSION_VARIABLE = "NEUROTALLY_RAY_SESSION"
"""Set in the environment of a Ray that we start; its processes inherit it."""
_RAY_PROCESSES = ("gcs_server", "raylet")
"""Without these nothing goes on; as Ray starts them."""
_LOOK_EVERY_S = 0.5
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


def ray_processes_of(session: str) -> dict[str, psutil.Process]:
    """By name those of a session without which nothing goes on."""
    found = {}
    for process in processes_of(session):
        with contextlib.suppress(psutil.Error):  # some of Ray's are gone at once
            if (name := process.name()) in _RAY_PROCESSES:
                found[name] = process
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

    def __init__(self, session: str):
        command = [sys.executable, "-m", __name__, session]
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


def _guard(session: str) -> None:
    expected = {_RAY_PROCESSES[0]}  # which is there, or was, but where the driver was killed at once
    while len(expected) < len(_RAY_PROCESSES) and not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
        expected.update(ray_processes_of(session))
    if sys.stdin.buffer.read() == _TIDY:
        return
    left = ray_processes_of(session)
    gone = [name for name in _RAY_PROCESSES if name in expected and name not in left]
    if gone:
        print(f"neurotally: {ray_ended(gone[0])}", file=sys.stderr)
    _end_session(session)


if __name__ == "__main__":
    _guard(sys.argv[1])
