"""Two stores side by side: do two models, or one model before and after, keep their neurons in the same places?

Only corpora that both stores have are compared, and LAPE is run on these alone, in both by the same rule: entropies
and the bar depend on which corpora there are. Corpora are the same if their names are.

Where the models differ in their number of layers, layer l of L is the stretch l/L to (l+1)/L of the depth:

    mean depth        of a corpus's specific neurons, each in the middle of its layer; 0 input, 1 output
    profile overlap   ∫ min(a, b) of the two profiles as densities over depth: 1 the same, 0 nowhere together

Where both have as many layers and neurons, the sets themselves have a Jaccard index. It means something if the
weights come from one training (two corpora samples, a fine-tuned model); for unrelated models it is chance.
`compare_document` is what `neurotally compare` says:

    {"schema": 1, "corpora": [name, ...], "select", "quantile", "per_corpus" | "top_rate",
     "stores": [{"label", "model": {"id", "fingerprint"} | null, "layers", "neurons", "tokens": {name: n}, "bar",
                 "candidates": {name: n}, "specific": {name: [[layer, neuron], ...]}, "exclusive": likewise,
                 "by_layer", "overlap": as in `profiles`, "mean_depth": {name: share}, "left_out": {name: reason}},
                the same of the other store],
     "relative_axis": bool, "same_model": bool, "profile_overlap": {"specific": {name: share}, "exclusive": {...}},
     "jaccard": {name: share} | null}

Null where a set is empty; `jaccard` is null as a whole where layers or neurons differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number
from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.profiles import Profiles, profile_keys, profiles_of
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.overlap import jaccard, safe_divide
from neurotally.analysis.result import model_key, model_name
from neurotally.analysis.text_table import decimals, percent, text_table
from neurotally.profiler.errors import InputError

COMPARE_SCHEMA = 1

_MOST_RUNS = 10


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two stores, on the corpora in common."""

    label: str
    counts: CorpusCounts
    """Of the corpora in common; `left_out` names the others."""
    selection: Selection
    profiles: Profiles


@dataclass(frozen=True, eq=False)
class Comparison:
    """Both stores, by one rule."""

    rule: Rule
    corpora: tuple[str, ...]
    """In common."""
    sides: tuple[Side, Side]

    @property
    def is_relative(self) -> bool:
        """Whether layers can only be told as shares of the depth."""
        one, other = (len(side.selection.entropy_LF) for side in self.sides)
        return one != other

    @property
    def is_same_shape(self) -> bool:
        """Whether (layer, neuron) of one can be a neuron of the other."""
        one, other = (side.selection.entropy_LF.shape for side in self.sides)
        return one == other

    @property
    def is_same_model(self) -> bool:
        """Whether the fingerprints say so; False for imported counts, which have none."""
        one, other = ((side.counts.model or {}).get("fingerprint") for side in self.sides)
        return one is not None and one == other


def compare(counts: Sequence[CorpusCounts], labels: Sequence[str], rule: Rule) -> Comparison:
    """Choose neurons in two stores from the corpora that both have; InputError where these are fewer than two."""
    assert len(counts) == len(labels) == 2, "two stores"
    corpora = tuple(name for name in counts[0].corpora if name in counts[1].corpora)
    if len(corpora) < 2:
        has = "; ".join(f"{label} has {', '.join(of.corpora)}" for of, label in zip(counts, labels, strict=True))
        raise InputError(f"two corpora of the same names are needed, found {', '.join(corpora) or 'none'}: {has}")
    one, other = (_side(of, label, corpora, rule) for of, label in zip(counts, labels, strict=True))
    return Comparison(rule, corpora, (one, other))


def store_labels(counts: Sequence[CorpusCounts], paths: Sequence[str]) -> list[str]:
    """The models' ids where they tell the stores apart, else the stores' paths."""
    ids = [model_name(of.model) for of in counts]
    return ids if len(set(ids)) == len(ids) else [str(path) for path in paths]


def compare_document(found: Comparison) -> dict[str, Any]:
    """The document of `compare --json`: plain lists, numbers and strings, no NaN."""
    return {
        "schema": COMPARE_SCHEMA,
        "corpora": list(found.corpora),
        **found.rule.as_json(),
        "stores": [_side_json(side) for side in found.sides],
        "relative_axis": found.is_relative,
        "same_model": found.is_same_model,
        "profile_overlap": {
            "specific": _by_name(found, profile_overlaps(*(side.profiles.specific_CL for side in found.sides))),
            "exclusive": _by_name(found, profile_overlaps(*(side.profiles.exclusive_CL for side in found.sides))),
        },
        "jaccard": _by_name(found, set_jaccards(found)) if found.is_same_shape else None,
    }


def compare_table(found: Comparison) -> str:
    """How far each corpus's neurons sit in the same places, their spread over the depth, and the overlaps."""
    one, other = found.sides
    shapes = "; ".join(
        f"{mark} {side.label} ({side.selection.entropy_LF.shape[0]} layers of {side.selection.entropy_LF.shape[1]:,})"
        for mark, side in zip("AB", found.sides, strict=True)
    )
    lines = [
        f"{shapes}: {found.rule}",
        "",
        text_table(
            ("corpus", "tokens A", "B", "specific A", "B", "exclusive A", "B", "mean depth A", "B", "profiles", "sets"),
            [_row(found, c) for c in range(len(found.corpora))],
        ),
        "",
        "mean depth: 0 input, 1 output; profiles: overlap of the specific neurons' profiles over depth",
        _sets_note(found),
        "",
        "specific neurons by depth: % of the corpus's in A / in B",
        text_table(("depth", *found.corpora), _depth_rows(one.profiles, other.profiles)),
        "",
        "overlap of every two corpora, Jaccard index: A above the diagonal, B below",
        text_table(("", *found.corpora), _overlap_rows(one.profiles, other.profiles)),
        "",
        *(
            f"left out of {mark}: {name} ({reason})"
            for mark, side in zip("AB", found.sides, strict=True)
            for name, reason in side.counts.left_out.items()
        ),
    ]
    return "\n".join(lines).rstrip()


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


