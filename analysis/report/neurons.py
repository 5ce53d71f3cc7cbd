"""The section of a report to read in: each corpus's most specific neurons and what triggers them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, read_group_counts
from neurotally.analysis.languages.jackknife import ErrorBars, error_bars
from neurotally.analysis.languages.lape import Rule, Selection
from neurotally.analysis.render.html import (
    Cell,
    Neuron,
    Neurons,
    Notes,
    Section,
    Trigger,
    real,
    row_head,
    word,
)
from neurotally.profiler.errors import InputError
from neurotally.profiler.visible import visible

Place = tuple[str, int, int]
"""(corpus, layer, neuron)."""
TriggerEntry = Mapping[str, Any]
"""A trigger as `neurotally triggers --json` gives it."""

_MOST_CHARACTERS = 280
"""So much text on either side of a trigger's token: some five lines."""
_MOST_TOKEN = 120
_PICTURES = {9: "⇥", 10: "⏎", 32: "␣"}


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
    counts = groups.total()
    try:
        bars = error_bars(groups)
    except InputError:
        bars = None
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


def neurons(
    material: Chosen, number: int, triggers: Mapping[Place, Sequence[TriggerEntry]], no_triggers: str = ""
) -> Section:
    """Each corpus's `number` most specific neurons with the triggers that were gathered for them."""
    chosen = most_specific(material, number)
    corpora_of = _corpora_of(material.selection)
    names = [name for name in chosen if chosen[name]]
    rows = [
        _neuron(material, f"neuron-{at}-{layer}-{neuron}", (name, layer, neuron), corpora_of, triggers, no_triggers)
        for at, name in enumerate(names)
        for layer, neuron in chosen[name]
    ]
    lead = (
        f"The {number:,} specific neurons of lowest entropy of every corpus, each with the places in that corpus's "
        "text where its coefficient is largest. The token that triggers it is marked."
    )
    header = ("corpus", "layer", "neuron", "entropy", "flagged", "p", "shared with", "largest coefficient")
    notes = [Notes([no_triggers])] if no_triggers else []
    listed = Neurons("Most specific neurons", header, names, rows)
    return Section("neurons", "The most specific neurons and what triggers them", lead, [*notes, listed])


def _corpora_of(selection: Selection) -> dict[tuple[int, int], list[str]]:
    """The corpora that each chosen (layer, neuron) is specific to."""
    found: dict[tuple[int, int], list[str]] = {}
    for name, neurons_n2 in selection.specific.items():
        for layer, neuron in neurons_n2.tolist():
            found.setdefault((layer, neuron), []).append(name)
    return found


def _neuron(
    material: Chosen,
    anchor: str,
    place: Place,
    corpora_of: Mapping[tuple[int, int], Sequence[str]],
    triggers: Mapping[Place, Sequence[TriggerEntry]],
    no_triggers: str,
) -> Neuron:
    counts, selection, bars = material.counts, material.selection, material.bars
    name, layer, neuron = place
    at = counts.corpora.index(name)
    shared = [other for other in corpora_of[layer, neuron] if other != name]
    p = float(counts.active_CLF[at, layer, neuron] / counts.tokens_C[at])
    entropy_half, p_half, flags = None, None, []
    if bars is not None:
        entropy_half = float(bars.entropy_t * bars.entropy_error_LF[layer, neuron])
        p_half = float(bars.p_t_C()[at] * bars.p_error_CLF[at, layer, neuron])
        flags = [flag for flag, is_LF in bars.entropy_flags().items() if is_LF[layer, neuron]]
    entries = triggers.get(place, ())
    largest = max((float(entry["coefficient"]) for entry in entries), default=None)
    cells = [
        row_head(name),
        Cell(str(layer), layer),
        Cell(str(neuron), neuron),
        real(float(selection.entropy_LF[layer, neuron]), half=entropy_half),
        word(", ".join(flags)),
        real(p, half=p_half),
        word(", ".join(shared) or "exclusive"),
        real(largest, ".4g"),
    ]
    shown = [_trigger(entry) for entry in entries]
    tokens = Counter(trigger.token for trigger in shown if trigger.token is not None)
    never = "Its coefficient is never above 0 in this corpus."
    nothing = "" if entries else never if place in triggers else no_triggers or "No triggers."
    return Neuron(anchor, name, cells, [(_token(token), n) for token, n in tokens.most_common(8)], shown, nothing)


def _trigger(entry: TriggerEntry) -> Trigger:
    coefficient, document = f"{entry['coefficient']:.4g}".replace("-", "−"), visible(str(entry["document"]))
    if entry["text"] is None:
        return Trigger(coefficient, f"{document}, token {entry['position']}", None, reason=str(entry["reason"]))
    start, token = entry["text_start"], entry["token"]
    before, after = entry["text"][:start], entry["text"][start + len(token) :]
    return Trigger(
        coefficient,
        f"{document}:{entry['line']}:{entry['column']}",
        visible(token if len(token) <= _MOST_TOKEN else token[:_MOST_TOKEN] + "…"),
        visible(before if len(before) <= _MOST_CHARACTERS else "…" + before[-_MOST_CHARACTERS:]),
        visible(after.removesuffix("\n") if len(after) <= _MOST_CHARACTERS else after[:_MOST_CHARACTERS] + "…"),
    )


def _token(token: str) -> str:
    """A token in a list: white space shows."""
    return token.translate(_PICTURES)
