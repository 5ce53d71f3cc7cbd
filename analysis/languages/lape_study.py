"""What `lape` says: the neurons specific to each corpus, with error bars if asked for.

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "select", "quantile",
     "per_corpus" | "top_rate", "bar", "specific": {name: [[layer, neuron], ...]}, "exclusive": likewise,
     "entropy": {name: [...]}, "probability": {name: [...]}, "layers", "neurons", "tokens": {name: n},
     "candidates": {name: n}, "sole_candidates": {name: n},
     "without_candidates": [name, ...], "tied_out": {name: n}, "left_out": {name: reason},
     "too_few_candidates": {name: {"candidates": n, "taken": n}}, "proportionate_per_corpus": n}

Lists of neurons are sorted by (layer, neuron); `entropy` (nats) and `probability`, the rate in the corpus itself, run
beside `specific`. The document is also a mask file. `too_few_candidates` names the corpora with fewer candidates than
`per_corpus`: all of them were taken, so that nothing was chosen there, and sets differ in size.
`proportionate_per_corpus`: the paper's 400 of Llama-3.1-8B's 458,752 neurons, in proportion to this model's. With error
bars the document has `error_bars`, too: see that file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.languages import jackknife
from neurotally.analysis.languages.counts import CorpusCounts, GroupCounts, read_counts, read_group_counts
from neurotally.analysis.languages.error_bars import bars_chart, bars_notes, bars_table, error_bars_document
from neurotally.analysis.languages.lape import DEFAULT, NO_NEURON, Rule, Selection, lape, layer_counts
from neurotally.analysis.languages.sites import FEW_TOKENS
from neurotally.analysis.layer_runs import layer_runs
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.parts import Cell, Chart, Column, Panel, Series, Table, Value
from neurotally.analysis.result import Result, by_name, left_out_notes, model_key, model_name
from neurotally.profiler.errors import InputError
from neurotally.profiler.networks import DECODER, differ_in_tokens, is_expert

FIGURES = {"error-bars": "With --error-bars: draw each specific neuron's interval."}

PAPERS_SHARE = 400 / (32 * 14_336)
"""arXiv 2506.01074: 400 neurons for each language, of Llama-3.1-8B's 32 layers of 14,336."""


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
    if error_bars and rule.rates == "joint":
        raise InputError("--error-bars are those of conditional rates; leave --rates joint out")
    if not error_bars:
        if archive is not None:
            raise InputError("--archive: expected --error-bars with it")
        counts = read_counts(store, corpus)
        return lape_result(counts, lape(counts, rule))
    groups = read_group_counts(store, corpus)
    bars = jackknife.error_bars(groups)
    if archive is not None:
        jackknife.save_error_bars(bars, archive)
    counts = groups.total()
    return lape_result(counts, lape(counts, rule), bars)


def lape_result(counts: CorpusCounts, selection: Selection, bars: jackknife.ErrorBars | None = None) -> Result:
    """The selection, and how well it is known if `bars` are given."""
    document = lape_document(counts, selection)
    tables, charts, notes = [_table(document)], [_layers_chart(document)], _notes(counts, selection)
    if bars is not None:
        document["error_bars"] = error_bars_document(bars, selection)
        tables.append(bars_table(document))
        charts.append(bars_chart(document))
        notes += bars_notes(document["error_bars"])
    sets = [f"{name} {len(neurons_n2):,} ({len(selection.exclusive[name]):,})"
            for name, neurons_n2 in selection.specific.items()]  # fmt: skip
    is_ragged = counts.num_neurons != document["layers"] * document["neurons"]
    shape = f"{document['layers']} layers of {'up to ' * is_ragged}{document['neurons']:,} neurons"
    lead = f"LAPE of {model_name(counts.model)}, {shape}: {selection.rule}"
    finding = f"Specific neurons, in brackets exclusive ones: {', '.join(sets)}."
    return Result("lape", document, lead, tables, charts, notes, candidates_warnings(selection), findings=[finding],
                  title="Language-specific neurons (LAPE)")  # fmt: skip


def lape_document(counts: CorpusCounts, selection: Selection) -> dict[str, Any]:
    """The document of `lape --json` and `--out` but for error bars: plain lists, numbers and strings, no NaN."""
    num_layers, num_neurons = selection.entropy_LF.shape
    places = {name: tuple(neurons_n2.T) for name, neurons_n2 in selection.specific.items()}
    return {
        "schema": 1,
        "model": model_key(counts.model),
        "corpora": list(selection.corpora),
        **selection.rule.as_json(),
        "bar": selection.threshold,
        "specific": {name: neurons_n2.tolist() for name, neurons_n2 in selection.specific.items()},
        "exclusive": {name: neurons_n2.tolist() for name, neurons_n2 in selection.exclusive.items()},
        "entropy": {name: selection.entropy_LF[at].tolist() for name, at in places.items()},
        "probability": {
            name: rate_LF[places[name]].tolist()
            for name, rate_LF in zip(counts.corpora, counts.rates(selection.rule.rates), strict=True)
        },
        "layers": num_layers,
        "neurons": num_neurons,
        "tokens": by_name(counts.corpora, counts.tokens_C),
        "candidates": dict(selection.num_candidates),
        "sole_candidates": dict(selection.num_sole_candidates),
        "tied_out": dict(selection.num_tied_out),
        "without_candidates": selection.without_candidates,
        "left_out": dict(counts.left_out),
        **({} if counts.sites is None else {"sites_with_few_tokens": _few_tokens(counts)}),
        "too_few_candidates": {
            name: {"candidates": number, "taken": len(selection.specific[name])}
            for name, number in selection.too_few_candidates.items()
        },
        "proportionate_per_corpus": proportionate(counts.num_neurons),
    }


