"""The store: one Zarr v3 hierarchy that a run leaves behind and that analyses read.

    STORE/zarr.json          attrs: schema, model, tokenizer, config; consolidated metadata of all that is committed
    STORE/corpora/NAME/      one group a corpus, written once, complete (arrays: SCHEMA below)
    STORE/embeddings/NAME/   and other families, of the passes beside the neuron pass, under the same rules
    STORE/.run/              the working state of unfinished corpora, and the writer's lock

The root's zarr.json is the commit point: a group that it does not list is not there. It is replaced atomically.
Every chunk is written, and read only if all are there; crc32c finds the damaged ones. Where a dtype has a value to
spare, it is the fill value, so that other readers don't take a lost chunk for zeros (hashes and names have none).
`xarray.open_zarr(STORE, group="corpora/NAME")` works.
"""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from neurotally.profiler.errors import InputError

SCHEMA_VERSION = 1
RUN_FOLDER = ".run"
"""Of a store: the working state of runs, until they end."""
NO_DOCUMENT = 2**32 - 1
_CHUNK_BYTES = 16 * 2**20


class ArraySpec(NamedTuple):
    """How an array lies in the store."""

    dtype: str
    dimensions: tuple[str, ...]
    fill: Any


_COUNT_FILL = 2**64 - 1
_NEURON = ("layer", "neuron")
_TRIGGER = ("layer", "neuron", "trigger")

SCHEMA: Mapping[str, ArraySpec] = {
    "tokens": ArraySpec("uint64", ("group",), _COUNT_FILL),
    "special_tokens": ArraySpec("uint64", ("group",), _COUNT_FILL),
    "active": ArraySpec("uint64", ("group", *_NEURON), _COUNT_FILL),
    "active_special": ArraySpec("uint64", ("group", *_NEURON), _COUNT_FILL),
    "activation_sum": ArraySpec("float64", _NEURON, np.nan),
    "coefficient_sum": ArraySpec("float64", _NEURON, np.nan),
    "coefficient_sum_squares": ArraySpec("float64", _NEURON, np.nan),
    "coefficient_max": ArraySpec("float32", _NEURON, np.nan),
    "coefficient_min": ArraySpec("float32", _NEURON, np.nan),
    "trigger_value": ArraySpec("float32", _TRIGGER, np.nan),
    "trigger_document": ArraySpec("uint32", _TRIGGER, NO_DOCUMENT),
    "trigger_position": ArraySpec("uint32", _TRIGGER, NO_DOCUMENT),
    "document_name": ArraySpec("string", ("document",), ""),
    "document_bytes": ArraySpec("uint64", ("document",), _COUNT_FILL),
    "document_hash": ArraySpec("uint8", ("document", "sha256"), 0),
    "document_tokens": ArraySpec("uint32", ("document",), NO_DOCUMENT),
    "document_status": ArraySpec("uint8", ("document",), 255),
    "document_unit": ArraySpec("uint32", ("document",), NO_DOCUMENT),
    "unit_tokens": ArraySpec("uint64", ("unit",), _COUNT_FILL),
    "unit_group": ArraySpec("uint16", ("unit",), 2**16 - 1),
}

Arrays = dict[str, np.ndarray]


def create_store(path: Path, attributes: Mapping[str, Any]) -> None:
    """Make an empty store with the given root attributes; `attributes` gains the schema version."""
    path.mkdir(parents=True, exist_ok=True)
    replace_json(
        path / "zarr.json",
        {
            "attributes": {"schema": SCHEMA_VERSION, **attributes},
            "zarr_format": 3,
            "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}},
            "node_type": "group",
        },
    )


def store_attributes(path: Path) -> dict[str, Any]:
    """The root's attributes; an InputError where there is no store that we can read."""
    attributes: dict[str, Any] = _root(path)["attributes"]
    return attributes


def replace_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Replace the root's attributes; what is committed stays."""
    replace_json(path / "zarr.json", {**_root(path), "attributes": dict(attributes)})


def committed_corpora(path: Path) -> list[str]:
    """The names of the corpora that are complete, in name order."""
    return committed(path, "corpora")


def committed(path: Path, family: str) -> list[str]:
    """The names of the groups of a family (`corpora`, `embeddings`, …) that are complete, in name order."""
    prefix = f"{family}/"
    return [group.removeprefix(prefix) for group in committed_groups(path) if group.startswith(prefix)]


def committed_groups(path: Path) -> list[str]:
    """All groups `FAMILY/NAME` that are complete, in name order."""
    return sorted(node for node in _root(path)["consolidated_metadata"]["metadata"] if node.count("/") == 1)


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any],
    schema: Mapping[str, ArraySpec] = SCHEMA,
) -> None:
    """Write `arrays` (names of `schema`) as a new Zarr group at `path`, every chunk of them."""
    with warnings.catch_warnings():
        # `string` is a registered extension type of Zarr v3 that zarr-python still announces at every use.
        warnings.simplefilter("ignore")
        group = zarr.create_group(str(path), attributes=dict(attributes))
        for name, values in arrays.items():
            spec = schema[name]
            if spec.dtype == "string":
                array = group.create_array(
                    name, shape=values.shape, dtype="string", chunks=_chunks(spec, values), fill_value="",
                    dimension_names=spec.dimensions, compressors=[_blosc(1), Crc32cCodec()],
                    config={"write_empty_chunks": True},
                )  # fmt: skip
            else:
                array = group.create_array(
                    name, shape=values.shape, dtype=spec.dtype, chunks=_chunks(spec, values),
                    fill_value=spec.fill, dimension_names=spec.dimensions,
                    compressors=[_blosc(np.dtype(spec.dtype).itemsize), Crc32cCodec()],
                    config={"write_empty_chunks": True},
                )  # fmt: skip
            if values.size:
                array[...] = values


