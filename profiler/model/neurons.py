"""The neuron pass: statistics of every feed-forward neuron, by unit, and their sum over a corpus.

`NeuronRecorder` runs beside the model and adds up on its device; `UnitNeurons` is what a unit leaves behind;
`CorpusNeurons` is the sum of units. Integers, extremes and triggers merge in any order; float64 sums are
added left to right by unit, so that a store does not depend on which worker finished first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.layer_tally import PAD, SPECIAL, LayerTally, RowMaxima
from neurotally.kernels.routing import Runs
from neurotally.kernels.statistics import statistics_of
from neurotally.kernels.trigger_lists import CorpusTriggers, UnitTriggers
from neurotally.kernels.triggers import LayerTriggers
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.networks import Networks, differ_in_tokens, is_expert, site_numbers

if TYPE_CHECKING:  # a model is read, and measured, where zarr isn't installed
    from neurotally.profiler.store import Arrays

_HELD_UNITS = 16
"""So many units are inserted together; fewer where their triggers would take more memory than the lists."""
SITE_COUNTS = ("site_tokens", "site_special_tokens")
_MERGES = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class NeuronRecorder:
    """Adds up one unit, layer by layer, while the model runs.

    `threshold_LF` (float32 [L, F] or None): the K-th trigger values of other documents of the corpus; see
    `LayerTriggers`.
    """

    def __init__(self, model: HookedModel, num_triggers: int, threshold_LF: np.ndarray | None = None):
        self._shape = (model.num_layers, model.num_neurons)
        self._has_experts = model.has_experts
        self._counts_tokens = model.differ_in_tokens
        self.tallies = {
            point: LayerTally.empty(point.width, point.device, isinstance(point, ExpertsHookPoint))
            for point in model.hook_points
        }
        self._sites = {
            point: RoutedTokens.none(point.num_experts if isinstance(point, ExpertsHookPoint) else 1, point.device)
            for point in model.hook_points
        }
        self._triggers: dict[HookPoint, LayerTriggers] = {}
        for point in model.hook_points if num_triggers else ():
            threshold_F = None
            if threshold_LF is not None:
                threshold_F = torch.from_numpy(threshold_LF[point.layer, _neurons(point)])
            self._triggers[point] = LayerTriggers(point.width, num_triggers, point.device, threshold_F)

    def offer(
        self, point: HookPoint, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor, runs: Runs | None = None
    ) -> None:
        """Offer the row maxima of a network, or with `runs` those of a layer's experts, as triggers."""
        if self._triggers:
            self._triggers[point].add(maxima, document_BT, position_BT, runs)

    def count_routed(self, point: ExpertsHookPoint, expert_S: Tensor, weight_S: Tensor, kind_S: Tensor) -> None:
        """Count the tokens that a batch sent to each expert; `expert_S` ascends, and the others go by its order."""
        self._sites[point].add(expert_S, weight_S, kind_S)

    def count(self, point: HookPoint, kind_BT: Tensor) -> None:
        """Count the tokens that a batch sent to a network that is no mixture: all."""
        if self._counts_tokens:
            self._sites[point].add_all(kind_BT)

    def result(self) -> "UnitNeurons":
        """What was added up, on the host."""
        sums = {one.name: np.full(self._shape, one.initial, one.shipped) for one in statistics_of(self._has_experts)}
        count_LF = np.zeros(self._shape, np.uint32)
        found = [UnitTriggers.none()]
        for point, tally in self.tallies.items():
            where = (point.layer, _neurons(point))
            for name, sums_F in tally.items():
                sums[name][where] = sums_F.cpu().numpy()
            if self._triggers:
                found.append(self._triggers[point].best())
                count_LF[where] = found[-1].count_F
        _, *columns = (np.concatenate(column) for column in zip(*found, strict=True))
        triggers = UnitTriggers(count_LF.ravel(), *columns)
        routed = RoutedTokens.joined(list(self._sites.values()), self._has_experts) if self._counts_tokens else {}
        return UnitNeurons(sums, triggers if self._triggers else UnitTriggers.none(), routed)


def _neurons(point: HookPoint) -> slice:
    """A network's neurons among its layer's."""
    return slice(point.first, point.first + point.width)


