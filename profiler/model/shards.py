"""Models that several devices compute together: each holds a slice of every matrix (tensor parallel).

    rank r of N     its slice of each network's neurons, as its process sees them: F/N, numbered from 0
    whole model     concatenated by rank:  neuron j of rank r is  r·F/N + j;  of expert e  e·F + r·F/N + j

transformers makes the slices (`tp_plan="auto"`) and adds up what the ranks' down projections give. A network's
coefficients need no communication, so each rank tallies its own and `joined` puts them together. Which neurons a rank
has is told by the rows and columns of the checkpoint's matrices that it loaded, looked up for each matrix of each
network; where they aren't the slice above the model is refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.statistics import statistics_of
from neurotally.kernels.trigger_lists import UnitTriggers
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.experts import ExpertsHookPoint, InterfaceExperts
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.load import LoadedModel, ModelFacts
from neurotally.profiler.model.sharded_tensors import held_numbers
from neurotally.profiler.networks import Network, are_alike
from neurotally.profiler.neuron_sums import UnitNeurons


@dataclass(frozen=True)
class ModelShard:
    """What one rank has of a model's neurons."""

    facts: ModelFacts
    """Of the whole model."""
    number_F: np.ndarray
    """int64: of each cell of this rank's [L, f], flat, the cell of the whole model's [L, F]; -1: no neuron, or one that
    another rank has, too."""

    def slice_of(self, values_LF: np.ndarray) -> np.ndarray:
        """This rank's of the whole model's values [L, F], as [L, f]; 0 where it has none."""
        values_F: np.ndarray = values_LF.ravel()[self.number_F]  # of cells that have none the last one's
        values_F[self.number_F < 0] = 0
        return values_F.reshape(len(values_LF), -1)


