"""The sets of neurons that a loss pass switches off: the ones asked about, and those they are compared with.

none         nothing: the baseline, always the first
specific     the sets asked about, each by its name
random       for each of them as many random neurons of every layer, none of them its own, several draws
candidates   for each as many random neurons of every layer of which as many are above LAPE's threshold, its own
             among them, several draws: is it which ones LAPE chose, or only that they fire often?
spared       for each that shares neurons with another: itself without these polysemantic ones

A draw is a fair one where there is enough to draw from: for `random` four times as many others in each layer, for
`candidates` as many others. Where some layer lacks these candidates, they are drawn from all layers together; where
those lack, too, the control isn't drawn, and `MaskSets.not_drawn` says why. Where a layer has several networks or
experts, both are drawn from the same ones as the set's neurons, as long as each of these has enough: else an expert
that few tokens are sent to, which costs little whatever is off, would be compared with busy ones. Candidates may hold
neurons of the set, since only so are they what it is under the null hypothesis, a draw from all above the threshold:
drawn from the others alone, few others give draws that are alike (30 for 40 neurons: one draw), whatever the set is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.overlap import is_member
from neurotally.profiler.errors import InputError

CONTROLS = ("random", "candidates")
MIN_OTHERS = 4
"""Others in a layer for each of a set's neurons. Of neurons whose costs are t-distributed with 3 degrees of freedom,
6 % of random sets then pass as costing more or less at a level of 5 %, and 8 % with half as many others."""

Strata = Sequence[tuple[int, np.ndarray]]
"""How many neurons to draw, and from which, numbered through the layers."""


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
    drawn_from: str = ""
    """Of a control: "networks" (or experts) where these are told apart and have as many each; else of candidates
    "layers" where every layer has, or "all layers"."""

    def to_json(self, num_layers: int) -> dict[str, Any]:
        """What it is, and how many neurons of each layer."""
        by_layer = np.bincount(self.neurons_n2[:, 0], minlength=num_layers).tolist()
        return {
            "kind": self.kind, "of": self.of, "draw": self.draw, "neurons": len(self.neurons_n2), "by_layer": by_layer,
            **({"drawn_from": self.drawn_from} if self.drawn_from else {}),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class MaskSets:
    """What a loss pass switches off."""

    sets: list[MaskSet]
    draws: int
    """Of each control, asked for."""
    not_drawn: Mapping[str, Mapping[str, str]]
    """By control, by the name of a specific set that is without it: why."""


def mask_sets(
    specific: Mapping[str, np.ndarray],
    num_neurons: int,
    draws: int,
    above: Mapping[str, np.ndarray] | str = "no threshold",
    with_spared: bool = False,
    seed: int = 0,
    site_LF: np.ndarray | None = None,
) -> MaskSets:
    """The sets of a pass. `num_neurons` a layer; `above`: as `above_threshold` gives it, or why it isn't known.

    `site_LF`: int, the number of each neuron's network or expert, -1 where there is no neuron; None: one a layer.
    """
    is_neuron_LF = None if site_LF is None else site_LF >= 0
    sets = [MaskSet("none", "", 0, np.empty((0, 2), np.int64))]
    sets += [MaskSet("specific", name, 0, neurons_n2) for name, neurons_n2 in specific.items()]
    not_drawn: dict[str, dict[str, str]] = {kind: {} for kind in CONTROLS}
    for number, kind in enumerate(CONTROLS):
        for index, (name, neurons_n2) in enumerate(specific.items() if draws else ()):
            found: tuple[Strata, str] | str | None = None
            if site_LF is not None:
                found = _of_the_same_networks(neurons_n2, site_LF, None if kind == "random" else above, name)
            if found is None and kind == "random":
                found = _others(neurons_n2, num_neurons, is_neuron_LF)
            elif found is None:
                found = above if isinstance(above, str) else _candidates(neurons_n2, above[name], is_neuron_LF)
            if isinstance(found, str):
                not_drawn[kind][name] = found
                continue
            strata, drawn_from = found
            for draw in range(draws):
                drawn_n2 = _draw(strata, num_neurons, (seed, index, draw, number))
                sets.append(MaskSet(kind, name, draw, drawn_n2, drawn_from))
    shared_n2 = shared_neurons(list(specific.values())) if with_spared else np.empty((0, 2), np.int64)
    for name, neurons_n2 in specific.items():
        is_shared_n = is_member(neurons_n2, shared_n2)
        if is_shared_n.any():
            sets.append(MaskSet("spared", name, 0, neurons_n2[~is_shared_n]))
    return MaskSets(sets, draws, not_drawn)


def above_threshold(
    rate_CLF: Mapping[str, np.ndarray], threshold: float, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """bool [L, F] for each name: the neurons that fire more often than the threshold in the corpus of that name.

    Of a name that is no corpus: in any corpus.
    """
    above: dict[str, np.ndarray] = {name: rate_LF > threshold for name, rate_LF in rate_CLF.items()}
    anywhere_LF: np.ndarray = np.any(list(above.values()), axis=0)
    return {name: above.get(name, anywhere_LF) for name in names}


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


def _of_the_same_networks(
    neurons_n2: np.ndarray, site_LF: np.ndarray, above: Mapping[str, np.ndarray] | str | None, name: str
) -> tuple[Strata, str] | None:
    """Of each network or expert as many; None where one has too few, or no layer has several.

    `above`: of candidates; None: of others.
    """
    has_several = any(len(np.unique(site_F[site_F >= 0])) > 1 for site_F in site_LF)
    if isinstance(above, str) or not has_several:
        return None
    is_own_LF = np.zeros(site_LF.shape, bool)
    is_own_LF[tuple(neurons_n2.T)] = True
    halves = [site_LF >= 0] if above is None else [above[name], ~above[name]]
    number_LF, strata = np.arange(site_LF.size).reshape(site_LF.shape), []
    for site in np.unique(site_LF[is_own_LF]).tolist():
        for half_LF in halves:
            pool_LF = (site_LF == site) & half_LF
            own = int(np.count_nonzero(is_own_LF & pool_LF))
            others = int(np.count_nonzero(pool_LF)) - own
            if others < (MIN_OTHERS if above is None else 1) * own:
                return None
            strata.append((own, number_LF[pool_LF & ~is_own_LF if above is None else pool_LF]))
    return strata, "networks"


def _others(neurons_n2: np.ndarray, num_neurons: int, is_neuron_LF: np.ndarray | None) -> tuple[Strata, str] | str:
    """Of each layer as many of its others; or why they can't be drawn."""
    strata = []
    for layer in np.unique(neurons_n2[:, 0]).tolist():
        own = neurons_n2[neurons_n2[:, 0] == layer, 1]
        all_n = np.arange(num_neurons) if is_neuron_LF is None else np.flatnonzero(is_neuron_LF[layer])
        others = np.setdiff1d(all_n, own)
        if len(others) < MIN_OTHERS * len(own):
            return f"{len(others)} others in layer {layer} for {len(own)} in the set"
        strata.append((len(own), layer * num_neurons + others))
    return strata, ""