class RoutedTokens(NamedTuple):
    """What came by at the sites of a network, on its device: one, or E experts."""

    tokens_E: Tensor
    """int64."""
    special_tokens_E: Tensor
    """int64."""
    weight_E: Tensor
    """float64: the sum of routing weights; 1 a token where nothing is routed."""

    @classmethod
    def none(cls, num_sites: int, device: torch.device) -> "RoutedTokens":
        """Before the first batch."""
        count_E = torch.zeros(num_sites, dtype=torch.int64, device=device)
        return cls(count_E, count_E.clone(), count_E.double())

    @staticmethod
    def joined(parts: "Sequence[RoutedTokens]", has_experts: bool) -> "Arrays":
        """One after the other, on the host, as `UnitNeurons.routed`."""
        columns = (np.concatenate([of_E.cpu().numpy() for of_E in column]) for column in zip(*parts, strict=True))
        joined = dict(zip(("site_tokens", "site_special_tokens", "site_weight"), columns, strict=True))
        return joined if has_experts else {name: joined[name] for name in SITE_COUNTS}

    def add(self, expert_S: Tensor, weight_S: Tensor, kind_S: Tensor) -> None:
        """Add a batch's routed tokens; `expert_S` ascends."""
        is_counted_S = kind_S != PAD
        expert_S, experts = expert_S[is_counted_S], len(self.tokens_E)
        self.tokens_E.add_(torch.bincount(expert_S, minlength=experts))
        is_special_S = kind_S[is_counted_S] == SPECIAL
        self.special_tokens_E.add_(torch.bincount(expert_S[is_special_S], minlength=experts))
        # Differences of one running sum: the same bits whatever the threads.
        running_S = torch.cat([self.weight_E.new_zeros(1), weight_S[is_counted_S].float().double().cumsum(0)])
        first_E = torch.searchsorted(expert_S, torch.arange(experts + 1, device=expert_S.device))
        self.weight_E.add_(running_S[first_E[1:]] - running_S[first_E[:-1]])

    def add_all(self, kind_BT: Tensor) -> None:
        """Add all tokens of a batch."""
        tokens = (kind_BT != PAD).sum()
        self.tokens_E.add_(tokens)
        self.special_tokens_E.add_((kind_BT == SPECIAL).sum())
        self.weight_E.add_(tokens)


@dataclass(frozen=True)
class UnitNeurons:
    """The neurons of one unit."""

    sums: "Arrays"
    """By the names of STATISTICS, [L, F] each, in the dtype that `Statistic.shipped` says."""
    triggers: UnitTriggers
    """Of neurons numbered layer · F + neuron; none where no triggers are kept."""
    routed: "Arrays" = field(default_factory=dict)
    """Where sites differ in the tokens that come by, [S] each: `site_tokens` and `site_special_tokens`, int64, those
    that came by; and of a model that has experts `site_weight`, float64, the sum of their routing weights."""


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
        by_neuron, has_experts, num_sites = (num_layers, num_neurons), _has_experts(networks), len(is_expert(networks))
        sums = {
            one.name: np.full((num_groups, *by_neuron) if one.by_group else by_neuron, one.initial, one.stored)
            for one in statistics_of(has_experts)
        }
        routed: Arrays = {}
        if differ_in_tokens(networks):
            routed = {name: np.zeros((num_groups, num_sites), np.uint64) for name in SITE_COUNTS}
            if has_experts:
                routed["site_weight"] = np.zeros(num_sites)
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
        sums = {one.name: arrays[one.name] for one in statistics_of(_has_experts(networks))}
        routed = {name: arrays[name] for name in (*SITE_COUNTS, "site_weight") if name in arrays}
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
    has_experts = _has_experts(networks)
    by_site = (*SITE_COUNTS, "site_weight")[: 2 + has_experts] if differ_in_tokens(networks) else ()
    triggers = ("trigger_value", "trigger_document", "trigger_position") if num_triggers else ()
    return [*(one.name for one in statistics_of(has_experts)), *by_site, *triggers]


def _has_experts(networks: Networks) -> bool:
    return bool(is_expert(networks).any())
