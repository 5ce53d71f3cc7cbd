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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from neurotally.analysis.overlap import is_member

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
    site_LF: np.ndarray,
    draws: int,
    above: Mapping[str, np.ndarray] | str = "no threshold",
    with_spared: bool = False,
    seed: int = 0,
) -> MaskSets:
    """The sets of a pass. `site_LF`: see `networks.site_numbers`.

    `above`: as `above_threshold` gives it, or why it isn't known.
    """
    sets = [MaskSet("none", "", 0, np.empty((0, 2), np.int64))]
    sets += [MaskSet("specific", name, 0, neurons_n2) for name, neurons_n2 in specific.items()]
    not_drawn: dict[str, dict[str, str]] = {kind: {} for kind in CONTROLS}
    for number, kind in enumerate(CONTROLS):
        for index, (name, neurons_n2) in enumerate(specific.items() if draws else ()):
            if kind == "random":
                found = _find_strata(neurons_n2, site_LF, None)
            else:
                found = above if isinstance(above, str) else _find_strata(neurons_n2, site_LF, above[name])
            if isinstance(found, str):
                not_drawn[kind][name] = found
                continue
            strata, drawn_from = found
            for draw in range(draws):
                drawn_n2 = _draw(strata, site_LF.shape, (seed, index, draw, number))
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


def _find_strata(neurons_n2: np.ndarray, site_LF: np.ndarray, above_LF: np.ndarray | None) -> tuple[Strata, str] | str:
    """What a control of a set is drawn from, and `drawn_from`; or why there are too few.

    `above_LF`: of candidates; None: of the set's others.
    """
    layer_L1 = np.arange(len(site_LF))[:, None]
    if above_LF is None:
        ways = {"networks": site_LF, "": layer_L1}
    else:
        below_LF = (~above_LF).astype(np.int64)
        ways = {
            "networks": 2 * site_LF + below_LF, "layers": len(site_LF) * below_LF + layer_L1, "all layers": below_LF
        }  # fmt: skip
    if not any(len(np.unique(site_F[site_F >= 0])) > 1 for site_F in site_LF):
        del ways["networks"]
    own_n = np.ravel_multi_index(tuple(neurons_n2[site_LF[tuple(neurons_n2.T)] >= 0].T), site_LF.shape)
    for drawn_from, label_LF in ways.items():
        found = _strata(np.where(site_LF >= 0, label_LF, -1).ravel(), own_n, is_of_others=above_LF is None)
        if not isinstance(found, _TooFew):
            return found, drawn_from
    assert isinstance(found, _TooFew), "there is always a way"
    where = f"in layer {found.label}" if above_LF is None else f"{('above', 'below')[found.label]} the threshold"
    return f"{found.others} others {where} for {found.own} in the set"


class _TooFew(NamedTuple):
    """Neurons of a label beside the set's own."""

    label: int
    others: int
    own: int


def _strata(label_N: np.ndarray, own_n: np.ndarray, is_of_others: bool) -> Strata | _TooFew:
    """As many of each label as the set has, of its others or of all."""
    strata = []
    for label, own in zip(*np.unique(label_N[own_n], return_counts=True), strict=True):
        pool = np.flatnonzero(label_N == label)
        others = len(pool) - own
        if others < (MIN_OTHERS if is_of_others else 1) * own:
            return _TooFew(label, others, own)
        strata.append((own, np.setdiff1d(pool, own_n, assume_unique=True) if is_of_others else pool))
    return strata


def _draw(strata: Strata, shape: tuple[int, ...], seed: Sequence[int]) -> np.ndarray:
    """So many random ones of each stratum: int64 [n, 2], ascending."""
    generator = np.random.default_rng(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    drawn = [generator.choice(pool, number, replace=False) for number, pool in strata]
    number_n = np.sort(np.concatenate([np.empty(0, np.int64), *drawn]))
    return np.stack(np.unravel_index(number_n, shape), axis=1)
