"""The store: one Zarr v3 hierarchy that a run leaves behind and that analyses read.

    STORE/zarr.json          attrs: schema, model, tokenizer, config; consolidated metadata of all that is committed
    STORE/sites/             where neurons are, if layers aren't one network of the same width each (SITES_SCHEMA)
    STORE/corpora/NAME/      one group a corpus, written once, complete (arrays: SCHEMA below)
    STORE/embeddings/NAME/   and other families, of the passes beside the neuron pass, under the same rules
    STORE/.run/              the working state of unfinished corpora, and the writer's lock

The root's zarr.json is the commit point: a group that it does not list is not there. It is replaced atomically; in a
bucket only if it still is what this writer read, so that of two writers one is refused. The working state of a store in
a bucket lies on the disk of who writes it (`work_folder`).
Every chunk is written, and read only if all are there; crc32c finds the damaged ones. Where a dtype has a value to
spare, it is the fill value, so that other readers don't take a lost chunk for zeros (hashes and names have none).
What an array's own zarr.json says of it must be what the root says (`profiler.array_layout`), before a chunk is read.
`xarray.open_zarr(STORE, group="corpora/NAME")` works.
"""

import hashlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec

from neurotally.kernels.statistics import NO_DOCUMENT, statistics_of
from neurotally.profiler import buckets
from neurotally.profiler.array_layout import ArrayLayout, check_axes
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.networks import Networks, site_arrays
from neurotally.profiler.store_root import SCHEMA_VERSION, commit, nodes_of, put_root, read_root, read_versioned
from neurotally.profiler.whole_files import read_json, replace_json

RUN_FOLDER = ".run"
"""Of a store: the working state of runs, until they end."""
_CHUNK_BYTES = 16 * 2**20
KEPT_IN_WORK = ("lock", "writer.json", "store.json", "ray")
"""Of the working state of a store in a bucket: what says whose it is, and which Ray a former run has started."""


class ArraySpec(NamedTuple):
    """How an array lies in the store."""

    dtype: str
    dimensions: tuple[str, ...]
    fill: Any


_COUNT_FILL = 2**64 - 1
_TRIGGER = ("layer", "neuron", "trigger")

SCHEMA: Mapping[str, ArraySpec] = {
    "tokens": ArraySpec("uint64", ("group",), _COUNT_FILL),
    "special_tokens": ArraySpec("uint64", ("group",), _COUNT_FILL),
    **{one.name: ArraySpec(one.stored, one.axes, one.fill) for one in statistics_of(has_experts=True)},
    "site_tokens": ArraySpec("uint64", ("group", "site"), _COUNT_FILL),
    "site_special_tokens": ArraySpec("uint64", ("group", "site"), _COUNT_FILL),
    "site_weight": ArraySpec("float64", ("site",), np.nan),
    "trigger_value": ArraySpec("float32", _TRIGGER, np.nan),
    "trigger_document": ArraySpec("uint32", _TRIGGER, NO_DOCUMENT),
    "trigger_position": ArraySpec("uint32", _TRIGGER, NO_DOCUMENT),
    "document_name": ArraySpec("string", ("document",), ""),
    "document_bytes": ArraySpec("uint64", ("document",), _COUNT_FILL),
    "document_hash": ArraySpec("uint8", ("document", "sha256"), 0),
    "document_tokens": ArraySpec("uint32", ("document",), NO_DOCUMENT),
    "document_status": ArraySpec("uint8", ("document",), 255),
    "document_unit": ArraySpec("uint32", ("document",), NO_DOCUMENT),
    "document_text": ArraySpec("string", ("document",), ""),
    "unit_tokens": ArraySpec("uint64", ("unit",), _COUNT_FILL),
    "unit_group": ArraySpec("uint16", ("unit",), 2**16 - 1),
}