def model_shard(model: LoadedModel) -> ModelShard:
    """Which neurons this rank has; UnsupportedModelError, naming the layer, where they aren't its slice."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    slices = [_column_numbers(point, rank, ranks) for point in model.hook_points]
    networks: list[Network] = []
    for point in model.hook_points:
        is_next = bool(networks) and networks[-1].layer == point.layer
        first = networks[-1].end if is_next else 0
        networks.append(replace(point.network, first=first, neurons=_width(point)))
    num_neurons = max(network.end for network in networks)
    number_LF = np.full((model.num_layers, model.num_neurons), -1, np.int64)
    for point, network, column_f in zip(model.hook_points, networks, slices, strict=True):
        if rank and len(column_f) == network.neurons:  # every rank has all of it
            continue
        number_Ef = network.neurons * np.arange(network.sites)[:, None] + column_f
        number_Ef += num_neurons * network.layer + network.first
        number_LF[point.layer, point.neurons] = number_Ef.ravel()
    alike = are_alike(networks, model.num_layers)
    facts = replace(model.facts, num_neurons=num_neurons, networks=() if alike else tuple(networks))
    return ModelShard(facts, number_LF.ravel())


def joined(parts: Sequence[tuple[ModelShard, UnitNeurons]]) -> UnitNeurons:
    """The neurons of a unit, of what every rank has of them, in the order of the ranks.

    What was routed where must be the same on each, and is taken from the first; RuntimeError where it isn't.
    """
    facts, of_first = parts[0][0].facts, parts[0][1]
    for _, part in parts[1:]:
        if any(not np.array_equal(part.routed[name], of_first.routed[name]) for name in of_first.routed):
            raise RuntimeError(f"{facts.id}: devices that hold the model together sent tokens to different experts")
    shape = (facts.num_layers, facts.num_neurons)
    sums = {}
    for one in statistics_of("weighted_coefficient_sum" in of_first.sums):
        whole_F = np.full(np.prod(shape), one.initial, one.shipped)
        for shard, part in parts:
            is_one_F = shard.number_F >= 0
            whole_F[shard.number_F[is_one_F]] = part.sums[one.name].ravel()[is_one_F]
        sums[one.name] = whole_F.reshape(shape)
    triggers = of_first.triggers
    if len(triggers.count_F):
        triggers = _joined_triggers([(shard, part.triggers) for shard, part in parts], shape[0] * shape[1])
    return UnitNeurons(sums, triggers, of_first.routed)


def _joined_triggers(parts: Sequence[tuple[ModelShard, UnitTriggers]], num_neurons: int) -> UnitTriggers:
    neuron_N = np.concatenate([np.repeat(shard.number_F, triggers.count_F) for shard, triggers in parts])
    columns = [np.concatenate(column) for column in zip(*(triggers[1:] for _, triggers in parts), strict=True)]
    order_N = np.argsort(neuron_N, kind="stable")
    order_N = order_N[np.count_nonzero(neuron_N < 0) :]
    count_F = np.bincount(neuron_N[order_N], minlength=num_neurons).astype(np.uint32)
    return UnitTriggers(count_F, *(column[order_N] for column in columns))


def _width(point: HookPoint) -> int:
    """Neurons of a whole network, or of each of its experts."""
    if isinstance(point, ExpertsHookPoint):
        return cast(Tensor, point.experts.down_proj).shape[_column_dim(point)]
    return cast(Tensor, point.down.weight).shape[1]


def _column_dim(point: ExpertsHookPoint) -> int:
    return 1 if point.experts.is_transposed else 2


def _column_numbers(point: HookPoint, rank: int, ranks: int) -> np.ndarray:
    """int64 [f]: which neurons of a network, or of each of its experts, this rank computes: its slice, or all."""
    width, f = _width(point), _width(point) // ranks
    if point.width == width * _num_experts(point):  # as where gate and up are one product, whose parts are gathered
        return np.arange(width)
    if width % ranks:
        raise UnsupportedModelError(
            f"{point}: {width} neurons can't be shared evenly by {ranks} devices; expected a number that divides them"
        )
    is_one = isinstance(point, ExpertsHookPoint)
    column_f, fits = _experts_numbers(point) if is_one else _network_numbers(point)  # type: ignore[arg-type]
    is_slice = np.array_equal(column_f, np.arange(rank * f, (rank + 1) * f))
    if not (fits and is_slice and f * _num_experts(point) == point.width):
        raise UnsupportedModelError(
            f"{point}: its matrices aren't spread over {ranks} devices neuron by neuron; this isn't supported"
        )
    return column_f


def _num_experts(point: HookPoint) -> int:
    """Of the whole model; 1 where it is no mixture."""
    return cast(Tensor, point.experts.down_proj).shape[0] if isinstance(point, ExpertsHookPoint) else 1


def _network_numbers(point: HookPoint) -> tuple[np.ndarray, bool]:
    """The columns of the down projection that this rank has, and whether keys and `up` are of the same neurons."""
    column_f, fits = held_numbers(cast(Tensor, point.down.weight), 1), True
    for matrix, first in filter(None, (point.keys, point.up)):
        row_f = held_numbers(cast(Tensor, matrix.weight), 0)[first : first + point.width]
        # Gate and up may be one product: then one of them begins at row F.
        begins = set((row_f - column_f).tolist()) if len(row_f) == len(column_f) else {-1}
        fits &= len(begins) == 1 and begins.pop() % _width(point) == 0
    return column_f, fits


def _experts_numbers(point: InterfaceExperts) -> tuple[np.ndarray, bool]:
    """The same of experts, of which every rank must have all."""
    experts = point.experts
    product = experts.gate_up_proj if point.gated else experts.up_proj
    column_f = held_numbers(experts.down_proj, _column_dim(point))
    row_f = torch.from_numpy(held_numbers(product, 2 if experts.is_transposed else 1))
    all_F = torch.arange(product.shape[2 if experts.is_transposed else 1])
    held = point.halves(row_f) if point.gated else (row_f,)
    whole = point.halves(all_F) if point.gated else (all_F,)
    fits = all(np.array_equal(some, of_F[column_f]) for some, of_F in zip(held, whole, strict=True))
    has_all = len(held_numbers(experts.down_proj, 0)) == point.num_experts
    return column_f, fits and has_all
