"""Profiles by layer: where each corpus's neurons sit, and how many corpora they belong to.

A neuron chosen by LAPE is specific to one corpus or more; specific to one only it is exclusive, else shared by 2, 3,
... corpora. `profiles_document` is what `neurotally profiles` says:

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import numbers
from neurotally.analysis.languages.counts import CorpusCounts, model_key, model_name
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.overlap import pairwise_common, pairwise_jaccard
from neurotally.analysis.text_table import decimals, text_table

PROFILES_SCHEMA = 1


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


def profiles_document(counts: CorpusCounts, rule: Rule, selection: Selection) -> dict[str, Any]:
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
    jaccard = [numbers(jaccard_C) for jaccard_C in found.jaccard_CC]
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


def profiles_table(counts: CorpusCounts, rule: Rule, selection: Selection) -> str:
    """Three tables: neurons by layer and corpus, by layer and number of corpora, and the overlap of every two."""
    found = profiles_of(selection)
    lines = [
        f"Profiles by layer of {model_name(counts.model)}: {rule}",
        "",
        "specific/exclusive neurons by layer",
        _by_corpus(found),
        "",
        "chosen neurons by layer and by how many corpora they are specific to",
        _by_number_of_corpora(found),
        "",
        "overlap of every two corpora: neurons in common above the diagonal, sizes on it, Jaccard index below",
        overlap_table(found),
        "",
        *(f"{name}: no neuron passes the bar" for name in selection.without_candidates),
        *(f"left out: {name} ({reason})" for name, reason in counts.left_out.items()),
    ]
    return "\n".join(lines).rstrip()


def overlap_table(found: Profiles) -> str:
    """Neurons in common above the diagonal, sizes on it, the Jaccard index below."""
    rows = [
        [name, *(_overlap_cell(found, row, column) for column in range(len(found.corpora)))]
        for row, name in enumerate(found.corpora)
    ]
    return text_table(("", *found.corpora), rows)


def _overlap_cell(found: Profiles, row: int, column: int) -> str:
    if row <= column:
        return f"{found.common_CC[row, column]:,}"
    return decimals(found.jaccard_CC[row, column], 3)


def _by_corpus(found: Profiles) -> str:
    specific_CL, exclusive_CL = found.specific_CL, found.exclusive_CL
    rows = [
        [str(layer), *(f"{specific_CL[c, layer]:,}/{exclusive_CL[c, layer]:,}" for c in range(len(found.corpora)))]
        for layer in range(specific_CL.shape[1])
    ]
    total = [
        f"{specific:,}/{exclusive:,}"
        for specific, exclusive in zip(specific_CL.sum(1), exclusive_CL.sum(1), strict=True)
    ]
    return text_table(("layer", *found.corpora), [*rows, ["all", *total]])


def _by_number_of_corpora(found: Profiles) -> str:
    count_ML = found.shared_by_ML
    most = 1 + int(np.flatnonzero(count_ML.any(axis=1)).max(initial=0))
    rows = [
        [str(layer), *(f"{number:,}" for number in (count_L.sum(), *count_L[:most]))]
        for layer, count_L in enumerate(count_ML.T)
    ]
    total_M = count_ML.sum(axis=1)
    header = ("layer", "distinct", "exclusive", *(f"{m} corpora" for m in range(2, most + 1)))
    return text_table(header, [*rows, ["all", *(f"{number:,}" for number in (total_M.sum(), *total_M[:most]))]])


def _by_number(count_ML: np.ndarray) -> dict[str, list[int]]:
    return {str(m): count_L for m, count_L in enumerate(count_ML.tolist(), start=1)}
