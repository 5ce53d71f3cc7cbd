"""`neurotally import`: published activation counts, as a store that `lape` reads.

A file holds {"n": tokens, "over_zero": int [L, F]} as the LAPE papers save it (`torch.save`), and is read
with `weights_only`, so that it can run nothing.
"""

import hashlib
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neurotally.jobs.store_writer import writer_lock
from neurotally.profiler import store
from neurotally.profiler.corpus.sources import check_names
from neurotally.profiler.errors import InputError, first_line

_EXPECTED = "expected a torch file of {'n': int, 'over_zero': int [layers, neurons]}"


def import_counts(path: Path, files: Mapping[str, Path | str]) -> dict[str, tuple[int, int, int]]:
    """Add each file to the store as a corpus of one group. Returns (tokens, layers, neurons) by name."""
    check_names(list(files))
    counts = {name: _read_counts(Path(file)) for name, file in files.items()}
    with writer_lock(path):
        _open(path, list(files), {tuple(active.shape) for _, active in counts.values()})
        for name, (tokens, active_LF) in counts.items():
            _write(path, name, Path(files[name]), tokens, active_LF)
    return {name: (tokens, *active_LF.shape) for name, (tokens, active_LF) in counts.items()}  # type: ignore[misc]


def _read_counts(file: Path) -> tuple[int, np.ndarray]:
    try:
        document: Any = torch.load(file, map_location="cpu", weights_only=True)
        tokens, over_zero = int(document["n"]), document["over_zero"]
        active_LF = np.asarray(over_zero.cpu() if isinstance(over_zero, torch.Tensor) else over_zero)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {file}") from error
    except pickle.UnpicklingError as error:
        raise InputError(f"{file}: {_EXPECTED}; it is no torch file, or holds more than tensors and numbers") from error
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError, EOFError) as error:
        raise InputError(f"{file}: {_EXPECTED}: {first_line(error)}") from error
    is_count = active_LF.ndim == 2 and np.issubdtype(active_LF.dtype, np.integer) and active_LF.size > 0
    if not is_count or not 0 < tokens < 2**63 or active_LF.min() < 0 or active_LF.max() > tokens:
        raise InputError(f"{file}: 'over_zero' isn't integers [layers, neurons] between 0 and n = {tokens}")
    return tokens, active_LF.astype(np.uint64)


def _open(path: Path, names: list[str], shapes: set[tuple[int, ...]]) -> None:
    if store.is_begun(path):
        committed = store.committed_corpora(path)
        if store.store_attributes(path).get("model") is not None:
            raise InputError(f"{path} holds profiles of a model; import counts into a store of their own")
        if taken := sorted(set(names) & set(committed)):
            raise InputError(f"{path} has a corpus {taken[0]!r} already; a committed corpus never changes")
        for name in committed:
            shapes.add(store.read_corpus(path, name, ["active"])["active"].shape[1:])
    if len(shapes) > 1:
        raise InputError(f"the counts have different shapes: {sorted(shapes)}; they aren't of one model")
    if not store.is_begun(path):
        store.create_store(path, {"model": None, "tokenizer": None, "config": None})


def _write(path: Path, name: str, file: Path, tokens: int, active_LF: np.ndarray) -> None:
    fresh = store.work_folder(path) / "import" / name
    shutil.rmtree(fresh, ignore_errors=True)  # of an import that was killed
    fresh.parent.mkdir(parents=True, exist_ok=True)
    attributes = {
        "source": "import",
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "tokens": tokens,
        "units": 0,
        "documents": 0,
    }
    store.write_arrays(fresh, {"tokens": np.array([tokens], np.uint64), "active": active_LF[None]}, attributes)
    store.publish(path, f"corpora/{name}", fresh)