def read_arrays(path: Path, names: list[str] | None = None) -> Arrays:
    """Read arrays of the group at `path` (all, or those of `names` that are there), each chunk checked.

    Raises InputError where a chunk is missing or damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = zarr.open_group(str(path), mode="r", use_consolidated=False)
            found = {name: array for name, array in group.arrays() if names is None or name in names}
            return {name: _read(path, array) for name, array in found.items()}
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} can't be read: {reason}") from error


def read_corpus(store: Path, corpus: str, names: list[str] | None = None) -> Arrays:
    """Read a committed corpus's arrays; asked-for arrays that the store lacks raise an InputError naming them."""
    if corpus not in committed_corpora(store):
        raise InputError(f"{store} has no finished corpus {corpus!r}; it has {committed_corpora(store)}")
    return read_group(store, f"corpora/{corpus}", names)


def read_group(store: Path, group: str, names: list[str] | None = None) -> Arrays:
    """Read arrays of a committed group `FAMILY/NAME`; an InputError where it or one of `names` isn't there."""
    family, _, name = group.partition("/")
    if name not in committed(store, family):
        raise InputError(f"{store} has no finished {group}; its {family}: {committed(store, family) or 'none'}")
    arrays = read_arrays(store / group, names)
    if missing := [name for name in names or [] if name not in arrays]:
        raise InputError(f"{group} of {store} lacks {', '.join(missing)}")
    return arrays


def corpus_attributes(store: Path, corpus: str) -> dict[str, Any]:
    """A committed corpus's attributes."""
    return group_attributes(store, f"corpora/{corpus}")


def group_attributes(store: Path, group: str) -> dict[str, Any]:
    """The attributes of a committed group `FAMILY/NAME`."""
    attributes: dict[str, Any] = _root(store)["consolidated_metadata"]["metadata"][group]["attributes"]
    return attributes


def publish_corpus(store: Path, corpus: str, finished: Path) -> None:
    """Commit the finished group at `finished` (inside the store) as `corpora/NAME`."""
    publish(store, f"corpora/{corpus}", finished)


def publish(store: Path, group: str, finished: Path) -> None:
    """Commit the finished group at `finished` (inside the store) as `FAMILY/NAME`: rename, then replace the root."""
    family, _, name = group.partition("/")
    target = store / group
    if name in committed(store, family):
        raise AssertionError(f"{group} is committed already; a committed group never changes")
    if target.exists():  # a run that died between the rename and the commit: not listed, so not there
        shutil.rmtree(target)
    parent = store / family / "zarr.json"
    if not parent.exists():
        replace_json(parent, {"attributes": {}, "zarr_format": 3, "node_type": "group"})
    _sync_tree(finished)
    os.rename(finished, target)
    root = _root(store)
    metadata = root["consolidated_metadata"]["metadata"]
    metadata[family] = json.loads(parent.read_text())
    for node in [target, *sorted(child for child in target.iterdir() if child.is_dir())]:
        metadata[node.relative_to(store).as_posix()] = json.loads((node / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"] = dict(sorted(metadata.items()))
    replace_json(store / "zarr.json", root)


def replace_json(path: Path, document: Any) -> None:
    """Write a JSON file so that a reader sees the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_tree(path: Path) -> None:
    """Force a finished group to the disk before the commit names it."""
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read_json(path: Path) -> Any:
    """What `replace_json` wrote; None where nothing was."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _root(path: Path) -> dict[str, Any]:
    try:
        root: dict[str, Any] = json.loads((path / "zarr.json").read_text())
        schema = root["attributes"]["schema"]
        root["consolidated_metadata"]["metadata"]
    except FileNotFoundError as error:
        raise InputError(f"{path} is no store: it has no zarr.json; `neurotally profile` makes one") from error
    except NotADirectoryError as error:
        raise InputError(f"{path} is a file, not a store") from error
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise InputError(f"{path / 'zarr.json'} is not the root of a neurotally store, or was cut off") from error
    if schema != SCHEMA_VERSION:
        raise InputError(f"{path} has schema {schema!r}, this version reads {SCHEMA_VERSION}; upgrade neurotally")
    return root


def _read(path: Path, array: zarr.Array) -> np.ndarray:
    if array.size and array.nchunks_initialized != array.nchunks:
        raise InputError(
            f"{path / array.basename} has {array.nchunks_initialized} of {array.nchunks} chunks: it was cut off"
        )
    values: np.ndarray = np.asarray(array[...])
    return values


def _chunks(spec: ArraySpec, values: np.ndarray) -> tuple[int, ...]:
    """Whole trailing axes, and as many of the first as fit some 16 MB, so that a group or layer is one read."""
    if not values.size:
        return tuple(max(1, size) for size in values.shape)
    itemsize = 64 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
    chunks = list(values.shape)
    for axis in range(len(chunks)):
        rest = itemsize * int(np.prod(chunks[axis + 1 :], dtype=np.int64))
        chunks[axis] = max(1, min(chunks[axis], _CHUNK_BYTES // max(rest, 1)))
        if chunks[axis] > 1:
            break
    return tuple(chunks)


def _blosc(itemsize: int) -> BloscCodec:
    return BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=itemsize)
