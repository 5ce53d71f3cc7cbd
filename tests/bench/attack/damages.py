"""Ways to damage a store: files missing, cut, with a flipped bit or random bytes; metadata and JSON edited."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Change = Callable[[Path], None]


@dataclass(frozen=True)
class Damage:
    """One damage to one store, which lies at the path that `apply` is given."""

    kind: str
    target: str
    """Relative path of the file."""
    apply: Change

    @property
    def names(self) -> tuple[str, ...]:
        """What a message about it would name: the array or the file."""
        parts = [part for part in self.target.split("/") if part not in ("corpora", "zarr.json", "c") and len(part) > 2]
        return tuple(parts) or (self.target,)

    def __str__(self) -> str:
        return f"{self.kind} of {self.target}"


def finished_damages(store: Path, rng: random.Random) -> Iterator[Damage]:
    """Of a finished store, for ever, in turn by kind."""
    chunks = _files(store, lambda path: "/c/" in path)
    metadata = _files(store, lambda path: path.endswith("zarr.json"))
    arrays = [path for path in metadata if json.loads((store / path).read_text())["node_type"] == "array"]
    files = {"chunk": chunks, "zarr.json": metadata}
    while True:
        for what, paths in files.items():
            for kind, change in FILE_CHANGES.items():
                if (what, kind) != ("zarr.json", "bit"):  # a digit for a digit, which nothing can know
                    yield _of_file(f"{what} {kind}", rng.choice(paths), change, rng.random())
        for kind, edit in _EDITS.items():
            for place in ("array", "root", "both"):
                yield _of_metadata(f"{kind} ({place})", rng.choice(arrays), edit, place, rng.random())
        group = rng.choice(arrays).rpartition("/")[0]
        yield Damage("array gone", group, lambda path, group=group: shutil.rmtree(path / group))


def unfinished_damages(store: Path, rng: random.Random) -> Iterator[Damage]:
    """Of the working folder of an unfinished store, for ever, in turn by kind."""
    run = _files(store, lambda path: path.startswith(".run/") and not path.endswith("lock"))
    kinds = {
        "checkpoint's chunk": [path for path in run if "/c/" in path],
        "checkpoint's zarr.json": [path for path in run if path.endswith("zarr.json")],
        "part": [path for path in run if path.endswith(".npz")],
        "JSON": [path for path in run if path.endswith(".json") and not path.endswith("zarr.json")],
    }
    arrays = [path for path in kinds["checkpoint's zarr.json"] if "/checkpoint-" in path and path.count("/") > 4]
    while True:
        for what, paths in kinds.items():
            for kind, change in FILE_CHANGES.items() if paths else ():
                yield _of_file(f"{what} {kind}", rng.choice(paths), change, rng.random())
        for path in kinds["JSON"]:
            for kind, edit in _JSON_EDITS.items():
                yield Damage(f"JSON {kind}", path, _edit_json(path, edit, rng.random()))
        for kind, edit in _EDITS.items() if arrays else ():
            yield _of_metadata(f"checkpoint's {kind}", rng.choice(arrays), edit, "array", rng.random())


def _files(store: Path, wanted: Callable[[str], bool]) -> list[str]:
    relative = [path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()]
    return sorted(path for path in relative if wanted(path))


def _of_file(kind: str, target: str, change: Callable[[bytes, random.Random], bytes | None], seed: float) -> Damage:
    def apply(store: Path) -> None:
        changed = change((store / target).read_bytes(), random.Random(seed))
        (store / target).unlink()
        if changed is not None:
            (store / target).write_bytes(changed)

    return Damage(kind, target, apply)


def _flip_bit(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _random_bytes(content: bytes, rng: random.Random) -> bytes:
    """Eight or more, so that no JSON stays what it was by chance."""
    length = min(len(content), rng.choice((8, 32, 256)))
    start = rng.randrange(len(content) - length + 1)
    return content[:start] + rng.randbytes(length) + content[start + length :]


FILE_CHANGES: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "missing": lambda content, rng: None,
    "empty": lambda content, rng: b"",
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "bit": _flip_bit,
    "random bytes": _random_bytes,
    "longer": lambda content, rng: content + rng.randbytes(8),
}


def _of_metadata(kind: str, target: str, edit: Callable[..., None], place: str, seed: float) -> Damage:
    """Edit an array's own zarr.json, its copy in the root's, or both alike."""

    def apply(store: Path) -> None:
        own, root = json.loads((store / target).read_text()), json.loads((store / "zarr.json").read_text())
        changed = copy.deepcopy(own)
        edit(changed, random.Random(seed))
        if place in ("array", "both"):
            (store / target).write_text(json.dumps(changed))
        if place in ("root", "both"):
            root["consolidated_metadata"]["metadata"][target.rpartition("/")[0]] = changed
            (store / "zarr.json").write_text(json.dumps(root))

    return Damage(kind, target, apply)


_OTHER_TYPES = {
    "uint64": "int64", "float64": "uint64", "uint32": "int32", "float32": "uint32", "uint8": "int8", "uint16": "int16",
    "int64": "uint64", "int32": "float32", "string": "uint8",
}  # fmt: skip


def _change_shape(array: dict[str, Any], rng: random.Random) -> None:
    axis = rng.randrange(len(array["shape"]))
    array["shape"][axis] = max(0, array["shape"][axis] + rng.choice((-1, 1)))


def _change_whole_shape(array: dict[str, Any], rng: random.Random) -> None:
    """Shape and chunk alike: what is read has the wrong size, in the right chunk."""
    _change_shape(array, rng)
    array["chunk_grid"]["configuration"]["chunk_shape"] = [max(1, size) for size in array["shape"]]


def _turn_shape(array: dict[str, Any], rng: random.Random) -> None:
    array["shape"].reverse()
    array["chunk_grid"]["configuration"]["chunk_shape"].reverse()


def _change_type(array: dict[str, Any], rng: random.Random) -> None:
    array["data_type"] = _OTHER_TYPES.get(array["data_type"], "uint8")
    array["fill_value"] = 0


def _change_order(array: dict[str, Any], rng: random.Random) -> None:
    for codec in array["codecs"]:
        if codec["name"] == "bytes":
            codec["configuration"] = {"endian": "big"}


def _drop_checksum(array: dict[str, Any], rng: random.Random) -> None:
    array["codecs"] = [codec for codec in array["codecs"] if codec["name"] != "crc32c"]


def _drop_compressor(array: dict[str, Any], rng: random.Random) -> None:
    array["codecs"] = [codec for codec in array["codecs"] if codec["name"] != "blosc"]


def _add_transpose(array: dict[str, Any], rng: random.Random) -> None:
    order = list(range(len(array["shape"])))[::-1]
    array["codecs"].insert(0, {"name": "transpose", "configuration": {"order": order}})


def _change_chunks(array: dict[str, Any], rng: random.Random) -> None:
    shape = array["chunk_grid"]["configuration"]["chunk_shape"]
    axis = rng.randrange(len(shape))
    shape[axis] = rng.choice((2 * shape[axis], max(1, shape[axis] // 2)))


def _set(key: str, value: Any) -> Callable[[dict[str, Any], random.Random], None]:
    return lambda document, rng: document.__setitem__(key, value)


_EDITS: dict[str, Callable[[dict[str, Any], random.Random], None]] = {
    "shape edited": _change_shape,
    "shape and chunk edited": _change_whole_shape,
    "shape turned": _turn_shape,
    "dtype edited": _change_type,
    "byte order edited": _change_order,
    "checksum dropped": _drop_checksum,
    "compressor dropped": _drop_compressor,
    "transpose added": _add_transpose,
    "chunk shape edited": _change_chunks,
    "fill value edited": _set("fill_value", 0),
    "dimension names edited": _set("dimension_names", ["a", "b", "c"]),
    "codecs gone": _set("codecs", []),
    "chunk keys edited": _set("chunk_key_encoding", {"name": "default", "configuration": {"separator": "."}}),
    "node type edited": _set("node_type", "group"),
    "format edited": _set("zarr_format", 2),
}


def _edit_json(path: str, edit: Callable[[Any, random.Random], Any], seed: float) -> Change:
    def apply(store: Path) -> None:
        edited = edit(json.loads((store / path).read_text()), random.Random(seed))
        (store / path).write_text(json.dumps(edited))

    return apply


def _in_values(change: Callable[[Any], Any]) -> Callable[[Any, random.Random], Any]:
    """Change one value of a document, of whatever key."""

    def edit(document: Any, rng: random.Random) -> Any:
        key = rng.choice(sorted(document))
        return {**document, key: change(document[key])}

    return edit


def _shift_units(step: int) -> Callable[[Any, random.Random], Any]:
    return lambda document, rng: {
        **document, **({"units_done": document["units_done"] + step} if "units_done" in document else {})
    }  # fmt: skip


_JSON_EDITS: dict[str, Callable[[Any, random.Random], Any]] = {
    "a list": lambda document, rng: [],
    "null": lambda document, rng: None,
    "no keys": lambda document, rng: {},
    "a key gone": lambda document, rng: {key: document[key] for key in sorted(document)[1:]},
    "value null": _in_values(lambda value: None),
    "value text": _in_values(lambda value: "../../x"),
    "value a huge number": _in_values(lambda value: 10**30),
    "value below 0": _in_values(lambda value: -5),
    "value a list": _in_values(lambda value: [1]),
    "a unit less": _shift_units(-1),
    "a unit more": _shift_units(1),
}