SITES_SCHEMA: Mapping[str, ArraySpec] = {
    "site_layer": ArraySpec("uint32", ("site",), NO_DOCUMENT),
    "site_first": ArraySpec("uint32", ("site",), NO_DOCUMENT),
    "site_neurons": ArraySpec("uint32", ("site",), NO_DOCUMENT),
    "site_expert": ArraySpec("int32", ("site",), -2),
    "site_stack": ArraySpec("uint8", ("site",), 255),
    "site_name": ArraySpec("string", ("site",), ""),
}
"""Of `profiler.networks.site_arrays`: a row a network or an expert; expert -1: none; stack 0: decoder."""

_CORPUS_ATTRIBUTES: Mapping[str, type] = {
    **dict.fromkeys(("documents", "bytes", "counted", "duplicates", "tokens", "units", "empty_groups"), int),
    "skipped": dict,
    "skipped_documents": list,
    "restarted_units": list,
    "versions": dict,
}
"""Types of those attributes of a corpus that are read for more than to be compared."""

Arrays = dict[str, np.ndarray]


class Blocks(NamedTuple):
    """An array that comes in blocks, one after the other along an axis, and is never whole in memory."""

    shape: tuple[int, ...]
    axis: int
    blocks: Iterable[np.ndarray]


_ZARR_ERRORS = (OSError, ValueError, TypeError, RuntimeError, KeyError, ArithmeticError)
"""What zarr and its codecs raise of damaged files."""


def work_folder(path: Path) -> Path:
    """Where working state lies: in the store; of a store in a bucket in NEUROTALLY_HOME, by default ~/.cache."""
    if not buckets.is_remote(path):
        return path / RUN_FOLDER
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    home = Path(os.environ.get("NEUROTALLY_HOME") or Path(cache, "neurotally")).expanduser()
    server = [os.environ.get(name, "") for name in ("AWS_ENDPOINT_URL", "AZURE_STORAGE_ACCOUNT_NAME")]
    digest = hashlib.sha256("\n".join([str(path), *server]).encode()).hexdigest()
    return home / "runs" / f"{path.name}-{digest[:16]}"


def is_begun(path: Path) -> bool:
    """Whether there is a store, be it empty."""
    return buckets.exists(path / "zarr.json")


def create_store(path: Path, attributes: Mapping[str, Any]) -> None:
    """Make an empty store with the given root attributes; `attributes` gains the schema version."""
    ours: dict[str, Any] = {"schema": SCHEMA_VERSION, **attributes}
    if buckets.is_remote(path):
        ours["id"] = uuid.uuid4().hex
        _note_id(path, ours["id"])
    root = {
        "attributes": ours,
        "zarr_format": 3,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}},
        "node_type": "group",
    }
    if not buckets.is_remote(path):
        path.mkdir(parents=True, exist_ok=True)
    put_root(path, root, None)


def forget_other_work(path: Path) -> None:
    """Drop the working state that a former store left which lay at the same place in a bucket, and is gone.

    A store in a bucket has a random id among its attributes; the working state notes of which it is.
    """
    if not is_own_work(path):
        for entry in work_folder(path).iterdir():
            if entry.name not in KEPT_IN_WORK:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if is_begun(path):
        attributes = store_attributes(path)
        store_id = attributes.get("id") or uuid.uuid4().hex  # a store that was copied here may have none
        if store_id != attributes.get("id"):
            replace_attributes(path, {**attributes, "id": store_id})
        _note_id(path, store_id)


def is_own_work(path: Path) -> bool:
    """Whether the working state is that of the store which lies there now; of a folder it always is."""
    if not buckets.is_remote(path):
        return True
    noted = (read_json(work_folder(path) / "store.json") or {}).get("id")
    return noted is not None and is_begun(path) and store_attributes(path).get("id") == noted


def _note_id(path: Path, store_id: str) -> None:
    replace_json(work_folder(path) / "store.json", {"id": store_id})


