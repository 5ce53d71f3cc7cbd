"""The sets of neurons that a loss pass switches off: the ones asked about, and those they are compared with.

none         nothing: the baseline, always the first
specific     the sets asked about, each by its name
random       for each of them as many random neurons in every layer, several draws
candidates   for each as many random ones of the corpus's neurons above the bar that weren't chosen, several
             draws: is it what LAPE chooses, or only that they fire often? (fewer where too few are left)
spared       for each that shares neurons with another: itself without these polysemantic ones
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.masking.masks import random_like
from neurotally.profiler.errors import InputError


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Neurons to switch off together."""

    kind: str
    """none, specific, random, candidates or spared."""
    of: str
    """The name of the specific set that it is or belongs to; "" for none."""
    draw: int
    """Number of the random draw; 0 for the others."""
    neurons_n2: np.ndarray
    """int64 (layer, neuron), ascending."""

    def to_json(self, num_layers: int) -> dict[str, Any]:
        """What it is, and how many neurons of each layer."""
        by_layer = np.bincount(self.neurons_n2[:, 0], minlength=num_layers).tolist()
        return {
            "kind": self.kind, "of": self.of, "draw": self.draw, "neurons": len(self.neurons_n2), "by_layer": by_layer,
        }  # fmt: skip


def mask_sets(
    specific: Mapping[str, np.ndarray],
    num_neurons: int,
    draws: int,
    candidates: Mapping[str, np.ndarray] | None = None,
    candidate_draws: int | None = None,
    with_spared: bool = False,
    seed: int = 0,
) -> list[MaskSet]:
    """The sets of a pass. `num_neurons` a layer; `candidates` as `candidate_neurons` gives them.

    `candidate_draws`: None is as many as `draws`. Raises InputError where a layer has too few other
    neurons to draw from.
    """
    sets = [MaskSet("none", "", 0, np.empty((0, 2), np.int64))]
    sets += [MaskSet("specific", name, 0, neurons_n2) for name, neurons_n2 in specific.items()]
    for index, (name, neurons_n2) in enumerate(specific.items()):
        for draw in range(draws):
            drawn_n2 = random_like(neurons_n2, num_neurons, _seed(seed, index, draw, 0))
            sets.append(MaskSet("random", name, draw, drawn_n2))
    pools = {name: candidates[name] for name in specific} if candidates else {}
    for index, (name, pool_n2) in enumerate(pools.items()):
        for draw in range(draws if candidate_draws is None else candidate_draws):
            drawn_n2 = _draw_rows(pool_n2, specific[name], _seed(seed, index, draw, 1))
            sets.append(MaskSet("candidates", name, draw, drawn_n2))
    shared_n2 = shared_neurons(list(specific.values())) if with_spared else np.empty((0, 2), np.int64)
    for name, neurons_n2 in specific.items():
        if len(spared_n2 := _without(neurons_n2, shared_n2)) < len(neurons_n2):
            sets.append(MaskSet("spared", name, 0, spared_n2))
    return sets


def candidate_neurons(counts: CorpusCounts, selection: Selection) -> dict[str, np.ndarray]:
    """By corpus the neurons above the selection's bar: int64 [n, 2] of (layer, neuron), ascending."""
    return {
        name: np.argwhere(active_LF / tokens > selection.bar)
        for name, active_LF, tokens in zip(counts.corpora, counts.active_CLF, counts.tokens_C, strict=True)
    }


def shared_neurons(sets: Sequence[np.ndarray]) -> np.ndarray:
    """The neurons of two or more sets, each of which holds a neuron once: int64 [n, 2], ascending."""
    neurons_n2, number_n = np.unique(np.concatenate(list(sets)), axis=0, return_counts=True)
    shared_n2: np.ndarray = neurons_n2[number_n >= 2]
    return shared_n2


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


def read_origin(path: Path) -> MaskOrigin:
    """The part of a mask file that `read_mask`, which must have read it before, leaves out."""
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        by_corpus = document.get("trigger_documents")
        hashes = (
            None if by_corpus is None else frozenset(bytes.fromhex(one) for many in by_corpus.values() for one in many)
        )
        names = frozenset(name for many in document.get("trigger_names", {}).values() for name in many)
        files = frozenset(bytes.fromhex(one) for many in document.get("trigger_files", {}).values() for one in many)
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: 'trigger_documents' and 'trigger_files' must be {{corpus: [SHA-256 in hexadecimal, ...]}}, and "
            "'trigger_names' {corpus: [name, ...]}"
        ) from error
    return MaskOrigin(hashes, names, files, document.get("document_lines"), "polysemantic" in document)


def file_digests(file_of_D: Sequence[str], sha256_D32: np.ndarray) -> dict[str, bytes]:
    """SHA-256 of the hashes of a file's windows, in order, by the file's name: equal for files of equal content."""
    hashes: dict[str, list[bytes]] = {}
    for name, row in zip(file_of_D, sha256_D32, strict=True):
        hashes.setdefault(name, []).append(bytes(row))
    return {name: hashlib.sha256(b"".join(of_file)).digest() for name, of_file in hashes.items()}


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _draw_rows(pool_n2: np.ndarray, taken_n2: np.ndarray, seed: int) -> np.ndarray:
    """As many rows of the pool as are taken, or all there are, none of them taken; ascending."""
    others_n2 = _without(pool_n2, taken_n2)
    number = min(len(taken_n2), len(others_n2))
    chosen = np.random.default_rng(seed).choice(len(others_n2), number, replace=False)
    drawn_n2: np.ndarray = others_n2[np.sort(chosen)]
    return drawn_n2


def _without(neurons_n2: np.ndarray, others_n2: np.ndarray) -> np.ndarray:
    others = set(map(tuple, others_n2.tolist()))
    is_kept = np.array([tuple(pair) not in others for pair in neurons_n2.tolist()], bool)
    kept_n2: np.ndarray = neurons_n2[is_kept]
    return kept_n2
