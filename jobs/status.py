"""`neurotally status`: how far a store is. Reads while a run goes on, disturbs nothing, writes nothing."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurotally.analysis.concat_rows import concat_note, corpus_concat_rows
from neurotally.jobs.progress import time_left
from neurotally.jobs.reducers.fold import PROGRESS_KEYS, folded_so_far
from neurotally.jobs.reducers.parts import kept_so_far
from neurotally.jobs.store_writer import is_being_written
from neurotally.profiler import buckets, store
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json


def status(path: Path) -> dict[str, Any]:
    """The document of `neurotally status --json`. Raises InputError where there is no store."""
    run = store.work_folder(path)
    is_begun = store.is_begun(path)
    if not run.is_dir() or is_begun:
        store.store_attributes(path)  # says what is wrong with it
    is_running = is_being_written(path)
    live = (read_json(run / "progress.json") if is_running else None) or {}
    committed = store.committed_groups(path) if is_begun else []
    unfinished = {}
    for folder in sorted(run.glob("*/*/")) if store.is_own_work(path) else ():
        group = f"{folder.parent.name}/{folder.name}"
        if group not in committed and folder.parent.name not in ("import", "sites", "spool"):
            unfinished[group] = folder
    groups = {
        group: folded_so_far(folder) if group.startswith("corpora/") else kept_so_far(folder)
        for group, folder in unfinished.items()
    }
    groups |= {group: entry for group, entry in live.get("groups", {}).items() if group not in committed}
    groups |= {group: {"done": True} for group in committed}
    groups |= {f"corpora/{name}": entry for name, entry in _committed_corpora(path).items()} if is_begun else {}
    return {
        "state": "running" if is_running else "complete" if is_begun and not unfinished else "stopped",
        "corpora": {
            group.removeprefix("corpora/"): {key: entry[key] for key in (*PROGRESS_KEYS, "concat") if key in entry}
            for group, entry in sorted(groups.items())
            if group.startswith("corpora/")
        },
        "passes": {group: entry for group, entry in sorted(groups.items()) if not group.startswith("corpora/")},
        "sources_gone": _gone_sources(unfinished),
        "tokens_per_s": live.get("tokens_per_s"),
        "seconds_left": live.get("seconds_left"),
    }


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
    for name, entry in document["passes"].items():
        lines.append(
            f"  {name:<20} " + ("done" if entry["done"] else f"tasks {entry['tasks_done']:>6}/{entry['tasks']}")
        )
    lines += [
        f"  {name}: its source is gone, and what is left of it can't be read: {source}"
        for name, source in document["sources_gone"].items()
    ]
    if document["tokens_per_s"] is not None:
        left = "" if document["seconds_left"] is None else f", {time_left(document['seconds_left'])}"
        lines.append(f"  {document['tokens_per_s']:,.0f} tokens/s{left}")
    return "\n".join(lines)


def _gone_sources(unfinished: Mapping[str, Path]) -> dict[str, str]:
    """Where the documents of unfinished corpora were and aren't any more."""
    noted = {group: (read_json(folder / "plan.json") or {}).get("source_path") for group, folder in unfinished.items()}
    return {
        group.removeprefix("corpora/"): source
        for group, source in noted.items()
        if isinstance(source, str) and _is_gone(source)
    }


def _is_gone(source: str) -> bool:
    """Whether there is nothing at a path or URL; what only its owner may look into, or can't be reached, isn't gone."""
    try:
        if buckets.is_url(source):
            return not buckets.exists(buckets.location(source))
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, InputError):
        return False
    return False


def _committed_corpora(path: Path) -> dict[str, dict[str, Any]]:
    corpora: dict[str, dict[str, Any]] = {}
    for name, attributes in store.family_attributes(path, "corpora").items():
        units, documents = attributes.get("units", 0), attributes.get("documents", 0)
        corpora[name] = {
            "units": units, "units_done": units, "documents": documents, "documents_done": documents,
            "skipped": sum(attributes.get("skipped", {}).values()), "tokens": attributes["tokens"],
        }  # fmt: skip
    if corpora and (store.store_attributes(path).get("config") or {}).get("layout") == "concat":
        for name, entry in corpora.items():
            if (rows := corpus_concat_rows(path, name)) is not None:
                entry["concat"] = rows
    return corpora
