"""Profiles by layer: where each corpus's neurons sit, and how many corpora they belong to.

A neuron chosen by LAPE is specific to one corpus or more; specific to one only it is exclusive, else shared by 2, 3,
... corpora. The document:

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "select", "quantile",
     "per_corpus" | "top_rate", "layers": n, "neurons": n,
     "by_layer": {"distinct": [...], "shared_by": {"1": [...], "2": [...], ...},
                  "specific": {name: [...]}, "exclusive": {name: [...]},
                  "sharing": {name: {"1": [...], "2": [...], ...}}},
     "overlap": {"count": [[corpus, corpus]], "jaccard": [[corpus, corpus]]},
     "without_candidates": [name, ...], "left_out": {name: reason}}

Lists by layer run from the input to the output. `distinct` counts each chosen neuron once, `shared_by` divides it
by the number of corpora, `sharing` does so for one corpus's neurons ("1" are its exclusive ones).
`overlap` is in the order of `corpora`; its diagonal holds the sizes and 1; null where both sets are empty.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, read_counts
from neurotally.analysis.languages.lape import DEFAULT, NO_NEURON, Rule, Sets, lape
from neurotally.analysis.languages.lape_study import candidates_warnings, lape_document, set_notes
from neurotally.analysis.options import Group, OnlyCorpora
from neurotally.analysis.overlap import pairwise_common, pairwise_jaccard, without_diagonal
from neurotally.analysis.parts import Cell, Chart, Column, Grid, Panel, Series, Table, matrix
from neurotally.analysis.result import Result, by_name, finite, model_name

FIGURES = {"overlap": "Draw the overlap of every two corpora."}

_OF_LAPE = ("model", "corpora", "layers", "neurons", "without_candidates", "left_out")
"""The keys that the document shares with LAPE's."""
_MOST_STEPS = 5
"""So many steps of sharing fit the legend and the eye."""


def study(store: Path, corpus: OnlyCorpora = (), rule: Annotated[Rule, Group()] = DEFAULT) -> Result:
    """Where each corpus's neurons sit, layer by layer, and which corpora share them.

    Example:
      neurotally profiles llama.store --figure profiles.png --overlap-figure overlap.png

    >>> int(store.profiles(quantile=0.6, per_corpus=12).frame("specific")["python"].sum())
    12
    """
    return profiles(read_counts(store, corpus), rule)


def profiles(counts: CorpusCounts, rule: Rule) -> Result:
    """Neurons by layer and corpus, by layer and number of corpora, and the overlap of every two."""
    selection = lape(counts, rule)
    of_lape = lape_document(counts, selection)
    by_layer = neurons_by_layer(selection.specific, of_lape["layers"])
    overlap = overlaps(selection.specific)
    document = {
        "schema": 1,
        **rule.as_json(),
        **{key: of_lape[key] for key in _OF_LAPE},
        "by_layer": by_layer,
        "overlap": overlap,
    }
    tables = [
        _layer_table("specific", "Specific neurons by layer", by_layer["specific"]),
        _layer_table("exclusive", "Exclusive neurons by layer", by_layer["exclusive"]),
        _layer_table("sharing", "Chosen neurons by layer and by how many corpora they are specific to",
                     {"distinct": by_layer["distinct"], **_shared_columns(by_layer["shared_by"])}),
        jaccard_table(counts.corpora, overlap),
        matrix("common", "Specific neurons in common; on the diagonal all of a corpus", "corpus", counts.corpora,
               overlap["count"], Column("", "count")),
    ]  # fmt: skip
    charts = [_sharing_chart(by_layer), _overlap_chart(counts.corpora, overlap)]
    lead = f"Profiles by layer of {model_name(counts.model)}: {rule}"
    return Result("profiles", document, lead, tables, charts, set_notes(counts, selection),
                  candidates_warnings(selection), title="Profiles by layer and overlap")  # fmt: skip


