"""What `lape` says: the neurons specific to each corpus, with error bars if asked for.

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "select", "quantile",
     "per_corpus" | "top_rate", "bar", "specific": {name: [[layer, neuron], ...]}, "exclusive": likewise,
     "layers", "neurons", "tokens": {name: n}, "candidates": {name: n}, "sole_candidates": {name: n},
     "without_candidates": [name, ...], "tied_out": {name: n}, "left_out": {name: reason},
     "too_few_candidates": {name: {"candidates": n, "taken": n}}, "proportionate_per_corpus": n}

Lists of neurons are sorted by (layer, neuron). The document is also a mask file. `too_few_candidates` names the corpora
with fewer candidates than `per_corpus`: all of them were taken, so that nothing was chosen there, and sets differ in
size. `proportionate_per_corpus` is the paper's 400 of Llama-3.1-8B's 458,752 neurons in proportion to this model's.
With error bars the document has `error_bars`, of `jackknife_report`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from neurotally.analysis.languages.lape import Selection, layer_counts
from neurotally.analysis.languages.rule import DEFAULT, Rule
from neurotally.analysis.layer_runs import layer_runs
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.result import Cell, Chart, Column, Panel, Result, Series, Table, Value, model_key, model_name
from neurotally.profiler.errors import InputError

if TYPE_CHECKING:
    from neurotally.analysis.languages.counts import CorpusCounts, GroupCounts
    from neurotally.analysis.languages.jackknife import ErrorBars

LAPE_SCHEMA = 1
FIGURES = {"error-bars": "With --error-bars: draw each specific neuron's interval."}

PAPERS_SHARE = 400 / (32 * 14_336)
"""arXiv 2506.01074: 400 neurons for each language, of Llama-3.1-8B's 32 layers of 14,336."""

NO_NEURON = "no neuron\nabove the threshold"
"""In a panel of a corpus without candidates."""


def study(
    store: Path,
    corpus: OnlyCorpora = (),
    rule: Annotated[Rule, Group()] = DEFAULT,
    error_bars: Annotated[bool, Option("Intervals for every specific neuron, from the groups in the store.")] = False,
    archive: Annotated[
        Path | None, Option("With --error-bars: those of all neurons.", "FILE.npz", suffixes=(".npz",))
    ] = None,
) -> Result:
    """Find the neurons that are specific to each corpus (LAPE, arXiv 2402.16438, as in arXiv 2506.01074).

    Example:
      neurotally lape llama.store --out neurons.json --error-bars

    >>> store.lape(quantile=0.6, per_corpus=12).frame().set_index("corpus").loc["python", "specific"].item()
    12
    """
    from neurotally.analysis.languages.counts import read_counts, read_group_counts

    if not error_bars:
        if archive is not None:
            raise InputError("--archive: expected --error-bars with it")
        counts = read_counts(store, corpus)
        return lape_result(counts, rule.choose(counts))
    from neurotally.analysis.languages import jackknife

    groups = read_group_counts(store, corpus)
    bars = jackknife.error_bars(groups)
    if archive is not None:
        jackknife.save_error_bars(bars, archive)
    counts = groups.total()
    return lape_result(counts, rule.choose(counts), bars)


def lape_result(counts: "CorpusCounts", selection: Selection, bars: "ErrorBars | None" = None) -> Result:
    """The selection, and how well it is known if `bars` are given."""
    document = lape_document(counts, selection)
    tables, charts, notes = [_table(counts, selection)], [_layers_chart(selection)], _notes(counts, selection)
    if bars is not None:
        from neurotally.analysis.languages.jackknife_report import (
            bars_chart,
            bars_notes,
            bars_table,
            error_bars_document,
        )

        document["error_bars"] = error_bars_document(bars, selection)
        tables.append(bars_table(document))
        charts.append(bars_chart(document))
        notes += bars_notes(document["error_bars"])
    num_layers, num_neurons = selection.entropy_LF.shape
    lead = f"LAPE of {model_name(counts.model)}, {num_layers} layers of {num_neurons:,} neurons: {Rule.of(selection)}"
    return Result("lape", document, lead, tables, charts, notes, candidates_warnings(selection),
                  findings=[_finding(selection)], title="Language-specific neurons (LAPE)")  # fmt: skip


def lape_document(counts: "CorpusCounts", selection: Selection) -> dict[str, Any]:
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


