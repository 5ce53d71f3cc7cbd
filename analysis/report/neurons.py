"""The section of a report to read in: each corpus's most specific neurons and what triggers them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neurotally.analysis.keys.triggers import Entry, Place, example
from neurotally.analysis.languages.counts import CorpusCounts, read_group_counts
from neurotally.analysis.languages.jackknife import ErrorBars, error_bars
from neurotally.analysis.languages.lape import Rule, Selection
from neurotally.analysis.parts import Cell, Column, Example, Table, Value
from neurotally.analysis.result import Result
from neurotally.profiler.errors import InputError

_COLUMNS = [
    Column("corpus"), Column("layer", "index"), Column("neuron", "index"), Column("entropy", "number", 4),
    Column("flagged"), Column("p", "number", 4), Column("shared with"), Column("largest coefficient", "number"),
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Chosen:
    """The neurons that LAPE chooses, and how well each is known."""

    counts: CorpusCounts
    selection: Selection
    bars: ErrorBars | None
    """None where the store has no groups."""


def read_chosen(path: Path, rule: Rule) -> Chosen:
    """Choose neurons of a store; InputError where LAPE can't be computed."""
    groups = read_group_counts(path)
    counts, bars = groups.total(), None
    with suppress(InputError):
        bars = error_bars(groups)
    return Chosen(counts, rule.choose(counts), bars)


def most_specific(chosen: Chosen, number: int) -> dict[str, list[tuple[int, int]]]:
    """By corpus the (layer, neuron) of its `number` specific neurons of lowest entropy, lowest first."""
    selection = chosen.selection
    found = {}
    for name, neurons_n2 in selection.specific.items():
        entropy_n = selection.entropy_LF[neurons_n2[:, 0], neurons_n2[:, 1]]
        order = np.argsort(entropy_n, kind="stable")[:number]
        found[name] = [(layer, neuron) for layer, neuron in neurons_n2[order].tolist()]
    return found


def neurons(material: Chosen, number: int, triggers: Mapping[Place, Sequence[Entry]], no_triggers: str = "") -> Result:
    """Each corpus's `number` most specific neurons with the triggers that were gathered for them."""
    chosen = most_specific(material, number)
    places = [(name, layer, neuron) for name, of_corpus in chosen.items() for layer, neuron in of_corpus]
    lead = (
        f"The {number:,} specific neurons of lowest entropy of every corpus, each with the places in that corpus's "
        "text where its coefficient is largest. Before each place stands its coefficient; its token is "
        "marked."
    )
    table = Table(
        "neurons", "Most specific neurons", _COLUMNS, _rows(material, places, triggers),
        details=[_details(place, triggers, no_triggers) for place in places],
    )  # fmt: skip
    return Result("neurons", {}, lead, [table], warnings=[no_triggers] if no_triggers else [],
                  title="The most specific neurons and what triggers them")  # fmt: skip


def _rows(material: Chosen, places: Sequence[Place], triggers: Mapping[Place, Sequence[Entry]]) -> list[list[Cell]]:
    counts, selection, bars = material.counts, material.selection, material.bars
    sets = {name: set(map(tuple, neurons_n2.tolist())) for name, neurons_n2 in selection.specific.items()}
    flags = {} if bars is None else bars.entropy_flags()
    rows: list[list[Cell]] = []
    for name, layer, neuron in places:
        at = counts.corpora.index(name)
        entropy = float(selection.entropy_LF[layer, neuron])
        p = float(counts.active_CLF[at, layer, neuron] / counts.tokens_C[at])
        entropy_half, p_half = None, None
        if bars is not None:
            entropy_half = float(bars.entropy_t * bars.entropy_error_LF[layer, neuron])
            p_half = float(bars.p_t_C()[at] * bars.p_error_CLF[at, layer, neuron])
        flagged = ", ".join(flag for flag, is_LF in flags.items() if is_LF[layer, neuron])
        shared = ", ".join(other for other, of in sets.items() if other != name and (layer, neuron) in of)
        entries = triggers.get((name, layer, neuron), ())
        largest = max((float(entry["coefficient"]) for entry in entries), default=None)
        rows.append([name, layer, neuron, Value(entropy, entropy_half), flagged, Value(p, p_half),
                     shared or "exclusive", largest])  # fmt: skip
    return rows


def _details(place: Place, triggers: Mapping[Place, Sequence[Entry]], no_triggers: str) -> Sequence[Example] | str:
    if entries := triggers.get(place):
        return [example(entry) for entry in entries]
    return "Its coefficient is never above 0 in this corpus." if place in triggers else no_triggers or "No triggers."