def _candidates(
    neurons_n2: np.ndarray, above_LF: np.ndarray, is_neuron_LF: np.ndarray | None
) -> tuple[Strata, str] | str:
    """As many above and below the threshold, from "layers" or "all layers"; or why they can't be drawn."""
    chosen_LF = np.zeros(above_LF.shape, bool)
    chosen_LF[tuple(neurons_n2.T)] = True
    number_LF = np.arange(above_LF.size).reshape(above_LF.shape)
    by_layer, anywhere = [], []
    below_LF = ~above_LF if is_neuron_LF is None else ~above_LF & is_neuron_LF
    for half_LF, where in ((above_LF, "above"), (below_LF, "below")):
        number_L = np.count_nonzero(chosen_LF & half_LF, axis=1).tolist()
        number = sum(number_L)
        if (others := np.count_nonzero(half_LF) - number) < number:
            return f"{others} others {where} the threshold for {number} in the set"
        by_layer += [(number_L[layer], number_LF[layer][half_LF[layer]]) for layer in range(len(above_LF))]
        anywhere.append((number, number_LF[half_LF]))
    if all(len(pool) >= 2 * number for number, pool in by_layer):
        return by_layer, "layers"
    return anywhere, "all layers"


def _draw(strata: Strata, num_neurons: int, seed: Sequence[int]) -> np.ndarray:
    """So many random ones of each stratum: int64 [n, 2], ascending."""
    generator = np.random.default_rng(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    drawn = [generator.choice(pool, number, replace=False) for number, pool in strata]
    number_n = np.sort(np.concatenate([np.empty(0, np.int64), *drawn]))
    return np.stack(np.divmod(number_n, num_neurons), axis=1)
