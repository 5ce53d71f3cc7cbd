"""Profiles by layer: where each corpus's neurons sit, and how many corpora they belong to.

A neuron chosen by LAPE is specific to one corpus or more; specific to one only it is exclusive, else shared by 2, 3,
... corpora. `profiles_document` is what `profiles` says:

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.lape_study import NO_NEURON, candidates_warnings, set_notes
from neurotally.analysis.languages.rule import DEFAULT, Rule
from neurotally.analysis.options import Group, OnlyCorpora
from neurotally.analysis.overlap import pairwise_common, pairwise_jaccard
from neurotally.analysis.result import (
    Cell,
    Chart,
    Column,
    Grid,
    Panel,
    Result,
    Series,
    Table,
    finite,
    model_key,
    model_name,
)

if TYPE_CHECKING:
    from neurotally.analysis.languages.counts import CorpusCounts

PROFILES_SCHEMA = 1
FIGURES = {"overlap": "Draw the overlap of every two corpora."}

_MOST_STEPS = 5
"""So many steps of sharing fit the legend and the eye."""


def study(store: Path, corpus: OnlyCorpora = (), rule: Annotated[Rule, Group()] = DEFAULT) -> Result:
    """Where each corpus's neurons sit, layer by layer, and which corpora share them.

    Example:
      neurotally profiles llama.store --figure profiles.png --overlap-figure overlap.png

    >>> int(store.profiles(quantile=0.6, per_corpus=12).frame("specific")["python"].sum())
    12
    """
    from neurotally.analysis.languages.counts import read_counts

    counts = read_counts(store, corpus)
    return profiles_result(counts, rule, rule.choose(counts))


@dataclass(frozen=True, eq=False)
class Profiles:
    """Where the neurons of a selection sit. Shapes: C corpora, L layers, M = 1..C corpora that share a neuron."""

    corpora: tuple[str, ...]
    by_sharing_CML: np.ndarray
    """int64: of each corpus's specific neurons, those that m corpora share, by layer; m = 1 comes first."""
    common_CC: np.ndarray
    """int64: neurons specific to both; the diagonal is the number of specific neurons."""

    @property
    def specific_CL(self) -> np.ndarray:
        """Each corpus's specific neurons, by layer."""
        total_CL: np.ndarray = self.by_sharing_CML.sum(axis=1)
        return total_CL

    @property
    def exclusive_CL(self) -> np.ndarray:
        """Those specific to no other corpus."""
        alone_CL: np.ndarray = self.by_sharing_CML[:, 0]
        return alone_CL

    @property
    def shared_by_ML(self) -> np.ndarray:
        """Distinct neurons that m corpora share, by layer: each of them is in m corpora's rows."""
        sharing_M = np.arange(1, self.by_sharing_CML.shape[1] + 1)
        count_ML: np.ndarray = self.by_sharing_CML.sum(axis=0) // sharing_M[:, None]
        return count_ML

    @property
    def jaccard_CC(self) -> np.ndarray:
        """Overlap of every two corpora; NaN for two empty sets."""
        return pairwise_jaccard(self.common_CC)


def profiles(specific: Mapping[str, np.ndarray], num_layers: int) -> Profiles:
    """Count the sets ([n, 2] of (layer, neuron), each neuron once) by layer and by how many of them share a neuron."""
    num_corpora = len(specific)
    by_sharing_CML = np.zeros((num_corpora, num_corpora, num_layers), np.int64)
    everyone_n2 = np.concatenate(list(specific.values()))
    neurons_u2, index_n, sharing_u = np.unique(everyone_n2, axis=0, return_inverse=True, return_counts=True)
    corpus_n = np.repeat(np.arange(num_corpora), [len(neurons_n2) for neurons_n2 in specific.values()])
    sharing_n = sharing_u[index_n.ravel()]
    np.add.at(by_sharing_CML, (corpus_n, sharing_n - 1, everyone_n2[:, 0]), 1)
    assert int(by_sharing_CML.sum()) == len(everyone_n2) >= len(neurons_u2)
    return Profiles(tuple(specific), by_sharing_CML, pairwise_common(specific))


def profiles_of(selection: Selection) -> Profiles:
    """The profiles of LAPE's specific neurons."""
    return profiles(selection.specific, len(selection.entropy_LF))


def profiles_document(counts: "CorpusCounts", rule: Rule, selection: Selection) -> dict[str, Any]:
    """The document of `profiles --json`: plain lists, numbers and strings, no NaN."""
    num_layers, num_neurons = selection.entropy_LF.shape
    return {
        "schema": PROFILES_SCHEMA,
        "model": model_key(counts.model),
        "corpora": list(selection.corpora),
        **rule.as_json(),
        "layers": num_layers,
        "neurons": num_neurons,
        **profile_keys(profiles_of(selection)),
        "without_candidates": selection.without_candidates,
        "left_out": dict(counts.left_out),
    }


