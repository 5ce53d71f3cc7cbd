"""What a Zarr array's metadata says of how its bytes are to be read.

Compared by meaning, since versions of zarr spell the same thing differently. An array is handed to zarr only when
its codecs are among a few that do nothing but decode bytes: others, such as pickles of objects, could run code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neurotally.profiler.buckets import is_remote
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json

_CODECS = ("bytes", "vlen-utf8", "blosc", "zstd", "gzip", "crc32c")
"""Those that a store is written with, and the two that other writers use where nothing is asked for."""


class ArrayLayout(NamedTuple):
    """The parts of an array's metadata that decide what is read."""

    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    chunks: tuple[int, ...]
    chunk_keys: tuple[str, str]
    """How the files of chunks are named."""
    codecs: tuple[str, ...]
    byte_order: str
    fill: Any

    @classmethod
    def read(cls, file: Path) -> "ArrayLayout":
        """From an array's zarr.json; InputError where it isn't there or is none."""
        places = () if is_remote(file) else (file, file.parent, file.parent / "c")
        if link := next((path for path in places if path.is_symlink()), None):
            raise InputError(
                f"{link} is a link, and an array's files aren't looked for elsewhere: put a copy in its place"
            )
        metadata = read_json(file)
        if metadata is None:
            raise InputError(f"{file} is gone, so the array can't be read; restore it from a copy of the store")
        return cls.of(metadata, file.parent)

    @classmethod
    def of(cls, metadata: Any, path: Path) -> "ArrayLayout":
        """From the metadata of the array at `path`; InputError where it can't be that of a Zarr v3 array."""
        try:
            if (metadata["zarr_format"], metadata["node_type"]) != (3, "array") or metadata.get("storage_transformers"):
                raise ValueError("it is no Zarr v3 array")
            grid, keys = _named(metadata["chunk_grid"]), _named(metadata["chunk_key_encoding"])
            if grid[0] != "regular":
                raise ValueError(f"its chunks are {grid[0]!r}")
            codecs = [_named(codec) for codec in metadata["codecs"]]
            dtype = _named(metadata["data_type"])[0]
            layout = cls(
                shape=_sizes(metadata["shape"], 0),
                dtype=dtype,
                dimensions=tuple(str(name) for name in metadata.get("dimension_names") or ()),
                chunks=_sizes(grid[1]["chunk_shape"], 1),
                chunk_keys=(keys[0], keys[1].get("separator", "/")),
                codecs=tuple(name for name, _ in codecs),
                byte_order=next((options["endian"] for _, options in codecs if "endian" in options), "little"),
                fill=_fill(metadata["fill_value"], dtype),
            )
            if not len(layout.shape) == len(layout.chunks) == len(layout.dimensions):
                raise ValueError("its shape, chunks and dimension names don't fit together")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else error
            raise InputError(f"{path / 'zarr.json'} isn't the metadata of an array: {reason}") from error
        return layout

    def check(
        self, path: Path, expected: tuple[str, tuple[str, ...]] | None, listed: "ArrayLayout | None" = None
    ) -> None:
        """InputError where the array at `path` isn't as `expected` (dtype, dimensions), or as `listed` in the root."""
        if foreign := [name for name in self.codecs if name not in _CODECS]:
            raise InputError(f"{path} is written with the codec {foreign[0]!r}, expected one of {', '.join(_CODECS)}")
        if self.byte_order != "little":
            raise InputError(
                f"{path} has byte order {self.byte_order!r}, expected 'little'; restore the store from a copy"
            )
        ours = self._asdict()
        by_root = listed._asdict() if listed else ours
        by_schema: dict[str, Any] = ours if expected is None else {"dtype": expected[0], "dimensions": expected[1]}
        for who, theirs in (("the root of its store", by_root), ("the store's schema", by_schema)):
            for what, value in theirs.items():
                if ours[what] != value:
                    raise InputError(
                        f"{path} has {what} {ours[what]!r}, {who} says {value!r}: a zarr.json was changed; "
                        "restore the store from a copy"
                    )


def check_axes(
    path: Path, layouts: Mapping[str, ArrayLayout], known: Mapping[str, tuple[int, str]] | None = None
) -> None:
    """InputError where arrays of one group don't agree how long a dimension is that they share.

    `known`: how long some of them must be, and who says so.
    """
    sizes = {"sha256": (32, "a SHA-256"), **(known or {})}
    for name, layout in layouts.items():
        for dimension, size in zip(layout.dimensions, layout.shape, strict=True):
            expected, other = sizes.setdefault(dimension, (size, name))
            if size != expected:
                raise InputError(
                    f"{path}: {name} has {size} along {dimension!r}, {other} has {expected}; "
                    "a zarr.json was changed: restore the store from a copy"
                )


def _named(entry: Any) -> tuple[str, dict[str, Any]]:
    """The name and the configuration of a data type, codec, grid or encoding; a bare name has none."""
    if isinstance(entry, str):
        return entry, {}
    return entry["name"], dict(entry.get("configuration") or {})


def _sizes(values: Any, least: int) -> tuple[int, ...]:
    sizes = tuple(values)
    if any(type(size) is not int or size < least for size in sizes):
        raise ValueError(f"it has sizes {values!r}")
    return sizes


def _fill(value: Any, dtype: str) -> Any:
    """NaN and infinities are spelt as text in JSON, and NaN never equals itself."""
    return repr(float(value)) if dtype.startswith("float") and not str(value).startswith("0x") else value