def write_sites(path: Path, networks: Networks) -> None:
    """Write and commit the table of sites, unless the store has it or needs none."""
    if not networks or "sites" in nodes_of(read_root(path)):
        return
    finished = work_folder(path) / "sites"
    shutil.rmtree(finished, ignore_errors=True)
    write_arrays(finished, site_arrays(networks), {}, SITES_SCHEMA)
    commit(path, "sites", finished)


def store_attributes(path: Path) -> dict[str, Any]:
    """The root's attributes; an InputError where there is no store that we can read."""
    attributes: dict[str, Any] = read_root(path)["attributes"]
    return attributes


def replace_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Replace the root's attributes; what is committed stays."""
    root, version = read_versioned(path)
    put_root(path, {**root, "attributes": dict(attributes)}, version)


def committed_corpora(path: Path) -> list[str]:
    """The names of the corpora that are complete, in name order."""
    return committed(path, "corpora")


def committed(path: Path, family: str) -> list[str]:
    """The names of the groups of a family (`corpora`, `embeddings`, …) that are complete, in name order."""
    prefix = f"{family}/"
    return [group.removeprefix(prefix) for group in committed_groups(path) if group.startswith(prefix)]


def committed_groups(path: Path) -> list[str]:
    """All groups `FAMILY/NAME` that are complete, in name order."""
    metadata = nodes_of(read_root(path))
    return sorted(
        node for node, entry in metadata.items() if node.count("/") == 1 and entry.get("node_type") == "group"
    )


def write_arrays(
    path: Path,
    arrays: Mapping[str, np.ndarray | Blocks],
    attributes: Mapping[str, Any],
    schema: Mapping[str, ArraySpec] = SCHEMA,
) -> None:
    """Write `arrays` (names of `schema`) as a new Zarr group at `path`, every chunk of them."""
    with _quiet_zarr():
        group = zarr.create_group(str(path), attributes=dict(attributes), zarr_format=3)
        for name, values in arrays.items():
            _write_array(group, name, values, schema[name], _chunks(schema[name], values.shape))


def add_array(path: Path, name: str, values: Blocks, chunks: tuple[int, ...]) -> None:
    """Write one more array of SCHEMA into the Zarr group at `path`, every chunk of it."""
    with _quiet_zarr():
        _write_array(zarr.open_group(str(path), mode="r+", zarr_format=3), name, values, SCHEMA[name], chunks)


def read_arrays(path: Path, names: Sequence[str] | None = None, schema: Mapping[str, ArraySpec] = SCHEMA) -> Arrays:
    """Read arrays of a group that isn't committed (all, or those of `names` that are there), each chunk checked.

    Raises InputError where an array isn't what `schema` says, or a chunk is missing or damaged.
    """
    found = sorted(node.parent.name for node in path.glob("*/zarr.json"))
    wanted = found if names is None else [name for name in names if name in found]
    layouts = {name: ArrayLayout.read(path / name / "zarr.json") for name in wanted}
    check_axes(path, layouts)
    return {name: read_slice(open_array(path / name, schema.get(name))) for name in wanted}


def read_corpus(store: Path, corpus: str, names: Sequence[str] | None = None) -> Arrays:
    """Read a committed corpus's arrays; asked-for arrays that the store lacks raise an InputError naming them."""
    if corpus not in committed_corpora(store):
        raise InputError(f"{store} has no finished corpus {corpus!r}; it has {committed_corpora(store)}")
    return read_group(store, f"corpora/{corpus}", names)


def read_group(store: Path, group: str, names: Sequence[str] | None = None) -> Arrays:
    """Read arrays of a committed group `FAMILY/NAME`; an InputError where it or one of `names` isn't there."""
    arrays = read_found(store, group, names)
    if missing := [name for name in names or [] if name not in arrays]:
        raise InputError(f"{group} of {store} lacks {', '.join(missing)}")
    return arrays