def profile_keys(found: Profiles) -> dict[str, Any]:
    """`by_layer` and `overlap` of a document."""
    jaccard = [finite(jaccard_C) for jaccard_C in found.jaccard_CC.tolist()]
    return {
        "by_layer": {
            "distinct": found.shared_by_ML.sum(axis=0).tolist(),
            "shared_by": _by_number(found.shared_by_ML),
            **sets_by_layer(found),
            "sharing": {
                name: _by_number(of_ML) for name, of_ML in zip(found.corpora, found.by_sharing_CML, strict=True)
            },
        },
        "overlap": {"count": found.common_CC.tolist(), "jaccard": jaccard},
    }


def sets_by_layer(found: Profiles) -> dict[str, dict[str, list[int]]]:
    """`specific` and `exclusive`: {name: [by layer]}."""
    return {
        "specific": dict(zip(found.corpora, found.specific_CL.tolist(), strict=True)),
        "exclusive": dict(zip(found.corpora, found.exclusive_CL.tolist(), strict=True)),
    }


def profiles_result(counts: "CorpusCounts", rule: Rule, selection: Selection) -> Result:
    """Neurons by layer and corpus, by layer and number of corpora, and the overlap of every two."""
    document = profiles_document(counts, rule, selection)
    by_layer = document["by_layer"]
    tables = [
        _layer_table("specific", "Specific neurons by layer", by_layer["specific"]),
        _layer_table("exclusive", "Exclusive neurons by layer", by_layer["exclusive"]),
        _layer_table("sharing", "Chosen neurons by layer and by how many corpora they are specific to",
                     {"distinct": by_layer["distinct"], **_shared_columns(by_layer["shared_by"])}),
        *overlap_tables(document["corpora"], document["overlap"]),
    ]  # fmt: skip
    charts = [_sharing_chart(document), overlap_chart(document["corpora"], document["overlap"])]
    lead = f"Profiles by layer of {model_name(counts.model)}: {rule}"
    return Result("profiles", document, lead, tables, charts, set_notes(counts, selection),
                  candidates_warnings(selection), title="Profiles by layer and overlap")  # fmt: skip


def overlap_tables(corpora: Sequence[str], overlap: Mapping[str, Any]) -> list[Table]:
    """The Jaccard index, and the neurons in common, of every two corpora; `overlap` as in the document."""
    jaccard, common = (
        [[name, *values] for name, values in zip(corpora, overlap[key], strict=True)] for key in ("jaccard", "count")
    )
    for row, values in enumerate(jaccard):
        values[row + 1] = None  # of itself
    shares = [Column("corpus"), *(Column(name, "number", 3) for name in corpora)]
    counts = [Column("corpus"), *(Column(name, "count") for name in corpora)]
    return [
        Table("jaccard", "Overlap of every two corpora: the Jaccard index of their specific neurons", shares, jaccard,
              look="shares"),
        Table("common", "Specific neurons in common; on the diagonal all of a corpus", counts, common, is_long=True,
              look="shares"),
    ]  # fmt: skip


def overlap_chart(corpora: Sequence[str], overlap: Mapping[str, Any]) -> Chart:
    """A heat map of Jaccard indices, each cell with its index and the neurons in common; sizes on the diagonal."""
    values = [
        [None if row == column else value for column, value in enumerate(of_row)]
        for row, of_row in enumerate(overlap["jaccard"])
    ]
    texts = [
        [f"{count:,}" if row == column or value is None else f"{value:.2f}\n{count:,}"
         for column, (value, count) in enumerate(zip(of_row, overlap["count"][row], strict=True))]
        for row, of_row in enumerate(overlap["jaccard"])
    ]  # fmt: skip
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


def _sharing_chart(document: Mapping[str, Any]) -> Chart:
    """Neurons by layer, stacked by how many corpora share them: all chosen neurons, then one panel a corpus."""
    by_layer, corpora = document["by_layer"], document["corpora"]
    most = max((max(counts) for counts in by_layer["specific"].values()), default=0)
    panels = [_stack("all corpora", by_layer["shared_by"], None)]
    panels += [_stack(name, by_layer["sharing"][name], max(1, 1.06 * most)) for name in corpora]
    return Chart("profiles", "Where the chosen neurons sit, and how many corpora share them", panels,
                 "layer, from the input to the output", "neurons in the layer", y="count", share_y=False)  # fmt: skip


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
