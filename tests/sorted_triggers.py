"""The reference for triggers: everything sorted, in plain Python."""

import numpy as np

from neurotally.kernels.trigger_lists import UnitTriggers


def sorted_triggers(rows: list, num_triggers: int, threshold: list[float]) -> list[tuple[int, float, int, int]]:
    """(neuron, value, document, position): a document's best, the best documents, by sorting everything."""
    expected = []
    for neuron in range(len(threshold)):
        best: dict[int, tuple[float, int, int]] = {}
        for document, first, cells in rows:
            value, column = cells[neuron]
            if value > 0 and value >= threshold[neuron]:
                key = (-value, document, first + column)
                best[document] = min(best.get(document, key), key)
        ranked = sorted(best.values())[:num_triggers]
        expected += [(neuron, -value, document, position) for value, document, position in ranked]
    return expected


def as_list(triggers: UnitTriggers) -> list[tuple[int, float, int, int]]:
    """Triggers as the reference spells them."""
    neuron_N = np.repeat(np.arange(len(triggers.count_F)), triggers.count_F)
    return list(zip(*(column.tolist() for column in (neuron_N, *triggers[1:])), strict=True))