def neurons_by_layer(specific: Sets, num_layers: int) -> dict[str, Any]:
    """`by_layer` of a document: each neuron of a set counted once in its layer, by how many sets share it."""
    num_corpora = len(specific)
    by_sharing_CML = np.zeros((num_corpora, num_corpora, num_layers), np.int64)
    everyone_n2 = np.concatenate(list(specific.values()))
    _, index_n, sharing_u = np.unique(everyone_n2, axis=0, return_inverse=True, return_counts=True)
    corpus_n = np.repeat(np.arange(num_corpora), [len(neurons_n2) for neurons_n2 in specific.values()])
    sharing_n = sharing_u[index_n.ravel()]
    np.add.at(by_sharing_CML, (corpus_n, sharing_n - 1, everyone_n2[:, 0]), 1)
    assert int(by_sharing_CML.sum()) == len(everyone_n2)
    # A neuron that m corpora share is in the rows of m of them.
    shared_by_ML = by_sharing_CML.sum(axis=0) // np.arange(1, num_corpora + 1)[:, None]
    return {
        "distinct": shared_by_ML.sum(axis=0).tolist(),
        "shared_by": _by_number(shared_by_ML),
        "specific": by_name(specific, by_sharing_CML.sum(axis=1).T),
        "exclusive": by_name(specific, by_sharing_CML[:, 0].T),
        "sharing": dict(zip(specific, map(_by_number, by_sharing_CML), strict=True)),
    }


def overlaps(specific: Sets) -> dict[str, Any]:
    """`overlap` of a document: neurons in common and Jaccard index of every two sets."""
    common_CC = pairwise_common(specific)
    return {"count": common_CC.tolist(), "jaccard": finite(pairwise_jaccard(common_CC).tolist())}


def jaccard_table(corpora: Sequence[str], overlap: Mapping[str, Any]) -> Table:
    """The Jaccard index of every two corpora, but of none with itself; `overlap` as in the document."""
    title = "Overlap of every two corpora: the Jaccard index of their specific neurons"
    values = without_diagonal(overlap["jaccard"])
    return matrix("jaccard", title, "corpus", corpora, values, Column("", "number", 3), is_long=False)


def _overlap_chart(corpora: Sequence[str], overlap: Mapping[str, Any]) -> Chart:
    """A heat map of Jaccard indices, each cell with its index and the neurons in common; sizes on the diagonal."""
    values = without_diagonal(overlap["jaccard"])
    texts = [
        [f"{count:,}" if value is None else f"{value:.2f}\n{count:,}" for value, count in zip(*of_both, strict=True)]
        for of_both in zip(values, overlap["count"], strict=True)
    ]
    grid = Grid("", corpora, corpora, values, texts, scale="Jaccard index of the two sets")
    title = "Neurons that two corpora share: Jaccard index, neurons in common; diagonal: all specific neurons"
    return Chart("overlap", title, [grid])


def _layer_table(name: str, title: str, by_layer: Mapping[str, Sequence[int]]) -> Table:
    """Columns of counts, a row a layer; and their sums, in a model's few layers."""
    columns = [Column("layer", "count"), *(Column(of, "count") for of in by_layer)]
    rows: list[list[Cell]] = [[layer, *counts] for layer, counts in enumerate(zip(*by_layer.values(), strict=True))]
    return Table(name, title, columns, rows, is_long=name != "specific")


def _shared_columns(shared_by: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    most = max((int(m) for m, counts in shared_by.items() if any(counts)), default=1)
    return {"exclusive" if m == "1" else f"{m} corpora": counts for m, counts in shared_by.items() if int(m) <= most}


def _sharing_chart(by_layer: Mapping[str, Any]) -> Chart:
    """Neurons by layer, stacked by how many corpora share them: all chosen neurons, then one panel a corpus."""
    most = max((max(counts) for counts in by_layer["specific"].values()), default=0)
    panels = [_stack("all corpora", by_layer["shared_by"], None)]
    panels += [_stack(name, sharing, max(1, 1.06 * most)) for name, sharing in by_layer["sharing"].items()]
    return Chart("profiles", "Where the chosen neurons sit, and how many corpora share them", panels,
                 "neurons in the layer", y="count", share_y=False)  # fmt: skip


def _stack(name: str, by_sharing: Mapping[str, Sequence[int]], top: float | None) -> Panel:
    count_ML = np.array(list(by_sharing.values()))
    if not count_ML.any():
        return Panel(name, (), empty=NO_NEURON)
    series = [Series("exclusive to one", count_ML[0].tolist(), mark="bars", tone="contrast")]
    last = min(len(count_ML), _MOST_STEPS)
    for m in range(2, last + 1):
        is_rest = m == last and len(count_ML) > last
        label = f"shared by {m}" + (" and more" if is_rest else "")
        counts = count_ML[m - 1 :].sum(axis=0) if is_rest else count_ML[m - 1]
        series.append(Series(label, counts.tolist(), mark="bars", tone=(m - 2) / (_MOST_STEPS - 2)))
    return Panel(name, series, f"{count_ML.sum():,} / {count_ML[0].sum():,} exclusive", top=top)


def _by_number(count_ML: np.ndarray) -> dict[str, list[int]]:
    return {str(m): count_L for m, count_L in enumerate(count_ML.tolist(), start=1)}
