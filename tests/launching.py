"""Runs of the command line that are killed, or get a signal, in a process and a session of their own.

They are forked from a server that has imported PyTorch and what else is slow to import once, for all of a test process.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["neurotally.jobs.passes.neurons", "neurotally.jobs.engines.ray_engine", __name__])


def start_server() -> None:
    """Start the server, if it doesn't run: it keeps the environment that this process has then."""
    forkserver.ensure_running()


class Launch:
    """`neurotally ARGUMENTS`, started; what it prints goes to files beside `outputs`."""

    def __init__(self, arguments: list[str], outputs: Path, **defaults: Any):
        """`defaults`: of the keywords of `neurotally.jobs.profile`."""
        self._out, self._err = (outputs.with_suffix(suffix) for suffix in (".out", ".err"))
        for file in (self._out, self._err):
            file.write_text("")
        what = (arguments, self._out, self._err, dict(os.environ), defaults)
        self._process: ForkServerProcess = _SERVER.Process(target=_run, args=what)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    @property
    def errors(self) -> str:
        """What is on stderr by now."""
        return self._err.read_text()

    def finish(self, timeout_s: float = 120) -> tuple[int, str, str]:
        """Wait for its end: its status, stdout and stderr."""
        self._process.join(timeout_s)
        assert self.status is not None, f"it still runs after {timeout_s} s: {self.errors}"
        return self.status, self._out.read_text(), self.errors

    def wait_until_it_says(self, text: str, timeout_s: float = 120) -> None:
        """Until `text` is on stderr."""
        deadline = time.monotonic() + timeout_s
        while text not in self.errors:
            assert self.status is None, self.errors
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.002)


def _run(
    arguments: list[str], out: Path, err: Path, environment: Mapping[str, str], defaults: Mapping[str, Any]
) -> None:
    os.setsid()
    # As in a terminal: runs that a shell put in the background, and these tests with them, would ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    from neurotally.jobs import profile
    from neurotally.jobs.cli import main

    profile.__kwdefaults__.update(defaults)
    sys.argv = ["neurotally", *arguments]
    main()