def read_found(store: Path, group: str, names: Sequence[str] | None = None) -> Arrays:
    """Read those of `names` that a committed group has (None: all); an InputError where there is no such group."""
    arrays = open_committed(store, group, names)
    return {name: read_slice(array) for name, array in arrays.items()}


def open_committed(store: Path, group: str, names: Sequence[str] | None = None) -> dict[str, zarr.Array]:
    """Open those of `names` that a committed group has (None: all), each compared with what the root says of it."""
    family, _, name = group.partition("/")
    root = read_root(store)
    metadata = nodes_of(root)
    if group not in metadata or not name:
        raise InputError(f"{store} has no finished {group}; its {family}: {committed(store, family) or 'none'}")
    prefix = f"{group}/"
    listed = {
        node.removeprefix(prefix): ArrayLayout.of(entry, store / node)
        for node, entry in metadata.items()
        if node.startswith(prefix)
    }
    schema, known = (SCHEMA, _known_sizes(root)) if family == "corpora" else ({}, {})
    check_axes(store / group, listed, known)
    wanted = [array for array in listed if names is None or array in names]
    return {array: open_array(store / group / array, schema.get(array), listed[array]) for array in wanted}


def open_array(path: Path, spec: ArraySpec | None = None, listed: ArrayLayout | None = None) -> zarr.Array:
    """Open an array for reading once its metadata has been compared with what is known of it.

    `listed`: what the store's root says. Raises InputError; nothing of the array but its zarr.json is looked at then.
    """
    layout = ArrayLayout.read(path / "zarr.json")
    layout.check(path, None if spec is None else (spec.dtype, spec.dimensions), listed)
    try:
        with _quiet_zarr(), buckets.as_unreachable(path):
            where, inside = buckets.zarr_location(path)
            array = zarr.open_array(where, path=inside, mode="r", zarr_format=3)
            is_whole = not array.size or array.nchunks_initialized == array.nchunks
    except InputError:
        raise
    except _ZARR_ERRORS as error:
        raise InputError(f"{path} can't be read: {first_line(error)}") from error
    if not is_whole:
        raise InputError(f"{path} has {array.nchunks_initialized} of {array.nchunks} chunks: it was cut off")
    return array


def read_slice(array: zarr.Array, part: Any = ...) -> np.ndarray:
    """Read (a part of) an opened array; an InputError naming it where a chunk is damaged."""
    path = str(array.store_path).removeprefix("file://")
    try:
        with buckets.as_unreachable(path):
            values: np.ndarray = np.asarray(array[part])
    except InputError:
        raise
    except _ZARR_ERRORS as error:
        raise InputError(f"{path} can't be read: {first_line(error)}") from error
    return values


def corpus_attributes(store: Path, corpus: str) -> dict[str, Any]:
    """A committed corpus's attributes."""
    return group_attributes(store, f"corpora/{corpus}")


def group_attributes(store: Path, group: str) -> dict[str, Any]:
    """The attributes of a committed group `FAMILY/NAME`; InputError where one is of another type than it must be."""
    family, _, name = group.partition("/")
    return family_attributes(store, family)[name]


def family_attributes(store: Path, family: str) -> dict[str, dict[str, Any]]:
    """Name: attributes of all committed groups of a family, in name order; the root is read once."""
    prefix = f"{family}/"
    found = {
        group.removeprefix(prefix): node.get("attributes") or {}
        for group, node in sorted(nodes_of(read_root(store)).items())
        if group.startswith(prefix) and group.count("/") == 1
    }
    for name, attributes in found.items() if family == "corpora" else ():
        for key, kind in _CORPUS_ATTRIBUTES.items():
            if key in attributes and not isinstance(attributes[key], kind):
                raise InputError(
                    f"{store}: corpus {name!r} has {key} {attributes[key]!r}, expected {kind.__name__}: a zarr.json "
                    "was changed; restore the store from a copy"
                )
    return found


