"""Insert the triggers of a unit into a corpus's lists, on the host: by `tally.cpp`, or in NumPy.

The lists are [F, K], best first in the total order of `triggers`: float32 values, 0 where unused, uint32 documents and
positions. The entries are sorted by neuron, best first within it, and of documents that the lists have none of.
"""

import numpy as np
import torch

from neurotally.kernels.compiled import Insertion, library


def insert(lists: tuple[np.ndarray, np.ndarray, np.ndarray], neuron_N: np.ndarray, *entries: np.ndarray) -> None:
    """Insert `entries`, float32 values, uint32 documents and uint32 positions [N], of the neurons `neuron_N` (int64).

    Lists (values, documents, positions) are changed in place. Takes time in proportion to N, and to K for each neuron.
    """
    if not len(neuron_N) or not lists[0].shape[1]:
        return
    if (compiled := library()) is None:
        insert_plainly(lists, neuron_N, *entries)
        return
    given = [neuron_N, *entries]
    for array, dtype in zip((*given, *lists), ("i8", "f4", "u4", "u4", "f4", "u4", "u4"), strict=True):
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(f"expected contiguous {np.dtype(dtype)}, got {array.dtype} with strides {array.strides}")
    pointers = (array.ctypes.data for array in (*given, *lists))
    compiled.insert(Insertion(len(neuron_N), *lists[0].shape, *pointers, torch.get_num_threads()))


def insert_plainly(
    lists: tuple[np.ndarray, np.ndarray, np.ndarray],
    neuron_N: np.ndarray, value_N: np.ndarray, document_N: np.ndarray, position_N: np.ndarray,
) -> None:  # fmt: skip
    """In NumPy. One round takes the best of every neuron, the next the second best, and so on: at most K rounds, and
    few neurons in the later ones. An inserted trigger moves the worse ones one place down."""
    value_FK, document_FK, _ = lists
    starts = np.flatnonzero(np.diff(neuron_N, prepend=-1))
    counts = np.diff(np.r_[starts, len(neuron_N)])
    for rank in range(min(int(counts.max(initial=0)), value_FK.shape[1])):
        index = starts[counts > rank] + rank
        rows, value, document = neuron_N[index], value_N[index], document_N[index]
        held_value, held_document = value_FK[rows], document_FK[rows]
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
