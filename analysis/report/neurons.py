"""The section of a report to read in: each corpus's most specific neurons and what triggers them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neurotally.analysis.keys.triggers import Entry, Place, example
from neurotally.analysis.parts import Cell, Column, Example, Table, Value
from neurotally.analysis.result import Result

_COLUMNS = [
    Column("corpus"), Column("layer", "index"), Column("neuron", "index"), Column("entropy", "number", 4),
    Column("flagged"), Column("p", "number", 4), Column("shared with"), Column("largest coefficient", "number"),
]  # fmt: skip


def most_specific(lape: Mapping[str, Any], number: int) -> dict[str, list[tuple[int, int]]]:
    """By corpus the (layer, neuron) of its `number` specific neurons of lowest entropy, lowest first.

    `lape`: the document of `lape`.
    """
    found = {}
    for name, pairs in lape["specific"].items():
        found[name] = [(pairs[at][0], pairs[at][1]) for at in np.argsort(lape["entropy"][name], kind="stable")[:number]]
    return found


def neurons(
    lape: Mapping[str, Any], number: int, triggers: Mapping[Place, Sequence[Entry]], no_triggers: str = ""
) -> Result:
    """Each corpus's `number` most specific neurons with the triggers that were gathered for them."""
    places = [(name, *pair) for name, of_corpus in most_specific(lape, number).items() for pair in of_corpus]
    lead = (
        f"The {number:,} specific neurons of lowest entropy of every corpus, each with the places in that corpus's "
        "text where its coefficient is largest. Before each place stands its coefficient; its token is "
        "marked."
    )
    table = Table(
        "neurons", "Most specific neurons", _COLUMNS, _rows(lape, places, triggers),
        details=[_details(place, triggers, no_triggers) for place in places],
    )  # fmt: skip
    return Result("neurons", {}, lead, [table], warnings=[no_triggers] if no_triggers else [],
                  title="The most specific neurons and what triggers them")  # fmt: skip


def _rows(
    lape: Mapping[str, Any], places: Sequence[Place], triggers: Mapping[Place, Sequence[Entry]]
) -> list[list[Cell]]:
    sets = {name: {tuple(pair): at for at, pair in enumerate(pairs)} for name, pairs in lape["specific"].items()}
    bars = lape.get("error_bars")
    rows: list[list[Cell]] = []
    for name, layer, neuron in places:
        at = sets[name][layer, neuron]
        flagged, entropy_half, p_half = "", None, None
        if bars is not None:
            of = bars["specific"][name]
            flagged = ", ".join(of["entropy_flags"][at])
            entropy_half = bars["entropy_t"] * of["entropy_standard_error"][at]
            p_half = bars["probability_t"][name] * of["probability_standard_error"][at]
        shared = ", ".join(other for other, of in sets.items() if other != name and (layer, neuron) in of)
        entries = triggers.get((name, layer, neuron), ())
        largest = max((float(entry["coefficient"]) for entry in entries), default=None)
        rows.append([name, layer, neuron, Value(lape["entropy"][name][at], entropy_half), flagged,
                     Value(lape["probability"][name][at], p_half), shared or "exclusive", largest])  # fmt: skip
    return rows


def _details(place: Place, triggers: Mapping[Place, Sequence[Entry]], no_triggers: str) -> Sequence[Example] | str:
    if entries := triggers.get(place):
        return [example(entry) for entry in entries]
    return "Its coefficient is never above 0 in this corpus." if place in triggers else no_triggers or "No triggers."