def set_jaccards(found: Comparison) -> np.ndarray:
    """By corpus: of the specific neurons themselves; only for models of one shape."""
    one, other = (side.selection.specific for side in found.sides)
    return np.array([jaccard(one[name], other[name]) for name in found.corpora])


def _side(counts: CorpusCounts, label: str, corpora: tuple[str, ...], rule: Rule) -> Side:
    index_C = [counts.corpora.index(name) for name in corpora]
    alone = {name: "not in the other store" for name in counts.corpora if name not in corpora}
    common = replace(
        counts,
        corpora=corpora,
        tokens_C=counts.tokens_C[index_C],
        active_CLF=counts.active_CLF[index_C],
        left_out=dict(sorted({**counts.left_out, **alone}.items())),
    )
    selection = rule.choose(common)
    return Side(label, common, selection, profiles_of(selection))


def _side_json(side: Side) -> dict[str, Any]:
    num_layers, num_neurons = side.selection.entropy_LF.shape
    depths = [number(depth) for depth in mean_depths(side.profiles.specific_CL)]
    return {
        "label": side.label,
        "model": model_key(side.counts.model),
        "layers": num_layers,
        "neurons": num_neurons,
        "tokens": dict(zip(side.counts.corpora, side.counts.tokens_C.tolist(), strict=True)),
        "bar": side.selection.bar,
        "candidates": dict(side.selection.num_candidates),
        "specific": {name: neurons_n2.tolist() for name, neurons_n2 in side.selection.specific.items()},
        "exclusive": {name: neurons_n2.tolist() for name, neurons_n2 in side.selection.exclusive.items()},
        **profile_keys(side.profiles),
        "mean_depth": dict(zip(side.counts.corpora, depths, strict=True)),
        "left_out": dict(side.counts.left_out),
    }


def _row(found: Comparison, c: int) -> list[str]:
    name = found.corpora[c]
    specific = [side.profiles.specific_CL for side in found.sides]
    overlap = profile_overlaps(*specific)[c]
    sets = percent(set_jaccards(found)[c]) if found.is_same_shape else "-"
    depths = [mean_depths(count_CL)[c] for count_CL in specific]
    return [
        name,
        *(f"{int(side.counts.tokens_C[c]):,}" for side in found.sides),
        *(f"{count_CL[c].sum():,}" for count_CL in specific),
        *(f"{side.profiles.exclusive_CL[c].sum():,}" for side in found.sides),
        *(decimals(depth, 2) for depth in depths),
        percent(overlap),
        sets,
    ]


def _sets_note(found: Comparison) -> str:
    if not found.is_same_shape:
        return "sets: the models differ in shape, so that no neuron of one is a neuron of the other"
    same = "the same model" if found.is_same_model else "another model: chance, unless one was trained from the other"
    return f"sets: Jaccard index of the specific neurons themselves ({same})"


def _depth_rows(one: Profiles, other: Profiles) -> list[list[str]]:
    """Up to ten equal stretches of depth, a layer across a border shared out, in percent of each corpus's neurons."""
    num_runs = min(_MOST_RUNS, one.specific_CL.shape[1], other.specific_CL.shape[1])
    shares = [_run_shares(found.specific_CL, num_runs) for found in (one, other)]
    return [
        [
            f"{100 * run / num_runs:.0f}-{100 * (run + 1) / num_runs:.0f} %",
            *(f"{_percent(a)}/{_percent(b)}" for a, b in zip(shares[0][run], shares[1][run], strict=True)),
        ]
        for run in range(num_runs)
    ]


def _run_shares(count_CL: np.ndarray, num_runs: int) -> np.ndarray:
    """[run, C]: of each corpus's neurons, those in each equal stretch of depth; NaN for a corpus without neurons."""
    below_C = np.cumsum(_densities(count_CL), axis=1) / count_CL.shape[1]
    edges = np.linspace(0, 1, num_runs + 1)
    return np.stack([np.diff(np.interp(edges, _edges(count_CL), [0, *below_L])) for below_L in below_C], axis=1)


def _overlap_rows(one: Profiles, other: Profiles) -> list[list[str]]:
    size = len(one.corpora)
    jaccard_CC = np.triu(one.jaccard_CC, 1) + np.tril(other.jaccard_CC, -1)
    return [
        [
            one.corpora[row],
            *("" if row == column else decimals(jaccard_CC[row, column], 2) for column in range(size)),
        ]
        for row in range(size)
    ]


def _densities(count_CL: np.ndarray) -> np.ndarray:
    """Each row as a density over depth, 1 on average; NaN for one without neurons."""
    return safe_divide(count_CL * float(count_CL.shape[1]), count_CL.sum(axis=1, keepdims=True))


def _edges(count_CL: np.ndarray) -> np.ndarray:
    return np.linspace(0, 1, count_CL.shape[1] + 1)


def _by_name(found: Comparison, value_C: np.ndarray) -> dict[str, float | None]:
    return {name: number(value) for name, value in zip(found.corpora, value_C, strict=True)}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if np.isfinite(share) else "-"
