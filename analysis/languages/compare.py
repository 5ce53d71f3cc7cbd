"""Two stores side by side: do two models, or one model before and after, keep their neurons in the same places?

Only corpora that both stores have are compared, and LAPE is run on these alone, in both by the same rule: entropies
and the threshold depend on which corpora there are. Corpora are the same if their names are.

Where the models differ in their number of layers, layer l of L is the stretch l/L to (l+1)/L of the depth:

    mean depth        of a corpus's specific neurons, each in the middle of its layer; 0 input, 1 output
    profile overlap   ∫ min(a, b) of the two profiles as densities over depth: 1 the same, 0 nowhere together

Where both have as many layers and neurons, the sets themselves have a Jaccard index. It means something if the
weights come from one training (two corpora samples, a fine-tuned model); for unrelated models it is chance.
The document:

    {"schema": 1, "corpora": [name, ...], "select", "quantile", "per_corpus" | "top_rate",
     "stores": [{"label", "model": {"id", "fingerprint"} | null, "layers", "neurons", "tokens": {name: n}, "bar",
                 "candidates": {name: n}, "specific": {name: [[layer, neuron], ...]}, "exclusive": likewise,
                 "by_layer", "overlap": as in `profiles`, "mean_depth": {name: share}, "left_out": {name: reason}},
                the same of the other store],
     "relative_axis": bool, "same_model": bool, "profile_overlap": {"specific": {name: share}, "exclusive": {...}},
     "jaccard": {name: share} | null}

Null where a set is empty; `jaccard` is null as a whole where layers or neurons differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, read_counts
from neurotally.analysis.languages.lape import DEFAULT, NO_NEURON, Rule, Selection, lape
from neurotally.analysis.languages.lape_study import candidates_warnings, lape_document
from neurotally.analysis.languages.profiles import jaccard_table, neurons_by_layer, overlaps
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.overlap import jaccard, safe_divide
from neurotally.analysis.parts import Cell, Chart, Column, Mark, Panel, Series, Table
from neurotally.analysis.result import Result, by_name, finite, model_name
from neurotally.profiler.buckets import location
from neurotally.profiler.errors import InputError

_OF_LAPE = ("model", "layers", "neurons", "tokens", "bar", "candidates", "specific", "exclusive", "left_out")
"""The keys that each of `stores` shares with LAPE's document."""
_MOST_RUNS = 10


def study(
    store: Path,
    other: Annotated[Path, Option("The other store.", "STORE", is_argument=True)],
    corpus: OnlyCorpora = (),
    rule: Annotated[Rule, Group()] = DEFAULT,
) -> Result:
    """Two stores side by side: do their neurons sit in the same places? Only corpora that both have.

    Example:
      neurotally compare codellama.store llama.store --figure compare.png

    >>> result = store.compare(store.path, quantile=0.6, per_corpus=12)
    >>> result.document["same_model"], result.frame()["profiles"].tolist()
    (True, [1.0, 1.0])
    """
    counts = [read_counts(path, corpus) for path in (store, location(other))]
    return compare(counts, store_labels(counts, [str(store), str(other)]), rule)


def store_labels(counts: Sequence[CorpusCounts], paths: Sequence[str]) -> Sequence[str]:
    """The models' ids where they tell the stores apart, else the stores' paths."""
    ids = [model_name(of.model) for of in counts]
    return ids if len(set(ids)) == len(ids) else paths


def compare(counts: Sequence[CorpusCounts], labels: Sequence[str], rule: Rule) -> Result:
    """How far two stores keep each corpus's neurons in the same places, their spread over the depth, and the overlaps.

    InputError where they have fewer than two corpora in common.
    """
    assert len(counts) == len(labels) == 2, "two stores"
    corpora = tuple(name for name in counts[0].corpora if name in counts[1].corpora)
    if len(corpora) < 2:
        has = "; ".join(f"{label} has {', '.join(of.corpora)}" for of, label in zip(counts, labels, strict=True))
        raise InputError(f"two corpora of the same names are needed, found {', '.join(corpora) or 'none'}: {has}")
    common = [_only(of, corpora) for of in counts]
    selections = [lape(of, rule) for of in common]
    document = finite(_document(rule, labels, common, selections))
    stores = dict(zip("AB", document["stores"], strict=True))
    shapes = "; ".join(f"{mark} {of['label']} ({of['layers']} layers of {of['neurons']:,})"
                       for mark, of in stores.items())  # fmt: skip
    tables = [_table(document)]
    for mark, of in stores.items():
        overlap = jaccard_table(corpora, of["overlap"])
        tables += [
            _depth_table(f"depth {mark}", f"Specific neurons of {mark} by depth", of["by_layer"]["specific"]),
            replace(overlap, name=f"jaccard {mark}", title=f"{mark}: {overlap.title}", is_long=True),
        ]
    notes = [
        "mean depth: 0 input, 1 output; profiles: overlap of the specific neurons' profiles over depth",
        _sets_note(document),
        *(f"left out of {mark}: {name} ({reason})" for mark, of in stores.items()
          for name, reason in of["left_out"].items()),
    ]  # fmt: skip
    warnings = [f"{label}: {text}" for label, found in zip(labels, selections, strict=True)
                for text in candidates_warnings(found)]  # fmt: skip
    return Result("compare", document, f"{shapes}: {rule}", tables, [_chart(document)], notes, warnings,
                  title="Two stores", model=shapes)  # fmt: skip


