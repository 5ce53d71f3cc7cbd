"""What `neurotally lape` says: one JSON document, and the same as a table to read.

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "select", "quantile", "bar",
     "per_corpus" | "top_rate", "specific": {name: [[layer, neuron], ...]}, "exclusive": likewise,
     "layers", "neurons", "tokens": {name: n}, "candidates": {name: n}, "sole_candidates": {name: n},
     "without_candidates": [name, ...], "tied_out": {name: n}, "left_out": {name: reason}}

Lists of neurons are sorted by (layer, neuron). The document is also a mask file.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Selection, layer_counts

LAPE_SCHEMA = 1

_HEADER = ("corpus", "tokens", "candidates", "only here", "specific", "low/mid/top", "exclusive", "low/mid/top")


def lape_document(counts: CorpusCounts, selection: Selection) -> dict[str, Any]:
    """The document of `lape --json` and `--out`: plain lists, numbers and strings, no NaN."""
    num_layers, num_neurons = selection.entropy_LF.shape
    limit = {"per_corpus" if selection.select == "balanced" else "top_rate": selection.limit}
    return {
        "schema": LAPE_SCHEMA,
        "model": _model(counts),
        "corpora": list(selection.corpora),
        "select": selection.select,
        "quantile": selection.quantile,
        "bar": selection.bar,
        **limit,
        "specific": {name: neurons_n2.tolist() for name, neurons_n2 in selection.specific.items()},
        "exclusive": {name: neurons_n2.tolist() for name, neurons_n2 in selection.exclusive.items()},
        "layers": num_layers,
        "neurons": num_neurons,
        "tokens": dict(zip(counts.corpora, counts.tokens_C.tolist(), strict=True)),
        "candidates": dict(selection.num_candidates),
        "sole_candidates": dict(selection.num_sole_candidates),
        "tied_out": dict(selection.num_tied_out),
        "without_candidates": without_candidates(selection),
        "left_out": dict(counts.left_out),
    }


def without_candidates(selection: Selection) -> list[str]:
    """The corpora in which no neuron passes the bar; their sets are empty."""
    return [name for name in selection.corpora if not selection.num_candidates[name]]


def lape_table(counts: CorpusCounts, selection: Selection) -> str:
    """The selection as text: one row a corpus, how its neurons spread over the layers, and what was left out."""
    num_layers, num_neurons = selection.entropy_LF.shape
    num_values = len(selection.corpora) * num_layers * num_neurons
    model = counts.model.get("id") if counts.model else None
    lines = [
        f"LAPE of {model or 'imported counts'}, {num_layers} layers of {num_neurons:,} neurons: {_rule(selection)}",
        f"bar: active at more than {selection.bar:.6g} of a corpus's tokens "
        f"(quantile {selection.quantile:g} of {num_values:,} values)",
        "",
        _table([_row(counts, selection, name) for name in selection.corpora]),
        "",
        *_notes(counts, selection),
    ]
    return "\n".join(lines)


def _model(counts: CorpusCounts) -> dict[str, Any] | None:
    if counts.model is None:
        return None
    return {key: counts.model.get(key) for key in ("id", "fingerprint")}


def _rule(selection: Selection) -> str:
    if selection.select == "balanced":
        return f"the {selection.limit:g} candidates of lowest entropy of every corpus"
    return f"the {100 * selection.limit:g} % of neurons of lowest entropy"


def _thirds(num_layers: int) -> list[np.ndarray]:
    """The layers in up to three runs, bottom to top."""
    return np.array_split(np.arange(num_layers), min(3, num_layers))


def _row(counts: CorpusCounts, selection: Selection, name: str) -> list[str]:
    specific, exclusive = selection.specific[name], selection.exclusive[name]
    return [
        name,
        f"{int(counts.tokens_C[counts.corpora.index(name)]):,}",
        f"{selection.num_candidates[name]:,}",
        f"{selection.num_sole_candidates[name]:,}",
        f"{len(specific):,}",
        _spread(specific, len(selection.entropy_LF)),
        f"{len(exclusive):,}",
        _spread(exclusive, len(selection.entropy_LF)),
    ]


def _spread(neurons_n2: np.ndarray, num_layers: int) -> str:
    """Which share of the neurons lies in each run of layers, in percent."""
    if not len(neurons_n2):
        return "-"
    count_L = layer_counts(neurons_n2, num_layers)
    return "/".join(f"{100 * count_L[run].sum() / len(neurons_n2):3.0f}" for run in _thirds(num_layers))


def _table(rows: Sequence[Sequence[str]]) -> str:
    sides = ("left", *["right"] * (len(_HEADER) - 1))
    return tabulate(rows, _HEADER, tablefmt="plain", disable_numparse=True, colalign=sides)


def _notes(counts: CorpusCounts, selection: Selection) -> list[str]:
    runs = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in _thirds(len(selection.entropy_LF))]
    notes = [
        "candidates pass the bar, `only here` in no other corpus; exclusive: specific to no other corpus",
        f"low/mid/top: % of them in layers {' / '.join(runs)}; {_num_chosen(selection):,} neurons chosen in all",
    ]
    if selection.select == "top" and _num_chosen(selection) < round(selection.limit * selection.entropy_LF.size):
        notes.append("fewer than asked for: no other neuron passes the bar")
    notes += [
        f"{name}: {number:,} more candidates tie with the last one chosen; the lowest layers were taken"
        for name, number in selection.num_tied_out.items()
        if number
    ]
    if empty := without_candidates(selection):
        notes.append(f"no neuron passes the bar in {', '.join(empty)}: no specific neurons there")
    notes += [f"left out: {name} ({reason})" for name, reason in counts.left_out.items()]
    return notes


def _num_chosen(selection: Selection) -> int:
    """Neurons specific to at least one corpus."""
    return len(np.unique(np.concatenate(list(selection.specific.values())), axis=0))
