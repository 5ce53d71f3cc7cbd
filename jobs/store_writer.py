"""The one writer of a store: the lock that it holds, and how others see that it is held."""

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from neurotally.jobs.lease import holder, leased
from neurotally.profiler import buckets, store
from neurotally.profiler.errors import InputError

LOCK_WAIT_S = 3.0
"""Who wants to write waits so long: for a run that is about to end, or a look at its status."""
_LOOK_EVERY_S = 0.1


@contextlib.contextmanager
def writer_lock(path: Path, *, wait_s: float = LOCK_WAIT_S) -> Iterator[Callable[[], None]]:
    """Hold the store's one writer's lock; the system frees it when this process ends, however it ends.

    Of a store in a bucket it is the lock of its working state on this machine, and a lease (`jobs.lease`). Call what
    this gives before each commit: it raises InputError where another machine has become the writer.
    """
    if not buckets.is_writable(path):
        raise InputError(f"{path} can only be read; write the store to a folder, or to s3://, gs:// or az://")
    if not buckets.is_remote(path) and path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, expected a folder for the store")
    entries = buckets.names(path)
    if entries and not entries & {"zarr.json", store.RUN_FOLDER}:
        raise InputError(f"{path} is a folder with other things in it, expected a store or a new folder")
    if store.is_begun(path):
        store.store_attributes(path)
    work = store.work_folder(path)
    _refuse_links(work)
    work.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as held:
            held.enter_context(filelock.FileLock(work / "lock", timeout=wait_s))
            still_writes = held.enter_context(leased(path)) if buckets.is_remote(path) else lambda: None
            if buckets.is_remote(path):
                store.forget_other_work(path)
            _remove_leftovers(path)
            try:
                yield still_writes
            finally:
                _remove_empty_folders(work)
    except filelock.Timeout as error:
        raise _written_by_another(path) from error


def refuse_other_writer(path: Path) -> None:
    """InputError, as of `writer_lock`, where another run writes the store and goes on to."""
    end = time.monotonic() + LOCK_WAIT_S
    while is_being_written(path):
        if time.monotonic() >= end:
            raise _written_by_another(path)
        time.sleep(_LOOK_EVERY_S)


def is_being_written(path: Path) -> bool:
    """Whether a run holds the store's one writer's lock, which `filelock` takes by flock; needs no right to write.

    Of a store in a bucket also whether a run on another machine writes it.
    """
    if buckets.is_remote(path) and buckets.is_writable(path) and holder(path) is not None:
        return True
    lock_file = store.work_folder(path) / "lock"
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise InputError(f"can't look at the lock of {path}, {lock_file}: {reason}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise InputError(f"can't look at the lock of {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return False


def _written_by_another(path: Path) -> InputError:
    return InputError(f"{path} is being written by another run; wait for it or stop it")


def _refuse_links(work: Path) -> None:
    """InputError where a run would write, or remove, what a link in the store's working state points to."""
    for entry in (work, *work.glob("*"), *work.glob("*/*")):
        if entry.is_symlink():
            raise InputError(f"{entry} is a link; a store's working state is written and removed: remove the link")


def _remove_leftovers(path: Path) -> None:
    """Drop what a former run left half written, and the working state of what it committed before it died."""
    if not buckets.is_remote(path):
        for partial in (*path.glob(".*.partial.json"), *path.glob("*/.*.partial.json")):
            partial.unlink()
    (store.work_folder(path) / "progress.json").unlink(missing_ok=True)  # of a run that is no more
    for group in store.committed_groups(path) if store.is_begun(path) else ():
        shutil.rmtree(store.run_folder(path, group), ignore_errors=True)


def _remove_empty_folders(work: Path) -> None:
    for folder in work.glob("*/"):
        with contextlib.suppress(OSError):
            folder.rmdir()
