"""Spool a streamed Hugging Face dataset to a local parquet file, so that a run can be resumed and split."""

import hashlib
import itertools
import os
from pathlib import Path
from typing import Any

from neurotally.profiler.corpus.documents import Source
from neurotally.profiler.corpus.sources import DEFAULT_COLUMNS
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.store import work_folder

_ROWS_A_GROUP = 1024


def spool_file(store: Path, spec: str, max_files: int | None) -> Path:
    """Where a run of a store spools a dataset to: beside its working state."""
    key = hashlib.sha256(f"{spec} {max_files}".encode()).hexdigest()[:16]
    return work_folder(store) / "spool" / f"{key}.parquet"


def spool_dataset(spec: str, target: Path, max_files: int | None) -> Source:
    """Stream hf:NAME[/CONFIG][::COLUMN] (its train split) to `target`, once; returns the parquet source.

    NAME is a hub id of one or two parts, or a local folder of data files. Needs the extra `neurotally[hf]`.
    """
    name, _, column = spec.removeprefix("hf:").partition("::")
    source = Source("parquet", str(target.absolute()), "text", f"hf:{name}::{column}")
    if target.exists():
        return source
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    _write(partial, _records(name, column or None), max_files)
    os.replace(partial, target)
    return source


def _records(name: str, column: str | None) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise InputError("hf: sources need the datasets library: pip install 'neurotally[hf]'") from error
    parts = name.split("/")
    path, config = (name, None) if Path(name).is_dir() or len(parts) < 3 else ("/".join(parts[:2]), parts[2])
    try:
        stream = load_dataset(path, config, split="train", streaming=True)
        first = next(iter(stream), None)
    except Exception as error:  # the library raises its own kinds, of no common base
        raise InputError(f"can't stream hf:{name}: {first_line(error)}") from error
    if first is None:
        raise InputError(f"hf:{name} is empty")
    chosen = column or next((key for key in DEFAULT_COLUMNS if key in first), None)
    if chosen not in first:
        raise InputError(f"hf:{name}: expected a column {column or DEFAULT_COLUMNS}, it has {list(first)}")
    return (record[chosen] for record in stream)


def _write(path: Path, records: Any, max_files: int | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = (text if isinstance(text, str) else None for text in itertools.islice(records, max_files))
    schema = pa.schema([("text", pa.large_string())])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while held := list(itertools.islice(texts, _ROWS_A_GROUP)):
            writer.write_table(pa.table({"text": held}, schema=schema))