def mean_depths(count_CL: np.ndarray) -> np.ndarray:
    """By corpus: the mean of (layer + 1/2) / L over its neurons; NaN without any."""
    middle_L = (np.arange(count_CL.shape[1]) + 0.5) / count_CL.shape[1]
    return safe_divide(count_CL @ middle_L, count_CL.sum(axis=1))


def profile_overlaps(one_CL: np.ndarray, other_CL: np.ndarray) -> np.ndarray:
    """By corpus: ∫ min of two profiles as densities over depth, whatever their numbers of layers; NaN without any."""
    edges = np.unique(np.concatenate([_edges(one_CL), _edges(other_CL)]))
    middle, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    densities = [
        _densities(count_CL)[:, np.minimum((middle * count_CL.shape[1]).astype(int), count_CL.shape[1] - 1)]
        for count_CL in (one_CL, other_CL)
    ]
    overlap_C: np.ndarray = np.minimum(*densities) @ width
    return overlap_C


def _only(counts: CorpusCounts, corpora: tuple[str, ...]) -> CorpusCounts:
    """The counts of some of the corpora."""
    index_C = [counts.corpora.index(name) for name in corpora]
    alone = {name: "not in the other store" for name in counts.corpora if name not in corpora}
    return replace(
        counts,
        corpora=corpora,
        tokens_C=counts.tokens_C[index_C],
        active_CLF=counts.active_CLF[index_C],
        sites=counts.sites and replace(counts.sites, tokens_XS=counts.sites.tokens_XS[index_C]),
        left_out=dict(sorted({**counts.left_out, **alone}.items())),
    )


def _document(
    rule: Rule, labels: Sequence[str], counts: Sequence[CorpusCounts], selections: Sequence[Selection]
) -> dict[str, Any]:
    """The document of `compare --json`, with NaN for null."""
    one, other = stores = [_store(*of_store) for of_store in zip(labels, counts, selections, strict=True)]
    sets, other_sets = (selection.specific for selection in selections)
    fingerprints = [(of["model"] or {}).get("fingerprint") for of in stores]
    is_same_shape = (one["layers"], one["neurons"]) == (other["layers"], other["neurons"])
    return {
        "schema": 1,
        "corpora": list(sets),
        **rule.as_json(),
        "stores": stores,
        "relative_axis": one["layers"] != other["layers"],
        "same_model": fingerprints[0] is not None and fingerprints[0] == fingerprints[1],
        "profile_overlap": {
            kind: by_name(sets, profile_overlaps(*(_counts(of["by_layer"][kind]) for of in stores)))
            for kind in ("specific", "exclusive")
        },
        "jaccard": {name: jaccard(sets[name], other_sets[name]) for name in sets} if is_same_shape else None,
    }


def _store(label: str, counts: CorpusCounts, selection: Selection) -> dict[str, Any]:
    of_lape = lape_document(counts, selection)
    by_layer = neurons_by_layer(selection.specific, of_lape["layers"])
    return {
        "label": label,
        **{key: of_lape[key] for key in _OF_LAPE},
        "by_layer": by_layer,
        "overlap": overlaps(selection.specific),
        "mean_depth": by_name(counts.corpora, mean_depths(_counts(by_layer["specific"]))),
    }


