"""Mask files: named sets of neurons to switch off.

A mask file is a JSON document with `model` ({"id", "fingerprint"} or null) and `specific`
({name: [[layer, neuron], ...]}); what `neurotally lape --out` writes is one. A fingerprint that is there must be
the model's; where the file has none, only the shape can be checked.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import parsed_file


def read_mask(path: Path, fingerprint: str | None, num_layers: int, num_neurons: int) -> Mapping[str, np.ndarray]:
    """The sets of a mask file by name, int64 [n, 2] of (layer, neuron), ascending, each once.

    `num_layers`, `num_neurons`: of the model, neurons of each layer.

    Raises InputError for a file that can't be read, isn't a mask, is of another model, holds a neuron that the
    model lacks, or none at all.
    """
    document = _load(path)
    model = document["model"] or {}
    if not isinstance(model, dict) or not isinstance(document["specific"], dict):
        raise InputError(f"{path}: 'model' and 'specific' must be objects ('model' may be null)")
    its_fingerprint = model.get("fingerprint")
    if its_fingerprint and fingerprint and its_fingerprint != fingerprint:
        raise InputError(
            f"{path} is a mask of another model: {model.get('id')!r} with fingerprint {its_fingerprint!r}, "
            f"expected {fingerprint!r}"
        )
    neurons = {}
    for name, pairs in document["specific"].items():
        neurons_n2 = neurons[name] = _neurons(path, name, pairs)
        beyond_n = (neurons_n2 >= [num_layers, num_neurons]).any(axis=1)
        if beyond_n.any():
            layer, neuron = neurons_n2[beyond_n][0].tolist()
            raise InputError(
                f"{path}: {name!r} has neuron {neuron} of layer {layer}, but the model has {num_layers} layers of "
                f"{num_neurons} neurons, counted from 0"
            )
    if not any(map(len, neurons.values())):
        raise InputError(f"{path} has no neuron in any of its sets: there is nothing to switch off")
    return neurons


@dataclass(frozen=True)
class MaskOrigin:
    """What a mask file tells about how its neurons were chosen."""

    trigger_documents: frozenset[bytes] | None
    """SHA-256 of the documents whose triggers chose them; None where the file doesn't say."""
    trigger_names: frozenset[str]
    """Their names, or those of their files."""
    trigger_files: frozenset[bytes]
    """Of files that documents are windows of: `file_digests`."""
    document_lines: int | None
    """How many lines a document has at most; None: documents are whole files."""
    has_polysemantic: bool
    threshold: float | None
    """LAPE's, where LAPE chose them."""


def read_origin(path: Path) -> MaskOrigin:
    """The part of a mask file that `read_mask`, which must have read it before, leaves out."""
    document = json.loads(path.read_text(encoding="utf-8"))
    if document.get("trigger_documents", ()) is None:
        del document["trigger_documents"]
    try:
        documents, names, files = (
            frozenset(one for of_corpus in document.get(key, {}).values() for one in of_corpus)
            for key in ("trigger_documents", "trigger_names", "trigger_files")
        )
        hashes, digests = (frozenset(map(bytes.fromhex, of)) for of in (documents, files))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: 'trigger_documents' and 'trigger_files' must be {{corpus: [SHA-256 in hexadecimal, ...]}}, and "
            "'trigger_names' {corpus: [name, ...]}"
        ) from error
    threshold = document.get("bar")
    return MaskOrigin(
        hashes if "trigger_documents" in document else None, names, digests,
        document.get("document_lines"), "polysemantic" in document,
        threshold if isinstance(threshold, float) else None,
    )  # fmt: skip


def file_digests(file_of_D: Sequence[str], sha256_D32: np.ndarray) -> dict[str, bytes]:
    """SHA-256 of the hashes of a file's windows, in order, by the file's name: equal for files of equal content."""
    hashes: dict[str, list[bytes]] = {}
    for name, row in zip(file_of_D, sha256_D32, strict=True):
        hashes.setdefault(name, []).append(bytes(row))
    return {name: hashlib.sha256(b"".join(of_file)).digest() for name, of_file in hashes.items()}


def _load(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = parsed_file(path, json.loads, "JSON")
    if not isinstance(document, dict) or (missing := [key for key in ("model", "specific") if key not in document]):
        lacks = "it is no object" if not isinstance(document, dict) else f"it lacks {' and '.join(missing)}"
        raise InputError(f"{path} is no mask: {lacks}; `neurotally lape STORE --out FILE.json` writes one")
    return document


def _neurons(path: Path, name: str, pairs: Any) -> np.ndarray:
    """A JSON list of pairs as int64 [n, 2], sorted, each once."""
    if not isinstance(pairs, list):
        raise InputError(f"{path}: the neurons of {name!r} must be a list of [layer, neuron]")
    for pair in pairs:
        # bool is an int to Python; 2^53 is where JSON's integers end for most writers.
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or any(type(number) is not int or not 0 <= number < 2**53 for number in pair):
            raise InputError(f"{path}: {name!r}: expected [layer, neuron], two integers from 0, got {pair!r:.60}")
    return np.unique(np.array(pairs, np.int64).reshape(-1, 2), axis=0)