def candidates_warnings(selection: Selection) -> list[str]:
    """Says where a corpus has fewer candidates than asked for; nothing where all have enough."""
    if not (few := selection.too_few_candidates):
        return []
    neurons = selection.entropy_LF.size
    corpora = ", ".join(f"{name} {number:,}" for name, number in few.items())
    return [
        f"fewer candidates than {selection.limit:,}, so all were taken and none chosen: {corpora}; the paper's 400 of "
        f"Llama-3.1-8B's 458,752 neurons are {proportionate(neurons):,} of this model's {neurons:,}: "
        f"--per-corpus {proportionate(neurons)}"
    ]


def set_notes(counts: "CorpusCounts | GroupCounts", selection: Selection) -> list[str]:
    """Of any result about a selection: corpora without neurons, and those left out."""
    notes = [f"{name}: no neuron above the threshold" for name in selection.without_candidates]
    return notes + [f"left out: {name} ({reason})" for name, reason in counts.left_out.items()]


def _finding(selection: Selection) -> str:
    sets = [f"{name} {len(neurons):,} ({len(selection.exclusive[name]):,})"
            for name, neurons in selection.specific.items()]  # fmt: skip
    return f"Specific neurons, in brackets exclusive ones: {', '.join(sets)}."


def _table(counts: "CorpusCounts", selection: Selection) -> Table:
    columns = [Column("corpus"), *(Column(name, "count") for name in ("tokens", "candidates", "only here", "specific")),
               Column("low/mid/top"), Column("exclusive", "count"), Column("low/mid/top of these")]  # fmt: skip
    rows: list[list[Cell]] = []
    for name in selection.corpora:
        specific, exclusive = selection.specific[name], selection.exclusive[name]
        mark = "*" if name in selection.too_few_candidates else ""
        rows.append([
            name, int(counts.tokens_C[counts.corpora.index(name)]), selection.num_candidates[name],
            selection.num_sole_candidates[name], Value(len(specific), mark=mark),
            _spread(specific, len(selection.entropy_LF)), len(exclusive), _spread(exclusive, len(selection.entropy_LF)),
        ])  # fmt: skip
    return Table("corpora", "Specific neurons by corpus", columns, rows)


def _layers_chart(selection: Selection) -> Chart:
    """One panel a corpus: how many of its specific, and of its exclusive neurons lie in each layer."""
    num_layers = len(selection.entropy_LF)
    panels = []
    for name in selection.corpora:
        specific, exclusive = selection.specific[name], selection.exclusive[name]
        series = [
            Series("specific (first number)", layer_counts(specific, num_layers).tolist(), mark="filled", corpus=name,
                   tone="light"),
            Series("of these, exclusive (second number)", layer_counts(exclusive, num_layers).tolist(), mark="filled",
                   corpus=name),
        ]  # fmt: skip
        panels.append(Panel(name, series, f"{len(specific):,} / {len(exclusive):,}" if len(specific) else "",
                            empty="" if len(specific) else NO_NEURON))  # fmt: skip
    return Chart("layers", "Where each corpus's neurons sit", panels, "layer, from the input to the output",
                 "neurons in the layer", y="count")  # fmt: skip


def _spread(neurons_n2: np.ndarray, num_layers: int) -> str:
    """Which share of the neurons lies in each run of layers, in percent."""
    if not len(neurons_n2):
        return "-"
    count_L = layer_counts(neurons_n2, num_layers)
    return "/".join(f"{100 * count_L[run].sum() / len(neurons_n2):.0f}" for run in layer_runs(num_layers, 3).values())


def _notes(counts: "CorpusCounts", selection: Selection) -> list[str]:
    runs = layer_runs(len(selection.entropy_LF), 3)
    num_rates = len(selection.corpora) * selection.entropy_LF.size
    notes = [
        f"threshold: active at more than {selection.bar:.6g} of its tokens (that quantile of {num_rates:,} rates)",
        "candidates are above the threshold, `only here` in no other corpus; exclusive: specific to no other corpus",
        f"low/mid/top: % of them in {' / '.join(runs)}; {_num_chosen(selection):,} neurons chosen in all",
    ]
    if selection.select == "top" and _num_chosen(selection) < round(selection.limit * selection.entropy_LF.size):
        notes.append("fewer than asked for: no other neuron is above the threshold")
    notes += [
        f"{name}: {number:,} more candidates tie with the last one chosen; the lowest layers were taken"
        for name, number in selection.num_tied_out.items()
        if number
    ]
    return notes + set_notes(counts, selection)


def _num_chosen(selection: Selection) -> int:
    """Neurons specific to at least one corpus."""
    return len(np.unique(np.concatenate(list(selection.specific.values())), axis=0))
