"""The triggers of units, and their insertion into a corpus's lists, on the host: by `tally.cpp`, or in NumPy."""

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.compiled import Insertion, library
from neurotally.kernels.statistics import NO_DOCUMENT

_COLUMNS = ("u4", "f4", "u4", "u4")
"""Types of `UnitTriggers`."""


class UnitTriggers(NamedTuple):
    """The triggers that a unit has found, neuron by neuron, the best first; of documents that are in no other unit."""

    count_F: np.ndarray
    """uint32: how many each neuron has."""
    value_N: np.ndarray
    """float32, > 0."""
    document_N: np.ndarray
    """uint32."""
    position_N: np.ndarray
    """uint32."""

    @classmethod
    def none(cls) -> "UnitTriggers":
        """Where no triggers are kept."""
        return cls(*(np.empty(0, dtype) for dtype in _COLUMNS))

    @classmethod
    def of_tensors(cls, *columns: Tensor) -> "UnitTriggers":
        """From tensors on any device, of any types that hold the values."""
        return cls(*(x.cpu().numpy().astype(dtype) for x, dtype in zip(columns, _COLUMNS, strict=True)))

    def threshold(self, num_triggers: int) -> np.ndarray:
        """float32 [F]: the last value of each full list of `num_triggers`; 0 where a list isn't full."""
        is_full_F = self.count_F == num_triggers
        ends_F = np.cumsum(self.count_F, dtype=np.int64)
        threshold_F = np.zeros(len(ends_F), np.float32)
        threshold_F[is_full_F] = self.value_N[ends_F[is_full_F] - 1]
        return threshold_F

    def not_below(self, threshold_F: np.ndarray) -> "UnitTriggers":
        """Without those that are below a threshold, float32 [F]."""
        neuron_N = np.repeat(np.arange(len(threshold_F)), self.count_F)
        stays_N = self.value_N >= threshold_F[neuron_N]
        count_F = np.bincount(neuron_N[stays_N], minlength=len(threshold_F)).astype(np.uint32)
        return UnitTriggers(count_F, self.value_N[stays_N], self.document_N[stays_N], self.position_N[stays_N])


class CorpusTriggers(NamedTuple):
    """The K best triggers of each neuron in a corpus, best first in the total order of `triggers`.

    Where unused 0, 2^32-1 and 2^32-1.
    """

    value_FK: np.ndarray
    """float32."""
    document_FK: np.ndarray
    """uint32."""
    position_FK: np.ndarray
    """uint32."""

    @classmethod
    def empty(cls, num_neurons: int, num_triggers: int) -> "CorpusTriggers":
        """Lists of unused entries."""
        shape = (num_neurons, num_triggers)
        unused = (np.full(shape, NO_DOCUMENT, np.uint32) for _ in range(2))
        return cls(np.zeros(shape, np.float32), *unused)

    def insert(self, units: Sequence[UnitTriggers]) -> None:
        """Insert the triggers of units that the lists have no document of; a list is brought into the cache once.

        Takes time in proportion to the triggers, and to K for each neuron that has one.
        """
        units = [unit for unit in units if len(unit.value_N)]
        if not units or not self.value_FK.shape[1]:
            return
        if (compiled := library()) is None:
            for unit in units:
                _insert_plainly(self, unit)
            return
        for arrays, types in (*((unit, _COLUMNS) for unit in units), (self, _COLUMNS[1:])):
            for array, dtype in zip(arrays, types, strict=True):
                if array.dtype != dtype or not array.flags.c_contiguous:
                    raise ValueError(
                        f"expected contiguous {np.dtype(dtype)}, got {array.dtype}, strides {array.strides}"
                    )
        pointers = [(ctypes.c_void_p * len(units))(*(array.ctypes.data for array in column))
                    for column in zip(*units, strict=True)]  # fmt: skip
        of_lists = (array.ctypes.data for array in self)
        shape = (*self.value_FK.shape, len(units))
        compiled.insert(Insertion(*shape, *map(ctypes.addressof, pointers), *of_lists, torch.get_num_threads()))


def _insert_plainly(lists: CorpusTriggers, unit: UnitTriggers) -> None:
    """In NumPy, those of one unit.

    One round takes the best of every neuron, the next the second best, and so on: at most K rounds, and few neurons in
    the later ones. An inserted trigger moves the worse ones one place down.
    """
    count_F, value_N, document_N, position_N = unit
    start_F = np.cumsum(count_F, dtype=np.int64) - count_F
    for rank in range(min(int(count_F.max(initial=0)), lists.value_FK.shape[1])):
        rows = np.flatnonzero(count_F > rank)
        index = start_F[rows] + rank
        value, document = value_N[index], document_N[index]
        held_value, held_document = lists.value_FK[rows], lists.document_FK[rows]
        goes_before = (value[:, None] > held_value) | (
            (value[:, None] == held_value) & (document[:, None] < held_document)
        )
        enters = goes_before[:, -1]
        rows, goes_before = rows[enters], goes_before[enters]
        at = goes_before.argmax(axis=1)
        new = (value[enters], document[enters], position_N[index][enters])
        for table, entry in zip(lists, new, strict=True):
            held = table[rows]
            updated = np.where(goes_before, np.roll(held, 1, axis=1), held)
            updated[np.arange(len(rows)), at] = entry
            table[rows] = updated
