"""All that a store holds, to compare two of them bit for bit; and what a run left beside it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from neurotally.profiler import store

_VOLATILE = ("started", "finished", "workers", "tokens_run", "model_seconds", "versions", "id")
"""Attributes that say how a run went, not what it found."""


def contents(path: Path) -> dict[str, str]:
    """A digest of every array (dtype, shape, bytes) and of every group's attributes, by name."""
    found = {"": _digest(_lasting(store.store_attributes(path)))}
    for group in store.committed_groups(path):
        found[group] = _digest(_lasting(store.group_attributes(path, group)))
        for name, array in store.read_group(path, group).items():
            values = array.tobytes() if array.dtype.kind not in "TO" else repr(array.tolist()).encode()
            found[f"{group}/{name}"] = _digest([str(array.dtype.kind), array.shape], values)
    return found


def difference(ours: dict[str, str], theirs: dict[str, str]) -> str | None:
    """Names of what differs; None if nothing does."""
    names = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else None


def leftovers(path: Path) -> list[str]:
    """What lies in the store's working folder."""
    return sorted(entry.relative_to(path).as_posix() for entry in (path / store.RUN_FOLDER).rglob("*"))


def _lasting(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in _VOLATILE}


def _digest(document: Any, values: bytes = b"") -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode() + values).hexdigest()
