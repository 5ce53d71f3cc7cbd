"""The statistics of every feed-forward neuron of one unit, added up on the device while the model runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.layer_tally import PAD, SPECIAL, LayerTally, RowMaxima
from neurotally.kernels.routing import Runs
from neurotally.kernels.statistics import statistics_of
from neurotally.kernels.trigger_lists import UnitTriggers
from neurotally.kernels.triggers import LayerTriggers
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.neuron_sums import SITE_COUNTS, UnitNeurons


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
            point: LayerTally.empty(point.width, point.device, point.num_experts is not None)
            for point in model.hook_points
        }
        self._sites = {point: RoutedTokens.none(point.num_experts or 1, point.device) for point in model.hook_points}
        self._triggers: dict[HookPoint, LayerTriggers] = {}
        for point in model.hook_points if num_triggers else ():
            threshold_F = None
            if threshold_LF is not None:
                threshold_F = torch.from_numpy(threshold_LF[point.layer, point.neurons])
            self._triggers[point] = LayerTriggers(point.width, num_triggers, point.device, threshold_F)

    def offer(
        self, point: HookPoint, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor, runs: Runs | None = None
    ) -> None:
        """Offer the row maxima of a network, or with `runs` those of a layer's experts, as triggers."""
        if self._triggers:
            self._triggers[point].add(maxima, document_BT, position_BT, runs)

    def count_routed(self, point: HookPoint, expert_S: Tensor, weight_S: Tensor, kind_S: Tensor) -> None:
        """Count the tokens that a batch sent to each expert; `expert_S` ascends, and the others go by its order."""
        self._sites[point].add(expert_S, weight_S, kind_S)

    def count(self, point: HookPoint, kind_BT: Tensor) -> None:
        """Count the tokens that a batch sent to a network that is no mixture: all."""
        if self._counts_tokens:
            self._sites[point].add_all(kind_BT)

    def result(self) -> UnitNeurons:
        """What was added up, on the host."""
        sums = {one.name: np.full(self._shape, one.initial, one.shipped) for one in statistics_of(self._has_experts)}
        count_LF = np.zeros(self._shape, np.uint32)
        found = [UnitTriggers.none()]
        for point, tally in self.tallies.items():
            where = (point.layer, point.neurons)
            for name, sums_F in tally.items():
                sums[name][where] = sums_F.cpu().numpy()
            if self._triggers:
                found.append(self._triggers[point].best())
                count_LF[where] = found[-1].count_F
        _, *columns = (np.concatenate(column) for column in zip(*found, strict=True))
        triggers = UnitTriggers(count_LF.ravel(), *columns)
        routed = RoutedTokens.joined(list(self._sites.values()), self._has_experts) if self._counts_tokens else {}
        return UnitNeurons(sums, triggers if self._triggers else UnitTriggers.none(), routed)


class RoutedTokens(NamedTuple):
    """What reached the sites of a network, on its device: one, or E experts."""

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
    def joined(parts: "Sequence[RoutedTokens]", has_experts: bool) -> dict[str, np.ndarray]:
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
