"""Insert the triggers of a unit into a corpus's lists, on the host: by `tally.cpp`, or in NumPy.

The lists are [F, K], best first in the total order of `triggers`: float32 values, 0 where unused, uint32 documents and
positions. The entries are sorted by neuron, best first within it, and of documents that the lists have none of.
"""

import numpy as np
import torch

from neurotally.kernels.compiled import Insertion, library


def insert(lists: tuple[np.ndarray, np.ndarray, np.ndarray], count_F: np.ndarray, *entries: np.ndarray) -> None:
    """Insert `count_F[f]` of the `entries` for each neuron f: float32 values, uint32 documents and positions [N].

    Lists (values, documents, positions) are changed in place. Takes time in proportion to N, and to K for each neuron
    that has an entry.
    """
    start = np.concatenate([np.zeros(1, np.int64), np.cumsum(count_F, dtype=np.int64)])
    if not start[-1] or not lists[0].shape[1]:
        return
    if (compiled := library()) is None:
        insert_plainly(lists, start, *entries)
        return
    given = [start, *entries, *lists]
    for array, dtype in zip(given, ("i8", "f4", "u4", "u4", "f4", "u4", "u4"), strict=True):
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise ValueError(f"expected contiguous {np.dtype(dtype)}, got {array.dtype} with strides {array.strides}")
    pointers = (array.ctypes.data for array in given)
    compiled.insert(Insertion(*lists[0].shape, *pointers, torch.get_num_threads()))


def insert_plainly(
    lists: tuple[np.ndarray, np.ndarray, np.ndarray],
    start: np.ndarray, value_N: np.ndarray, document_N: np.ndarray, position_N: np.ndarray,
) -> None:  # fmt: skip
    """In NumPy, the entries `start[f]` to `start[f + 1]` - 1 of neuron f.

    One round takes the best of every neuron, the next the second best, and so on: at most K rounds, and few neurons in
    the later ones. An inserted trigger moves the worse ones one place down.
    """
    value_FK, document_FK, _ = lists
    counts = np.diff(start)
    for rank in range(min(int(counts.max(initial=0)), value_FK.shape[1])):
        rows = np.flatnonzero(counts > rank)
        index = start[rows] + rank
        value, document = value_N[index], document_N[index]
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
