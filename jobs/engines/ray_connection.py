"""The Ray that the workers of a run are on: one that we start on this machine, or a cluster that we join.

A Ray that we start listens on all of this machine's interfaces. Who talks to it needs a token, drawn anew for every
process of ours that starts one; other users can't read it. A cluster at an address is as its owner made it.
"""

import contextlib
import functools
import io
import logging
import os
import secrets
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, cast

import psutil
import ray
from ray.exceptions import RayError

from neurotally.jobs.engines.engine import JobError
from neurotally.jobs.engines.ray_session import (
    SESSION_VARIABLE,
    Guard,
    end_leftovers,
    is_gone,
    ray_ended,
    ray_processes_of,
)
from neurotally.jobs.interrupts import Interrupted
from neurotally.profiler.errors import InputError, first_line

_PUT_BACK_EVERY_S = 0.01


class RayConnection:
    """From `open` to `close`. `session_file` remembers a Ray that we started while it runs, for `end_leftovers`."""

    def __init__(self, session_file: Path):
        self._session_file = session_file
        self._processes: dict[str, psutil.Process] = {}
        """Of a Ray that we started, those without which it waits for ever."""
        self._guard: Guard | None = None
        self._quiet = contextlib.ExitStack()
        """Ray tells of its troubles on stdout, which is for results; what ends a run is an error of ours."""

    def open(self, address: str | None) -> None:
        """Join the cluster at `address`; None: start a Ray here. InputError or JobError where that fails."""
        self._quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if address is not None:
            _join_ray(address)
            return
        session = uuid.uuid4().hex
        self._session_file.write_text(session)
        self._guard = Guard(session)
        _start_ray(session)
        self._processes = ray_processes_of(session)

    def check(self) -> None:
        """JobError if a process without which Ray waits for ever is gone."""
        if name := self._ended():
            raise JobError(ray_ended(name))

    @contextlib.contextmanager
    def telling_of_its_end(self) -> Iterator[None]:
        """What Ray raises is a JobError that says so where it is Ray that ended."""
        try:
            yield
        except (RayError, OSError):
            self.check()
            raise

    def close(self, actors: Sequence[Any]) -> None:
        """End these actors, and Ray if we started it: what doesn't go by itself is killed."""
        has_ended = self._ended() is not None
        try:
            if not has_ended:  # else Ray would end this process, before it can say why
                for actor in actors:
                    ray.kill(actor)
                _shut_down()
        finally:
            self._quiet.close()
            if has_ended:  # it goes on to tell of its end, at the end of this process
                sys.stdout = cast(TextIO, _WithoutRay(sys.stdout))
            end_leftovers(self._session_file)
            if self._guard is not None:
                self._guard.dismiss()

    def _ended(self) -> str | None:
        """The name of a process that is gone."""
        return next((name for name, process in self._processes.items() if is_gone(process)), None)


class _WithoutRay:
    """A stream that what Ray itself prints doesn't reach."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        is_rays = sys._getframe(1).f_globals.get("__name__", "").startswith("ray.")
        return len(text) if is_rays else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _join_ray(address: str) -> None:
    """Join a cluster."""
    try:
        _init_ray(address=address)
    except Exception as error:  # Ray raises its own kinds, and bare ones, of no common base
        raise InputError(f"can't connect to Ray at {address}: {first_line(error)}") from error


def _start_ray(session: str) -> None:
    """Start a Ray on this machine, whose processes are recognised by their environment and ask for a token."""
    os.environ.pop("RAY_AUTH_MODE", None)  # unset, Ray asks for a token, from 2.59 on
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)
    os.environ["RAY_AUTH_TOKEN"] = _token()
    os.environ.setdefault("RAY_worker_niceness", "0")  # else workers give way to any other program: 15
    # The second keeps Ray's agents from writing their names over the environment that they are recognised by.
    of_ray = {SESSION_VARIABLE: session, "SPT_NOENV": "1"}
    os.environ.update(of_ray)
    try:
        _init_ray(address="local", num_cpus=os.cpu_count(), include_dashboard=False)
    except Exception as error:  # as above
        raise JobError(f"can't start Ray on this machine: {first_line(error)}") from error
    finally:
        for name in of_ray:  # later processes are not Ray's
            del os.environ[name]


def _init_ray(**settings: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with _own_sigterm():
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **settings)


@functools.cache
def _token() -> str:
    """One for this process: Ray reads it once."""
    return secrets.token_hex(32)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM: Ray puts one in its place, which ends the process with a status of its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        raise Interrupted(signal.SIGTERM) from error
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread, where Ray takes no signals either
            signal.signal(signal.SIGTERM, before)


def _shut_down() -> None:
    """Shut Ray down.

    Its core takes SIGTERM's handler with it, seconds before Ray's processes have ended, so that a signal would end this
    process on the spot. So it is put back, while another thread waits for these.
    """
    handler = signal.getsignal(signal.SIGTERM)
    shutting_down = threading.Thread(target=ray.shutdown)
    shutting_down.start()
    while shutting_down.is_alive():
        shutting_down.join(_PUT_BACK_EVERY_S)
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, handler)
