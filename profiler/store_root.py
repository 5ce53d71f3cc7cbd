"""A store's root: the zarr.json that lists what is committed, read and checked, and replaced as a whole.

On a disk it is replaced atomically; in a bucket only if it still is what this writer read, so that of two writers one
is refused.
"""

import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from neurotally.profiler import buckets
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import (
    NotRegularError,
    as_json,
    read_file,
    read_json,
    replace_json,
    sync_tree,
)  # fmt: skip

SCHEMA_VERSION = 2
_READABLE = (1, 2)
"""Schema 2 has sites and fill values where layers differ in width; stores without them are alike in both."""
_FAMILY = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
"""The metadata of a family of groups."""
_CLAIM = "writing"
"""An attribute of the root while a group is copied to a bucket: a token of who does."""


def nodes_of(root: Mapping[str, Any]) -> dict[str, Any]:
    """By path in the store: the metadata of all groups and arrays that are committed."""
    nodes: dict[str, Any] = root["consolidated_metadata"]["metadata"]
    return nodes


def read_root(path: Path) -> dict[str, Any]:
    """The root of a store; InputError where there is none that we can read."""
    return read_versioned(path)[0]


def read_versioned(path: Path) -> tuple[dict[str, Any], buckets.Version | None]:
    """The root, and what tells it from later ones where it lies in a bucket."""
    try:
        if buckets.is_remote(path) and buckets.is_writable(path):
            content, version = buckets.read_version(path / "zarr.json")
        else:
            content, version = read_file(path / "zarr.json"), None
        root: dict[str, Any] = json.loads(content)
        schema = root["attributes"]["schema"]
        nodes = nodes_of(root).values()
        if not all(isinstance(node, dict) and isinstance(node.get("attributes") or {}, dict) for node in nodes):
            raise TypeError("a node is no object")
        if any(
            not isinstance(root["attributes"].get(part, {}), dict | None) for part in ("model", "config", "versions")
        ):
            raise TypeError("a part is no object")
    except FileNotFoundError as error:
        raise InputError(f"{path} is no store: it has no zarr.json; `neurotally profile` makes one") from error
    except NotADirectoryError as error:
        raise InputError(f"{path} is a file, not a store") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, NotRegularError) as error:
        raise InputError(f"{path / 'zarr.json'} is not the root of a neurotally store, or was cut off") from error
    if schema not in _READABLE:
        known = " and ".join(map(str, _READABLE))
        raise InputError(f"{path} has schema {schema!r}, this version reads {known}; upgrade neurotally")
    return root, version


def put_root(path: Path, root: Mapping[str, Any], replaced: buckets.Version | None) -> None:
    """Write the root; in a bucket only in place of the one that was read, None: of none."""
    with _one_writer(path):
        _write_json(path / "zarr.json", root, replaced)


def commit(store: Path, group: str, finished: Path) -> None:
    """Put a finished group in its place and let the root list it and its arrays."""
    if buckets.is_remote(store):
        _commit_remote(store, group, finished)
        return
    root = read_root(store)
    _list_group(root, store, group, finished)
    shutil.rmtree(store / group, ignore_errors=True)
    sync_tree(finished)
    os.rename(finished, store / group)
    replace_json(store / "zarr.json", root)


def _commit_remote(store: Path, group: str, finished: Path) -> None:
    """The same in a bucket, where nothing can be moved.

    The root is first claimed: with that, whoever read it before can't replace it any more. Objects are replaced only if
    they are what was found before that, so a run that was suspended in here can't spoil what a later one commits.
    """
    with _one_writer(store):
        root, version = read_versioned(store)
        if group in nodes_of(root):
            raise buckets.ChangedError(group)
        before = buckets.versions(store / group)
        claim = {**root, "attributes": {**root["attributes"], _CLAIM: uuid.uuid4().hex}}
        version = _write_json(store / "zarr.json", claim, version)
        _list_group(root, store, group, finished)
        root["attributes"].pop(_CLAIM, None)
        buckets.upload(finished, store / group, before)
        if buckets.read_version(store / "zarr.json")[1] == version:
            for name in before:  # of an upload that was cut off
                if not (finished / name).exists():
                    buckets.remove(store / group / name)
        _write_json(store / "zarr.json", root, version)
    shutil.rmtree(finished)


def _list_group(root: dict[str, Any], store: Path, group: str, finished: Path) -> None:
    """Let the root list a finished group, its arrays, and its family, whose zarr.json is made where it isn't there."""
    metadata = nodes_of(root)
    family, slash, _ = group.partition("/")
    if slash:
        if not buckets.exists(store / family / "zarr.json"):
            _write_json(store / family / "zarr.json", _FAMILY)
        metadata[family] = read_json(store / family / "zarr.json")
    for node in [finished, *sorted(child for child in finished.iterdir() if child.is_dir())]:
        name = PurePosixPath(group, node.relative_to(finished)).as_posix()
        metadata[name] = json.loads((node / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"] = dict(sorted(metadata.items()))


def _write_json(
    file: Path, document: Mapping[str, Any], replaced: buckets.Version | None = None
) -> buckets.Version | None:
    """Write metadata; in a bucket in place of a version, or of nothing: the new version."""
    if buckets.is_remote(file):
        return buckets.write_version(file, as_json(document).encode(), replaced)
    replace_json(file, document)
    return None


@contextmanager
def _one_writer(path: Path) -> Iterator[None]:
    try:
        yield
    except buckets.ChangedError as error:
        raise InputError(f"{path} was written by another run meanwhile; the same command goes on from there") from error
