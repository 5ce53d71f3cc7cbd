"""The one writer of a store: its lock, and the check that the store is one of this model."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock

from neurotally.jobs.lease import leased
from neurotally.jobs.status import LOCK_WAIT_S
from neurotally.jobs.versions import versions
from neurotally.profiler import buckets, store
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts
from neurotally.profiler.passes.worker import KERNEL_HINTS

_RUN_FACTS = (
    "tokenizer_fingerprint", "device_type", "device", "attention", "kernels", "row_tokens", "max_row_tokens", "fused",
)  # fmt: skip
"""What `ModelFacts` says beyond weights, config and dtype."""


def open_store(path: Path, facts: ModelFacts, config: dict[str, Any] | None) -> list[str]:
    """Make the store, or check that it is one of this model; warnings about program versions that changed.

    `config` is what decides the bits of the neuron pass; None for other passes, which keep theirs with their own
    results. Raises InputError naming the first difference.
    """
    attributes: dict[str, Any] = {
        "model": {key: value for key, value in facts.to_json().items() if key not in _RUN_FACTS},
        "tokenizer": {"fingerprint": facts.tokenizer_fingerprint},
        "config": config,
        "versions": versions(),
    }
    if not store.is_begun(path):
        store.create_store(path, attributes)
        store.write_sites(path, facts.networks)
        return list(facts.warnings)
    theirs = store.store_attributes(path)
    for part in ("model", "tokenizer"):
        _refuse_difference(path, f"{part}:", {"fingerprint": attributes[part]["fingerprint"]}, theirs.get(part) or {})
    model_config = theirs["model"].get("config") or {}
    ours_shared, theirs_shared = _shared(facts.config, model_config), _shared(model_config, facts.config)
    _refuse_difference(path, "model: its config's", ours_shared, theirs_shared)
    if config is not None:
        noted = theirs.get("config") or {}
        if noted:
            _refuse_other_kernels(path, config["kernels"], noted.get("kernels"))
            _refuse_difference(path, "config:", config, noted)
        else:  # a store that another pass began
            store.replace_attributes(path, {**theirs, "config": config})
    store.write_sites(path, facts.networks)  # a run may have ended before it did
    before = theirs["versions"]
    return [
        *facts.warnings,
        *(f"{name} is {ours}, the store was started with {before.get(name)}"
          for name, ours in attributes["versions"].items() if before.get(name) != ours),
    ]  # fmt: skip


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
        raise InputError(f"{path} is being written by another run; wait for it or stop it") from error


def _shared(ours: Any, theirs: Any) -> Any:
    """Ours, of dictionaries the keys of both alone: versions of transformers add keys and drop some."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return ours
    return {key: _shared(value, theirs[key]) for key, value in ours.items() if key in theirs}


def _refuse_other_kernels(path: Path, ours: str, theirs: str | None) -> None:
    if theirs in KERNEL_HINTS and theirs != ours:
        raise InputError(
            f"{path} was computed with the {theirs} kernels, these are the {ours} ones, which round sums differently; "
            f"{KERNEL_HINTS[theirs]}, or use another store"
        )


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


def _refuse_difference(path: Path, part: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    if difference := first_difference(ours, theirs):
        raise InputError(f"{path} is a store of another {part} {difference}; use another store")