def _few_tokens(counts: CorpusCounts) -> dict[str, int]:
    """By corpus: experts (and other networks) that fewer than FEW_TOKENS tokens reached."""
    assert counts.sites is not None
    return by_name(counts.corpora, np.count_nonzero(counts.sites.tokens_XS < FEW_TOKENS, axis=1))


def proportionate(num_neurons: int) -> int:
    """As many neurons for each corpus as the paper took of a Llama-3.1-8B, in proportion."""
    return max(1, round(PAPERS_SHARE * num_neurons))


def candidates_warnings(selection: Selection) -> list[str]:
    """Says where a corpus has fewer candidates than asked for; nothing where all have enough."""
    if not (few := selection.too_few_candidates):
        return []
    neurons = selection.num_neurons
    corpora = ", ".join(f"{name} {number:,}" for name, number in few.items())
    return [
        f"fewer candidates than {selection.rule.per_corpus:,}, so all were taken and none chosen: {corpora}; the "
        f"paper's 400 of Llama-3.1-8B's 458,752 neurons are {proportionate(neurons):,} of this model's {neurons:,}: "
        f"--per-corpus {proportionate(neurons)}"
    ]


def set_notes(counts: CorpusCounts | GroupCounts, selection: Selection) -> list[str]:
    """Of any result about a selection: corpora without neurons, and those left out."""
    notes = [f"{name}: no neuron above the threshold" for name in selection.without_candidates]
    return notes + left_out_notes(counts.left_out)


def _table(document: Mapping[str, Any]) -> Table:
    columns = [Column("corpus"), *(Column(name, "count") for name in ("tokens", "candidates", "only here", "specific")),
               Column("low/mid/top"), Column("exclusive", "count"), Column("low/mid/top of these")]  # fmt: skip
    rows: list[list[Cell]] = []
    for name in document["corpora"]:
        specific, exclusive = document["specific"][name], document["exclusive"][name]
        mark = "*" if name in document["too_few_candidates"] else ""
        rows.append([
            name, document["tokens"][name], document["candidates"][name], document["sole_candidates"][name],
            Value(len(specific), mark=mark), _spread(specific, document["layers"]), len(exclusive),
            _spread(exclusive, document["layers"]),
        ])  # fmt: skip
    return Table("corpora", "Specific neurons by corpus", columns, rows)


def _layers_chart(document: Mapping[str, Any]) -> Chart:
    """One panel a corpus: how many of its specific, and of its exclusive neurons lie in each layer."""
    panels = []
    for name, specific in document["specific"].items():
        exclusive = document["exclusive"][name]
        series = [
            Series("specific (first number)", layer_counts(specific, document["layers"]).tolist(), mark="filled",
                   corpus=name, tone="light"),
            Series("of these, exclusive (second number)", layer_counts(exclusive, document["layers"]).tolist(),
                   mark="filled", corpus=name),
        ]  # fmt: skip
        panels.append(Panel(name, series, f"{len(specific):,} / {len(exclusive):,}" if specific else "",
                            empty="" if specific else NO_NEURON))  # fmt: skip
    return Chart("layers", "Where each corpus's neurons sit", panels, "neurons in the layer", y="count")


def _spread(neurons: Sequence[Sequence[int]], num_layers: int) -> str:
    """Which share of the neurons lies in each run of layers, in percent."""
    if not neurons:
        return "-"
    count_L = layer_counts(neurons, num_layers)
    return "/".join(f"{100 * count_L[run].sum() / len(neurons):.0f}" for run in layer_runs(num_layers, 3).values())


def _notes(counts: CorpusCounts, selection: Selection) -> list[str]:
    rule, num_layers = selection.rule, len(selection.entropy_LF)
    rates = len(selection.corpora) * counts.num_neurons
    num_chosen = len(np.unique(np.concatenate(list(selection.specific.values())), axis=0))
    notes = [
        f"threshold: active at more than {selection.threshold:.6g} of its tokens (that quantile of {rates:,} rates)",
        "candidates are above the threshold, `only here` in no other corpus; exclusive: specific to no other corpus",
        f"low/mid/top: % of them in {' / '.join(layer_runs(num_layers, 3))}; {num_chosen:,} neurons chosen in all",
    ]
    if rule.select == "top" and num_chosen < round(rule.top_rate * counts.num_neurons):
        notes.append("fewer than asked for: no other neuron is above the threshold")
    notes += [
        f"{name}: {number:,} more candidates tie with the last one chosen; the lowest layers were taken"
        for name, number in selection.num_tied_out.items()
        if number
    ]
    return notes + _site_notes(counts, rule.rates) + set_notes(counts, selection)


def _site_notes(counts: CorpusCounts, rates: str) -> list[str]:
    """Over which tokens rates are, where not all neurons see the same."""
    if counts.sites is None or not differ_in_tokens(counts.sites.networks):
        return []
    notes, networks = [], counts.sites.networks
    if len({one.stack for one in networks}) > 1:
        first = min(one.layer for one in networks if one.stack == DECODER)
        over = "that its stack reads" if rates == "conditional" else "of both"
        notes.append(
            f"layers 0-{first - 1} are the encoder's, the others the decoder's; rates are over the tokens {over}"
        )
    if is_expert(networks).any():
        over = "the tokens routed to a neuron's expert" if rates == "conditional" else "all tokens"
        few = ", ".join(f"{name} {number:,}" for name, number in _few_tokens(counts).items())
        notes.append(
            f"rates are over {over}; {counts.num_neurons:,} neurons in {counts.sites.tokens_XS.shape[1]:,} networks "
            f"and experts, of which so many were reached by fewer than {FEW_TOKENS:,} tokens: {few}"
        )
    return notes