def run_folder(store: Path, group: str) -> Path:
    """Where the working state lies of what will become the group `FAMILY/NAME`."""
    return work_folder(store) / group


def unlisted_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a group that isn't committed."""
    attributes: dict[str, Any] = (read_json(path / "zarr.json") or {}).get("attributes") or {}
    return attributes


def publish(store: Path, group: str, finished: Path) -> None:
    """Commit the finished group at `finished` (in the working state) as `FAMILY/NAME`.

    It is moved, or copied to the bucket, and then listed by the root. What `finished` was made from must stay until
    this returns: a run that ends between the two steps leaves a group that isn't listed, so isn't there, and that is
    made and put there again.
    """
    family, _, name = group.partition("/")
    if not buckets.is_remote(store) and (store / family).is_symlink():
        raise InputError(f"{store / family} is a link; groups are moved into folders of the store: remove the link")
    if name in committed(store, family):
        raise InputError(f"{group} of {store} was written by another run meanwhile; a committed group never changes")
    commit(store, group, finished)


def _known_sizes(root: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """How long the dimensions are that all corpora of a store share, and who says so; none of imported counts."""
    model, config = (root["attributes"].get(part) or {} for part in ("model", "config"))
    known = {
        "layer": (model.get("num_layers"), "the model"),
        "neuron": (model.get("num_neurons"), "the model"),
        "group": (config.get("groups"), "the config"),
        "trigger": (config.get("triggers"), "the config"),
    }
    return {dimension: (size, what) for dimension, (size, what) in known.items() if size is not None}


@contextmanager
def _quiet_zarr() -> Iterator[None]:
    """`string` is a registered extension type of Zarr v3 that zarr-python still announces at every use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _write_array(
    group: zarr.Group, name: str, values: np.ndarray | Blocks, spec: ArraySpec, chunks: tuple[int, ...]
) -> None:
    typesize = 1 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
    blosc = BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=typesize)
    array = group.create_array(
        name, shape=values.shape, dtype=spec.dtype, chunks=chunks, fill_value=spec.fill,
        dimension_names=spec.dimensions, compressors=[blosc, Crc32cCodec()], config={"write_empty_chunks": True},
    )  # fmt: skip
    if isinstance(values, Blocks):
        _write_blocks(array, values)
    elif values.size:
        array[...] = values


def _write_blocks(array: zarr.Array, values: Blocks) -> None:
    """Write whole chunks, as soon as they are full: none is written twice, and a row of them is all that is held."""
    before, size = (slice(None),) * values.axis, values.shape[values.axis]
    length = min(array.chunks[values.axis], size)
    held = np.empty([length if axis == values.axis else n for axis, n in enumerate(values.shape)], array.dtype)
    written = filled = 0
    for block in values.blocks:
        left = block.shape[values.axis]
        while left:
            taken = min(length - filled, left)
            from_block = slice(block.shape[values.axis] - left, block.shape[values.axis] - left + taken)
            held[(*before, slice(filled, filled + taken))] = block[(*before, from_block)]
            filled, left = filled + taken, left - taken
            if filled == length or written + filled == size:
                array[(*before, slice(written, written + filled))] = held[(*before, slice(filled))]
                written, filled = written + filled, 0
    assert written == size, (written, values.shape)


def _chunks(spec: ArraySpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Whole trailing axes, and as many of the first as fit some 16 MB, so that a group or layer is one read."""
    if 0 in shape:
        return tuple(max(1, size) for size in shape)
    itemsize = 64 if spec.dtype == "string" else np.dtype(spec.dtype).itemsize
    chunks = list(shape)
    for axis in range(len(chunks)):
        rest = itemsize * int(np.prod(chunks[axis + 1 :], dtype=np.int64))
        chunks[axis] = max(1, min(chunks[axis], _CHUNK_BYTES // max(rest, 1)))
        if chunks[axis] > 1:
            break
    return tuple(chunks)
