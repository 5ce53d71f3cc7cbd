"""Units: fixed runs of consecutive documents, the atom of work, of failure and of accounting.

Cut by bytes and never by the number of workers, so that every sum is added in the same order on any machine.
Unit i belongs to group i mod G; every count is kept by group and carries its own error bar.
"""

from dataclasses import dataclass

import numpy as np

from neurotally.profiler.corpus.documents import Manifest


@dataclass(frozen=True)
class Unit:
    """Documents `first` to `end` - 1 of a corpus."""

    index: int
    first: int
    end: int

    def group(self, num_groups: int) -> int:
        """The group that this unit's counts belong to."""
        return self.index % num_groups


def cut_units(manifest: Manifest, max_unit_bytes: int, num_groups: int) -> list[Unit]:
    """Cut into runs of up to U bytes, U = min(`max_unit_bytes`, corpus bytes / (4·G)); a larger document is alone."""
    sizes = manifest.sizes.tolist()
    limit = min(max_unit_bytes, sum(sizes) // (4 * num_groups))
    starts = [0]
    held = 0
    for number, size in enumerate(sizes):
        if held and held + size > limit:
            starts.append(number)
            held = 0
        held += size
    ends = [*starts[1:], len(sizes)]
    return [Unit(index, first, end) for index, (first, end) in enumerate(zip(starts, ends, strict=True))]


def documents_by_unit(units: list[Unit]) -> np.ndarray:
    """uint32 [documents]: the unit of each document."""
    return np.repeat(np.arange(len(units), dtype=np.uint32), [unit.end - unit.first for unit in units])
