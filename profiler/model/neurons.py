"""The neuron pass: statistics of every feed-forward neuron, by unit, and their sum over a corpus.

`NeuronRecorder` runs beside the model and adds up on its device; `UnitNeurons` is what a unit leaves behind;
`CorpusNeurons` is the sum of units. Integers, extremes and triggers merge in any order; float64 sums are
added left to right by unit, so that a store does not depend on which worker finished first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.layer_tally import LayerTally, RowMaxima
from neurotally.kernels.statistics import NO_DOCUMENT, STATISTICS
from neurotally.kernels.trigger_lists import UnitTriggers, insert
from neurotally.kernels.triggers import LayerTriggers

if TYPE_CHECKING:  # a model is read, and measured, where zarr isn't installed
    from neurotally.profiler.store import Arrays

_HELD_UNITS = 8
"""So many units are inserted together; fewer where their triggers would take more memory than the lists."""
_MERGES = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class NeuronRecorder:
    """Adds up one unit, layer by layer, while the model runs.

    `threshold_LF` (float32 [L, F] or None): the K-th trigger values of other documents of the corpus; see
    `LayerTriggers`.
    """

    def __init__(
        self, num_neurons: int, devices: list[torch.device], num_triggers: int, threshold_LF: np.ndarray | None = None
    ):
        self.tallies = [LayerTally.empty(num_neurons, device) for device in devices]
        thresholds = [None] * len(devices) if threshold_LF is None else torch.from_numpy(threshold_LF)
        self._triggers = [
            LayerTriggers(num_neurons, num_triggers, device, threshold_F)
            for device, threshold_F in zip(devices, thresholds, strict=True)
            if num_triggers
        ]

    def offer(self, layer: int, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        """Offer the row maxima of one layer as triggers."""
        if self._triggers:
            self._triggers[layer].add(maxima, document_BT, position_BT)

    def result(self) -> "UnitNeurons":
        """What was added up, on the host."""

        def stacked(name: str) -> np.ndarray:
            return np.stack([tally[name].cpu().numpy() for tally in self.tallies])

        best = [layer.best() for layer in self._triggers]
        num_neurons = len(self.tallies[0]["active"])

        def triggers(name: str, dtype: type) -> np.ndarray:
            parts = [getattr(layer_best, name).cpu().numpy() for layer_best in best]
            return np.concatenate(parts).astype(dtype)

        sums = {one.name: stacked(one.name).astype(one.shipped) for one in STATISTICS}
        if not best:
            return UnitNeurons(sums, UnitTriggers.none())
        counts = [torch.bincount(part.neuron_N, minlength=num_neurons).cpu().numpy() for part in best]
        return UnitNeurons(
            sums,
            UnitTriggers(
                np.concatenate(counts).astype(np.uint32), triggers("value_N", np.float32),
                triggers("document_N", np.uint32), triggers("position_N", np.uint32),
            ),
        )  # fmt: skip


@dataclass(frozen=True)
class UnitNeurons:
    """The neurons of one unit."""

    sums: "Arrays"
    """By the names of STATISTICS, [L, F] each, in the dtype that `Statistic.shipped` says."""
    triggers: UnitTriggers
    """Of neurons numbered layer · F + neuron; none where no triggers are kept."""


class CorpusNeurons:
    """The sum of units of one corpus: what the store's arrays hold."""

    def __init__(self, num_layers: int, num_neurons: int, num_groups: int, num_triggers: int):
        self._by_neuron = by_neuron = (num_layers, num_neurons)
        self.sums: Arrays = {
            one.name: np.full((num_groups, *by_neuron) if one.by_group else by_neuron, one.initial, one.stored)
            for one in STATISTICS
        }
        self.triggers = TriggerTable.empty(num_layers * num_neurons, num_triggers)
        self._held: list[UnitTriggers] = []
        """Triggers of the latest units, not inserted yet."""

    def add(self, unit: UnitNeurons, group: int) -> None:
        """Add one unit, the next in order, to its group and to the sums."""
        for one in STATISTICS:
            into = self.sums[one.name][group] if one.by_group else self.sums[one.name]
            _MERGES[one.merge](into, unit.sums[one.name], out=into)
        self._held.append(unit.triggers)
        held = sum(len(triggers.value_N) for triggers in self._held)
        if len(self._held) == _HELD_UNITS or held >= self.triggers.value_NK.size:
            self._insert_held()

    def trigger_threshold(self) -> np.ndarray | None:
        """float32 [L, F]: below it a coefficient can't enter the triggers any more; 0 where a list isn't full."""
        if not self.triggers.value_NK.shape[1]:
            return None
        self._insert_held()
        return self.triggers.value_NK[:, -1].reshape(self._by_neuron).copy()

    def arrays(self) -> "Arrays":
        """The arrays of the store that this pass fills."""
        if not self.triggers.value_NK.shape[1]:
            return dict(self.sums)
        self._insert_held()
        by_trigger = (*self._by_neuron, -1)
        used_NK = self.triggers.value_NK > 0
        return self.sums | {
            "trigger_value": np.where(used_NK, self.triggers.value_NK, np.float32(np.nan)).reshape(by_trigger),
            "trigger_document": self.triggers.document_NK.reshape(by_trigger),
            "trigger_position": self.triggers.position_NK.reshape(by_trigger),
        }

    def _insert_held(self) -> None:
        self.triggers.insert(self._held)
        self._held = []

    @classmethod
    def from_arrays(cls, arrays: "Arrays") -> "CorpusNeurons":
        """The inverse of `arrays`, lossless."""
        num_groups, num_layers, num_neurons = arrays["active"].shape
        num_triggers = arrays["trigger_value"].shape[-1] if "trigger_value" in arrays else 0
        corpus = cls(num_layers, num_neurons, num_groups, num_triggers)
        corpus.sums = {one.name: arrays[one.name] for one in STATISTICS}
        if not num_triggers:
            return corpus
        flat = (num_layers * num_neurons, num_triggers)
        corpus.triggers = TriggerTable(
            np.nan_to_num(arrays["trigger_value"].reshape(flat), nan=0.0, posinf=np.inf),
            arrays["trigger_document"].reshape(flat),
            arrays["trigger_position"].reshape(flat),
        )
        return corpus


@dataclass(frozen=True)
class TriggerTable:
    """The K best triggers of N neurons, best first, in the total order of `neurotally.kernels.triggers`.

    Where unused 0, 2^32-1 and 2^32-1: float32, uint32, uint32.
    """

    value_NK: np.ndarray
    document_NK: np.ndarray
    position_NK: np.ndarray

    @classmethod
    def empty(cls, num_neurons: int, num_triggers: int) -> "TriggerTable":
        """A table of unused entries."""
        shape = (num_neurons, num_triggers)
        return cls(
            np.zeros(shape, np.float32),
            np.full(shape, NO_DOCUMENT, np.uint32),
            np.full(shape, NO_DOCUMENT, np.uint32),
        )

    def insert(self, units: Sequence[UnitTriggers]) -> None:
        """Insert the triggers of units that the table has no document of."""
        insert((self.value_NK, self.document_NK, self.position_NK), units)
