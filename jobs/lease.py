"""A store in a bucket has one writer, too: it says so in an object of the store, and again every minute.

    STORE/.run/writer.json      who writes: host, process, the random name of its working state; when it was said last

Where nothing was said for ten minutes the writer is taken for dead, so clocks must agree to some minutes. What keeps a
store whole doesn't hang on this, but on the root, which is replaced only by who has read the one that lies there
(`profiler.store`); this spares a second writer hours of work that could not be committed.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from neurotally.profiler import buckets, store
from neurotally.profiler.buckets import UnreachableError
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json, replace_json

RENEW_S = 60.0
EXPIRE_S = 600.0


def holder(path: Path) -> str | None:
    """Who else writes the store in a bucket, so far as is known."""
    file = _file(path)
    try:
        found = read_json(file, host=str, pid=int, writer=str, said=float)
    except UnreachableError:
        raise
    except InputError as error:
        raise InputError(f"{error}; if no run writes the store, remove it") from error
    ours = (read_json(store.work_folder(path) / "writer.json") or {}).get("name")
    if found is None or found["writer"] == ours or time.time() - found["said"] > EXPIRE_S:
        return None
    return f"process {found['pid']} on {found['host']}"


@contextlib.contextmanager
def leased(path: Path) -> Iterator[Callable[[], None]]:
    """Be the writer of a store in a bucket. Call what this gives before each commit: it raises where another one is.

    Who enters holds the lock on the store's working state, so that an earlier writer of the same is no more.
    """
    lease = _Lease(path)
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(RENEW_S):
            try:
                lease.renew()
            except InputError:  # lost, or the network is down: said when it matters
                continue

    threading.Thread(target=keep, daemon=True, name="lease").start()
    is_reachable = True
    try:
        yield lease.renew
    except UnreachableError:
        is_reachable = False  # what was said expires
        raise
    finally:
        ended.set()
        if is_reachable:
            lease.drop()


class _Lease:
    def __init__(self, path: Path):
        self._path = path
        self._lock = threading.Lock()
        self._token = uuid.uuid4().hex
        """Of this process: a write whose answer was lost is known again by it."""
        self._version: buckets.Version | None = None
        self._is_dropped = False
        if (other := holder(path)) is not None:
            wait = f"wait for it, or {EXPIRE_S / 60:.0f} minutes if it died"
            raise InputError(f"{path} is being written by {other}; {wait}")
        with contextlib.suppress(FileNotFoundError):
            self._version = buckets.read_version(_file(path))[1]
        self.renew()
        self._refuse_unconditional_writes()

    def renew(self) -> None:
        """Say that this process writes; InputError where another has said so."""
        mine = {"host": socket.gethostname(), "pid": os.getpid(), "writer": _writer(self._path), "token": self._token}
        with self._lock:
            for _ in range(0 if self._is_dropped else 2):
                content = json.dumps({**mine, "said": time.time()}).encode()
                try:
                    self._version = buckets.write_version(_file(self._path), content, self._version)
                    return
                except buckets.ChangedError:
                    self._version = self._known_again()
        if not self._is_dropped:
            raise self._lost()

    def _known_again(self) -> buckets.Version:
        """The version that lies there, if this process has written it."""
        try:
            content, version = buckets.read_version(_file(self._path))
            if json.loads(content).get("token") == self._token:
                return version
        except (FileNotFoundError, json.JSONDecodeError, AttributeError):
            pass
        raise self._lost()

    def _lost(self) -> InputError:
        return InputError(
            f"{self._path} is being written by another run since this one wasn't heard of; "
            "the same command goes on when that has ended"
        )

    def _refuse_unconditional_writes(self) -> None:
        """InputError where a server takes a new object in place of one that is there: two writers could both win."""
        try:
            buckets.write_version(_file(self._path), b"{}", None)
        except buckets.ChangedError:
            return
        buckets.remove(_file(self._path))
        raise InputError(
            f"{self._path}: its server ignores conditional writes (If-None-Match), without which two runs could damage "
            "a store; write it to a folder, and copy it"
        )

    def drop(self) -> None:
        """Say nothing any more; where the network is down what was said expires."""
        with self._lock, contextlib.suppress(InputError):
            self._is_dropped = True
            said = read_json(_file(self._path))
            if said is not None and said.get("token") == self._token:
                buckets.remove(_file(self._path))


def _file(path: Path) -> Path:
    return path / store.RUN_FOLDER / "writer.json"


def _writer(path: Path) -> str:
    """The random name of the working state whose lock a writer holds."""
    file = store.work_folder(path) / "writer.json"
    found = read_json(file, name=str)
    if found is None:
        found = {"name": uuid.uuid4().hex}
        replace_json(file, found)
    return str(found["name"])
