"""`neurotally status`: how far a store is. Reads while a run goes on, disturbs nothing, writes nothing."""

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from neurotally.analysis.concat_rows import concat_note, corpus_concat_rows
from neurotally.jobs.progress import time_left
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json


def status(path: Path) -> dict[str, Any]:
    """The document of `neurotally status --json`. Raises InputError where there is no store."""
    run = path / store.RUN_FOLDER
    if not run.is_dir() or (path / "zarr.json").exists():
        store.store_attributes(path)  # says what is wrong with it
    is_running = _is_locked(run / "lock")
    live = read_json(run / "progress.json") if is_running else None
    unfinished = {folder.name: _unfinished(folder) for folder in sorted((run / "corpora").glob("*/"))}
    committed = store.family_attributes(path, "corpora") if (path / "zarr.json").exists() else {}
    done: dict[str, dict[str, Any]] = {name: _committed(of) for name, of in committed.items()}
    layout = (store.store_attributes(path).get("config") or {}).get("layout") if done else None
    for name, of in done.items() if layout == "concat" else ():
        if (rows := corpus_concat_rows(path, name)) is not None:
            of["concat"] = rows
    corpora = {**unfinished, **((live or {}).get("corpora") or {}), **done}
    finished = _finished_passes(path)
    begun = _unfinished_passes(run / "passes")
    passes = {name: one for name, one in begun.items() if name not in finished}
    is_complete = (path / "zarr.json").exists() and not unfinished.keys() - done.keys() and not passes
    state = "running" if is_running else "complete" if is_complete else "stopped"
    return {
        "state": state,
        "corpora": dict(sorted(corpora.items())),
        "passes": passes | finished,
        "sources_gone": _gone_sources(run / "corpora", unfinished.keys() - done.keys()),
        "tokens_per_s": live["tokens_per_s"] if live else None,
        "seconds_left": live["seconds_left"] if live else None,
    }


def is_being_written(path: Path) -> bool:
    """Whether a run holds the store's one writer's lock."""
    return _is_locked(path / store.RUN_FOLDER / "lock")


def status_text(document: dict[str, Any]) -> str:
    """The same for people."""
    lines = [document["state"]]
    for name, corpus in document["corpora"].items():
        lines.append(
            f"  {name:<20} units {corpus['units_done']:>6}/{corpus['units']:<6} documents "
            f"{corpus['documents_done']:>7}/{corpus['documents']:<7} skipped {corpus['skipped']:<5} "
            f"{corpus['tokens']:>14,} tokens"
        )
    lines += [
        f"  {concat_note(name, corpus['concat'], corpus['tokens'])}"
        for name, corpus in document["corpora"].items()
        if "concat" in corpus
    ]
    for name, one in document["passes"].items():
        lines.append(f"  {name:<20} " + ("done" if one["done"] else f"tasks {one['tasks_done']:>6}/{one['tasks']}"))
    lines += [
        f"  {name}: its source is gone, and what is left of it can't be read: {source}"
        for name, source in document["sources_gone"].items()
    ]
    if document["tokens_per_s"] is not None:
        left = "" if document["seconds_left"] is None else f", {time_left(document['seconds_left'])}"
        lines.append(f"  {document['tokens_per_s']:,.0f} tokens/s{left}")
    return "\n".join(lines)


def _unfinished_passes(folder: Path) -> dict[str, Any]:
    """Passes beside the neuron pass that have begun, by the name of their group."""
    found = {}
    for one in sorted(folder.glob("*/")):
        tasks = (read_json(one / "plan.json", "tasks") or {"tasks": 0})["tasks"]
        found[unquote(one.name)] = {"done": False, "tasks": tasks, "tasks_done": len(list(one.glob("[!.]*.npz")))}
    return found


def _gone_sources(folder: Path, corpora: Iterable[str]) -> dict[str, str]:
    """Where the documents of unfinished corpora were and aren't any more. What is streamed can be streamed again."""
    gone = {}
    for name in sorted(corpora):
        plan = read_json(folder / name / "plan.json") or {}
        is_streamed = str(plan.get("identity", {}).get("source")).startswith("hf:")
        source = plan.get("source_path")
        if source and not is_streamed and _is_gone(source):
            gone[name] = source
    return gone


def _is_gone(source: str) -> bool:
    """Whether there is nothing at a path; a folder that only its owner may look into isn't gone."""
    try:
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _finished_passes(path: Path) -> dict[str, Any]:
    if not (path / "zarr.json").exists():
        return {}
    return {group: {"done": True} for group in store.committed_groups(path) if not group.startswith("corpora/")}


def _unfinished(folder: Path) -> dict[str, int]:
    keys = ("units", "units_done", "documents", "documents_done", "skipped", "tokens")
    current = read_json(folder / "current.json", *keys)
    if current is not None:
        return {key: current[key] for key in keys}
    plan = read_json(folder / "plan.json", "units", "documents") or {"units": 0, "documents": 0}
    return {
        "units": plan["units"], "units_done": 0, "documents": plan["documents"], "documents_done": 0,
        "skipped": 0, "tokens": 0,
    }  # fmt: skip


def _committed(attributes: dict[str, Any]) -> dict[str, int]:
    units, documents = attributes.get("units", 0), attributes.get("documents", 0)
    return {
        "units": units, "units_done": units, "documents": documents, "documents_done": documents,
        "skipped": sum(attributes.get("skipped", {}).values()), "tokens": attributes["tokens"],
    }  # fmt: skip


def _is_locked(lock_file: Path) -> bool:
    """Whether a run holds the store's lock, which `filelock` takes by flock; needs no right to write."""
    try:
        descriptor = os.open(lock_file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise InputError(f"can't look at the lock of {lock_file.parent.parent}, {lock_file}: {reason}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise InputError(f"can't look at the lock of {lock_file.parent.parent}: {error.strerror}") from error
    finally:
        os.close(descriptor)
    return False
