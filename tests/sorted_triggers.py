"""The reference for triggers: everything sorted, in plain Python."""

from neurotally.kernels.triggers import Triggers


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


def as_list(triggers: Triggers) -> list[tuple[int, float, int, int]]:
    """Triggers as the reference spells them."""
    return list(zip(*(column.tolist() for column in triggers), strict=True))