def _table(document: Mapping[str, Any]) -> Table:
    one, other = document["stores"]
    columns = [Column("corpus")]
    columns += [Column(f"{what} {mark}", "count") for what in ("tokens", "specific", "exclusive") for mark in "AB"]
    columns += [Column(f"mean depth {mark}", "number", 2) for mark in "AB"]
    columns += [Column("profiles", "share"), Column("sets", "share")]
    rows: list[list[Cell]] = [
        [name, one["tokens"][name], other["tokens"][name],
         *(len(of_store[kind][name]) for kind in ("specific", "exclusive") for of_store in (one, other)),
         one["mean_depth"][name], other["mean_depth"][name], document["profile_overlap"]["specific"][name],
         (document["jaccard"] or {}).get(name)]
        for name in document["corpora"]
    ]  # fmt: skip
    return Table("corpora", "Where each corpus's neurons sit", columns, rows)


def _sets_note(document: Mapping[str, Any]) -> str:
    if document["jaccard"] is None:
        return "sets: the models differ in shape, so that no neuron of one is a neuron of the other"
    is_same = document["same_model"]
    which = "the same model" if is_same else "another model: chance, unless one was trained from the other"
    return f"sets: Jaccard index of the specific neurons themselves ({which})"


def _depth_table(name: str, title: str, by_corpus: Mapping[str, Sequence[int]]) -> Table:
    """Up to ten equal stretches of depth, a layer across a border shared out."""
    count_CL = _counts(by_corpus)
    num_runs = min(_MOST_RUNS, count_CL.shape[1])
    columns = [Column("depth"), *(Column(corpus, "share") for corpus in by_corpus)]
    rows: list[list[Cell]] = [
        [f"{100 * run / num_runs:.0f}-{100 * (run + 1) / num_runs:.0f} %", *shares]
        for run, shares in enumerate(_run_shares(count_CL, num_runs).tolist())
    ]
    return Table(name, title, columns, rows, is_long=True)


def _run_shares(count_CL: np.ndarray, num_runs: int) -> np.ndarray:
    """[run, C]: of each corpus's neurons, those in each equal stretch of depth; NaN for a corpus without neurons."""
    below_C = np.cumsum(_densities(count_CL), axis=1) / count_CL.shape[1]
    edges = np.linspace(0, 1, num_runs + 1)
    return np.stack([np.diff(np.interp(edges, _edges(count_CL), [0, *below_L])) for below_L in below_C], axis=1)


def _chart(document: Mapping[str, Any]) -> Chart:
    """One panel a corpus: its specific neurons' profiles in both stores, over relative depth if layers differ."""
    title = "Where each corpus's neurons sit in two stores"
    panels = [_panel(document, name) for name in document["corpora"]]
    if document["relative_axis"]:
        return Chart("compare", title, panels, "density (1: evenly spread)",
                     "depth, from the input (0) to the output (1)", x="number", y="count")  # fmt: skip
    return Chart("compare", title, panels, "share of the specific neurons", y="share")


def _panel(document: Mapping[str, Any], name: str) -> Panel:
    series = []
    looks: tuple[Mark, Mark] = ("filled", "steps")
    for mark, store, look in zip("AB", document["stores"], looks, strict=True):
        count_L = np.array(store["by_layer"]["specific"][name], dtype=np.float64)
        scale = len(count_L) if document["relative_axis"] else 1
        edges = np.linspace(0, 1, len(count_L) + 1).tolist() if document["relative_axis"] else None
        label = f"{mark}: {sum(store['by_layer']['distinct']):,} neurons chosen"
        series.append(Series(label, (scale * count_L / max(1, count_L.sum())).tolist(), edges, look, corpus=name,
                             tone="light" if look == "filled" else "main"))  # fmt: skip
    overlap = document["profile_overlap"]["specific"][name]
    if overlap is not None:
        return Panel(name, series, f"{100 * overlap:.0f} % overlap")
    if any(any(store["by_layer"]["specific"][name]) for store in document["stores"]):
        return Panel(name, series, "no neuron in one of them")
    return Panel(name, (), empty=NO_NEURON)


def _densities(count_CL: np.ndarray) -> np.ndarray:
    """Each row as a density over depth, 1 on average; NaN for one without neurons."""
    return safe_divide(count_CL * float(count_CL.shape[1]), count_CL.sum(axis=1, keepdims=True))


def _edges(count_CL: np.ndarray) -> np.ndarray:
    return np.linspace(0, 1, count_CL.shape[1] + 1)


def _counts(by_corpus: Mapping[str, Sequence[int]]) -> np.ndarray:
    """int64 [C, L] of what a document says by layer."""
    return np.array(list(by_corpus.values()), np.int64)
