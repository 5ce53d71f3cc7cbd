"""What the neuron pass finds: the statistics of every feed-forward neuron in a unit, and their sum over a corpus.

Integers, extremes and triggers merge in any order; float64 sums are added left to right by unit, so that a store does
not depend on which worker finished first.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from neurotally.kernels.statistics import statistics_of
from neurotally.kernels.trigger_lists import CorpusTriggers, UnitTriggers
from neurotally.profiler.networks import Networks, differ_in_tokens, has_experts, is_expert, site_numbers

if TYPE_CHECKING:  # a model is read, and measured, where zarr isn't installed
    from neurotally.profiler.store import Arrays

_HELD_UNITS = 16
"""So many units are inserted together; fewer where their triggers would take more memory than the lists."""
SITE_COUNTS = ("site_tokens", "site_special_tokens")
_MERGES = {"sum": np.add, "max": np.maximum, "min": np.minimum}


@dataclass(frozen=True)
class UnitNeurons:
    """The neurons of one unit."""

    sums: "Arrays"
    """By the names of STATISTICS, [L, F] each, in the dtype that `Statistic.shipped` says."""
    triggers: UnitTriggers
    """Of neurons numbered layer · F + neuron; none where no triggers are kept."""
    routed: "Arrays" = field(default_factory=dict)
    """Where sites differ in the tokens that reach them, [S] each: `site_tokens` and `site_special_tokens`, int64, those
    that did; and of a model that has experts `site_weight`, float64, the sum of their routing weights."""


class CorpusNeurons:
    """The sum of units of one corpus: what the store's arrays hold."""

    def __init__(self, sums: "Arrays", routed: "Arrays", triggers: CorpusTriggers, networks: Networks):
        self.sums = sums
        self.routed = routed
        """By group and site."""
        self.triggers = triggers
        self._by_neuron = sums["coefficient_max"].shape
        self._networks = networks
        self._is_expert_S = is_expert(networks)
        self._statistics = statistics_of(bool(self._is_expert_S.any()))
        self._held: list[UnitTriggers] = []
        """Triggers of the latest units, not inserted yet."""

    @classmethod
    def empty(
        cls, num_layers: int, num_neurons: int, num_groups: int, num_triggers: int, networks: Networks = ()
    ) -> "CorpusNeurons":
        """Before the first unit."""
        by_neuron, num_sites = (num_layers, num_neurons), len(is_expert(networks))
        sums = {
            one.name: np.full((num_groups, *by_neuron) if one.by_group else by_neuron, one.initial, one.stored)
            for one in statistics_of(has_experts(networks))
        }
        routed = {
            name: np.zeros(num_sites) if name == "site_weight" else np.zeros((num_groups, num_sites), np.uint64)
            for name in _site_names(networks)
        }
        return cls(sums, routed, CorpusTriggers.empty(num_layers * num_neurons, num_triggers), networks)

    def add(self, unit: UnitNeurons, group: int) -> None:
        """Add one unit, the next in order, to its group and to the sums."""
        for name, sums in self.routed.items():
            sum_S = sums if name == "site_weight" else sums[group]
            sum_S += unit.routed[name].astype(sum_S.dtype)
        for one in self._statistics:
            into = self.sums[one.name][group] if one.by_group else self.sums[one.name]
            _MERGES[one.merge](into, unit.sums[one.name], out=into)
        self._held.append(unit.triggers)
        held = sum(len(triggers.value_N) for triggers in self._held)
        if len(self._held) == _HELD_UNITS or held >= self.triggers.value_FK.size:
            self._insert_held()

    def trigger_threshold(self) -> np.ndarray | None:
        """float32 [L, F]: below it a coefficient can't enter the triggers any more; 0 where a list isn't full."""
        if not self.triggers.value_FK.shape[1]:
            return None
        self._insert_held()
        return self.triggers.value_FK[:, -1].reshape(self._by_neuron).copy()

    def arrays(self) -> "Arrays":
        """The arrays of the store that this pass fills."""
        sums = {**self.sums, **self.routed}
        if self._networks:
            number_LF = site_numbers(self._networks, *self._by_neuron)
            for one in self._statistics:
                fill = np.array(one.fill, one.stored)
                sums[one.name] = np.where(number_LF >= 0, self.sums[one.name], fill)
        if self._is_expert_S.any():  # of a network that is no mixture the weight is 1
            is_ordinary_LF = (number_LF >= 0) & ~self._is_expert_S[number_LF]
            weighted_LF = sums["weighted_coefficient_sum"]
            weighted_LF[is_ordinary_LF] = sums["coefficient_sum"][is_ordinary_LF]
        if not self.triggers.value_FK.shape[1]:
            return sums
        self._insert_held()
        by_trigger = (*self._by_neuron, -1)
        used_FK = self.triggers.value_FK > 0
        return sums | {
            "trigger_value": np.where(used_FK, self.triggers.value_FK, np.float32(np.nan)).reshape(by_trigger),
            "trigger_document": self.triggers.document_FK.reshape(by_trigger),
            "trigger_position": self.triggers.position_FK.reshape(by_trigger),
        }

    def _insert_held(self) -> None:
        self.triggers.insert(self._held)
        self._held = []

    @classmethod
    def from_arrays(cls, arrays: "Arrays", networks: Networks = ()) -> "CorpusNeurons":
        """The inverse of `arrays`, lossless; takes the arrays over."""
        _, num_layers, num_neurons = arrays["active"].shape
        sums = {one.name: arrays[one.name] for one in statistics_of(has_experts(networks))}
        routed = {name: arrays[name] for name in _site_names(networks)}
        triggers = CorpusTriggers.empty(num_layers * num_neurons, 0)
        if "trigger_value" in arrays:
            flat = (num_layers * num_neurons, arrays["trigger_value"].shape[-1])
            triggers = CorpusTriggers(
                np.nan_to_num(arrays["trigger_value"].reshape(flat), copy=False, nan=0.0, posinf=np.inf),
                arrays["trigger_document"].reshape(flat),
                arrays["trigger_position"].reshape(flat),
            )
        return cls(sums, routed, triggers, networks)


def array_names(num_triggers: int, networks: Networks = ()) -> list[str]:
    """Of `CorpusNeurons.arrays`."""
    triggers = ("trigger_value", "trigger_document", "trigger_position") if num_triggers else ()
    return [*(one.name for one in statistics_of(has_experts(networks))), *_site_names(networks), *triggers]


def _site_names(networks: Networks) -> tuple[str, ...]:
    """What is counted of each site: nothing where all see the same tokens."""
    if has_experts(networks):
        return (*SITE_COUNTS, "site_weight")
    return SITE_COUNTS if differ_in_tokens(networks) else ()
