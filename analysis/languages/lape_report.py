"""What `neurotally lape` says: one JSON document, and the same as a table to read.

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "select", "quantile",
     "per_corpus" | "top_rate", "bar", "specific": {name: [[layer, neuron], ...]}, "exclusive": likewise,
     "layers", "neurons", "tokens": {name: n}, "candidates": {name: n}, "sole_candidates": {name: n},
     "without_candidates": [name, ...], "tied_out": {name: n}, "left_out": {name: reason},
     "too_few_candidates": {name: {"candidates": n, "taken": n}}, "proportionate_per_corpus": n}

Lists of neurons are sorted by (layer, neuron). The document is also a mask file. `too_few_candidates` names the corpora
with fewer candidates than `per_corpus`: all of them were taken, so that nothing was chosen there, and sets differ in
size. `proportionate_per_corpus` is the paper's 400 of Llama-3.1-8B's 458,752 neurons in proportion to this model's.
"""

from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, model_key, model_name
from neurotally.analysis.languages.lape import Selection, layer_counts
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.text_table import layer_runs, text_table

LAPE_SCHEMA = 1

PAPERS_SHARE = 400 / (32 * 14_336)
"""arXiv 2506.01074: 400 neurons for each language, of Llama-3.1-8B's 32 layers of 14,336."""

_HEADER = ("corpus", "tokens", "candidates", "only here", "specific", "low/mid/top", "exclusive", "low/mid/top")


def lape_document(counts: CorpusCounts, selection: Selection) -> dict[str, Any]:
    """The document of `lape --json` and `--out`: plain lists, numbers and strings, no NaN."""
    num_layers, num_neurons = selection.entropy_LF.shape
    return {
        "schema": LAPE_SCHEMA,
        "model": model_key(counts.model),
        "corpora": list(selection.corpora),
        **Rule.of(selection).as_json(),
        "bar": selection.bar,
        "specific": {name: neurons_n2.tolist() for name, neurons_n2 in selection.specific.items()},
        "exclusive": {name: neurons_n2.tolist() for name, neurons_n2 in selection.exclusive.items()},
        "layers": num_layers,
        "neurons": num_neurons,
        "tokens": dict(zip(counts.corpora, counts.tokens_C.tolist(), strict=True)),
        "candidates": dict(selection.num_candidates),
        "sole_candidates": dict(selection.num_sole_candidates),
        "tied_out": dict(selection.num_tied_out),
        "without_candidates": selection.without_candidates,
        "left_out": dict(counts.left_out),
        "too_few_candidates": {
            name: {"candidates": number, "taken": len(selection.specific[name])}
            for name, number in selection.too_few_candidates.items()
        },
        "proportionate_per_corpus": proportionate(num_layers * num_neurons),
    }


def proportionate(num_neurons: int) -> int:
    """As many neurons for each corpus as the paper took of a Llama-3.1-8B, in proportion."""
    return max(1, round(PAPERS_SHARE * num_neurons))


def candidates_warning(selection: Selection) -> str | None:
    """Says where a corpus has fewer candidates than asked for; None where all have enough."""
    if not (few := selection.too_few_candidates):
        return None
    neurons = selection.entropy_LF.size
    corpora = ", ".join(f"{name} {number:,}" for name, number in few.items())
    return (
        f"fewer candidates than {selection.limit:,}, so all were taken and none chosen: {corpora}; the paper's 400 of "
        f"Llama-3.1-8B's 458,752 neurons are {proportionate(neurons):,} of this model's {neurons:,}: "
        f"--per-corpus {proportionate(neurons)}"
    )


def lape_table(counts: CorpusCounts, selection: Selection) -> str:
    """The selection as text: one row a corpus, how its neurons spread over the layers, and what was left out."""
    num_layers, num_neurons = selection.entropy_LF.shape
    num_values = len(selection.corpora) * num_layers * num_neurons
    lines = [
        f"LAPE of {model_name(counts.model)}, {num_layers} layers of {num_neurons:,} neurons: {Rule.of(selection)}",
        f"bar: active at more than {selection.bar:.6g} of a corpus's tokens (that quantile of {num_values:,} values)",
        "",
        text_table(_HEADER, [_row(counts, selection, name) for name in selection.corpora]),
        "",
        *_notes(counts, selection),
    ]
    return "\n".join(lines)


def _row(counts: CorpusCounts, selection: Selection, name: str) -> list[str]:
    specific, exclusive = selection.specific[name], selection.exclusive[name]
    return [
        name,
        f"{int(counts.tokens_C[counts.corpora.index(name)]):,}",
        f"{selection.num_candidates[name]:,}",
        f"{selection.num_sole_candidates[name]:,}",
        f"{len(specific):,}" + ("*" if name in selection.too_few_candidates else ""),
        _spread(specific, len(selection.entropy_LF)),
        f"{len(exclusive):,}",
        _spread(exclusive, len(selection.entropy_LF)),
    ]


def _spread(neurons_n2: np.ndarray, num_layers: int) -> str:
    """Which share of the neurons lies in each run of layers, in percent."""
    if not len(neurons_n2):
        return "-"
    count_L = layer_counts(neurons_n2, num_layers)
    return "/".join(f"{100 * count_L[run].sum() / len(neurons_n2):3.0f}" for run in layer_runs(num_layers, 3).values())


def _notes(counts: CorpusCounts, selection: Selection) -> list[str]:
    runs = layer_runs(len(selection.entropy_LF), 3)
    notes = [
        "candidates pass the bar, `only here` in no other corpus; exclusive: specific to no other corpus",
        f"low/mid/top: % of them in {' / '.join(runs)}; {_num_chosen(selection):,} neurons chosen in all",
    ]
    if selection.select == "top" and _num_chosen(selection) < round(selection.limit * selection.entropy_LF.size):
        notes.append("fewer than asked for: no other neuron passes the bar")
    notes += [
        f"{name}: {number:,} more candidates tie with the last one chosen; the lowest layers were taken"
        for name, number in selection.num_tied_out.items()
        if number
    ]
    if warning := candidates_warning(selection):
        notes.append(f"* {warning}")
    if empty := selection.without_candidates:
        notes.append(f"no neuron passes the bar in {', '.join(empty)}: no specific neurons there")
    notes += [f"left out: {name} ({reason})" for name, reason in counts.left_out.items()]
    return notes


def _num_chosen(selection: Selection) -> int:
    """Neurons specific to at least one corpus."""
    return len(np.unique(np.concatenate(list(selection.specific.values())), axis=0))
