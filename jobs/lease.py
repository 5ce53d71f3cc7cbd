"""A store in a bucket has one writer, too: it says so in an object of the store, and again every minute.

    STORE/.run/writer.json      who writes: host, process, working state; when it was said last

Where nothing was said for ten minutes the writer is taken for dead. What keeps a store whole doesn't hang on this, but
on the root, which is replaced only by who has read the one that lies there (`profiler.store`); this spares a second
writer hours of work that could not be committed.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neurotally.profiler import buckets, store
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json

RENEW_S = 60.0
EXPIRE_S = 600.0


def holder(path: Path, now: Callable[[], float] = time.time) -> str | None:
    """Who else writes the store in a bucket, so far as is known."""
    found = read_json(_file(path), host=str, pid=int, work=str, said=float)
    if found is None or _is_ours(path, found) or now() - found["said"] > EXPIRE_S:
        return None
    return f"process {found['pid']} on {found['host']}"


@contextlib.contextmanager
def leased(path: Path, renew_s: float = RENEW_S) -> Iterator[Callable[[], None]]:
    """Be the writer of a store in a bucket. Call what this gives before each commit: it raises where another one is.

    Who enters holds the lock on the store's working state, so that an earlier writer of the same is no more.
    """
    lease = _Lease(path)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(renew_s):
            try:
                lease.renew()
            except InputError:  # lost, or the network is down: said when it matters
                continue

    thread = threading.Thread(target=keep, daemon=True, name="lease")
    thread.start()
    try:
        yield lease.renew
    finally:
        ended.set()
        thread.join()
        lease.drop()


class _Lease:
    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._version: buckets.Version | None = None
        if (other := holder(path)) is not None:
            raise InputError(
                f"{path} is being written by {other}; wait for it, or {EXPIRE_S / 60:.0f} minutes if it died"
            )
        with contextlib.suppress(FileNotFoundError):
            self._version = buckets.read_version(_file(path))[1]
        self.renew()

    def renew(self) -> None:
        """Say that this process writes; InputError where another has said so."""
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "work": _work(self._path), "said": time.time()}
        with self._lock:
            try:
                self._version = buckets.write_version(_file(self._path), json.dumps(mine).encode(), self._version)
            except buckets.ChangedError as error:
                raise InputError(
                    f"{self._path} is being written by another run since this one wasn't heard of; "
                    "the same command goes on when that has ended"
                ) from error

    def drop(self) -> None:
        """Say nothing any more; where the network is down what was said expires."""
        with self._lock, contextlib.suppress(InputError):
            said = read_json(_file(self._path))
            if said is not None and _is_ours(self._path, said):
                buckets.remove(_file(self._path))


def _file(path: Path) -> Path:
    return path / store.RUN_FOLDER / "writer.json"


def _work(path: Path) -> str:
    return str(store.work_folder(path))


def _is_ours(path: Path, found: dict[str, Any]) -> bool:
    return (found.get("host"), found.get("work")) == (socket.gethostname(), _work(path))
