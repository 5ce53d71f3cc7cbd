"""Two stores side by side: do two models, or one model before and after, keep their neurons in the same places?

Only corpora that both stores have are compared, and LAPE is run on these alone, in both by the same rule: entropies
and the bar depend on which corpora there are. Corpora are the same if their names are.

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import numpy as np

from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.lape_study import NO_NEURON, candidates_warnings
from neurotally.analysis.languages.profiles import Profiles, overlap_tables, profile_keys, profiles_of
from neurotally.analysis.languages.rule import DEFAULT, Rule
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.overlap import jaccard, safe_divide
from neurotally.analysis.result import (
    Cell,
    Chart,
    Column,
    Mark,
    Panel,
    Result,
    Series,
    Table,
    finite,
    model_key,
    model_name,
)
from neurotally.profiler.errors import InputError

if TYPE_CHECKING:
    from neurotally.analysis.languages.counts import CorpusCounts

COMPARE_SCHEMA = 1

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
    from neurotally.analysis.languages.counts import read_counts

    counts = [read_counts(path, corpus) for path in (store, Path(other))]
    return compare_result(compare(counts, store_labels(counts, [str(store), str(other)]), rule))


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two stores, on the corpora in common."""

    label: str
    counts: "CorpusCounts"
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


def compare(counts: Sequence["CorpusCounts"], labels: Sequence[str], rule: Rule) -> Comparison:
    """Choose neurons in two stores from the corpora that both have; InputError where these are fewer than two."""
    assert len(counts) == len(labels) == 2, "two stores"
    corpora = tuple(name for name in counts[0].corpora if name in counts[1].corpora)
    if len(corpora) < 2:
        has = "; ".join(f"{label} has {', '.join(of.corpora)}" for of, label in zip(counts, labels, strict=True))
        raise InputError(f"two corpora of the same names are needed, found {', '.join(corpora) or 'none'}: {has}")
    one, other = (_side(of, label, corpora, rule) for of, label in zip(counts, labels, strict=True))
    return Comparison(rule, corpora, (one, other))


def store_labels(counts: Sequence["CorpusCounts"], paths: Sequence[str]) -> list[str]:
    """The models' ids where they tell the stores apart, else the stores' paths."""
    ids = [model_name(of.model) for of in counts]
    return ids if len(set(ids)) == len(ids) else [str(path) for path in paths]


def compare_result(found: Comparison) -> Result:
    """How far each corpus's neurons sit in the same places, their spread over the depth, and the overlaps."""
    document = finite(_document(found))
    marked = list(zip("AB", found.sides, strict=True))
    shapes = "; ".join(
        f"{mark} {side.label} ({side.selection.entropy_LF.shape[0]} layers of {side.selection.entropy_LF.shape[1]:,})"
        for mark, side in marked
    )
    tables = [_table(document)]
    for (mark, side), of_store in zip(marked, document["stores"], strict=True):
        tables.append(_depth_table(f"depth {mark}", f"Specific neurons of {mark} by depth", side.profiles))
        overlaps, _ = overlap_tables(document["corpora"], of_store["overlap"])
        tables.append(replace(overlaps, name=f"jaccard {mark}", title=f"{mark}: {overlaps.title}", is_long=True))
    notes = [
        "mean depth: 0 input, 1 output; profiles: overlap of the specific neurons' profiles over depth",
        _sets_note(found),
        *(f"left out of {mark}: {name} ({reason})" for mark, side in marked
          for name, reason in side.counts.left_out.items()),
    ]  # fmt: skip
    warnings = [f"{side.label}: {text}" for side in found.sides for text in candidates_warnings(side.selection)]
    return Result("compare", document, f"{shapes}: {found.rule}", tables, [_chart(document)], notes, warnings,
                  title="Two stores", model=shapes)  # fmt: skip


def _document(found: Comparison) -> dict[str, Any]:
    """The document of `compare --json`."""
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


def _side(counts: "CorpusCounts", label: str, corpora: tuple[str, ...], rule: Rule) -> Side:
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
    depths = mean_depths(side.profiles.specific_CL).tolist()
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


def _sets_note(found: Comparison) -> str:
    if not found.is_same_shape:
        return "sets: the models differ in shape, so that no neuron of one is a neuron of the other"
    same = "the same model" if found.is_same_model else "another model: chance, unless one was trained from the other"
    return f"sets: Jaccard index of the specific neurons themselves ({same})"


def _depth_table(name: str, title: str, found: Profiles) -> Table:
    """Up to ten equal stretches of depth, a layer across a border shared out."""
    num_runs = min(_MOST_RUNS, found.specific_CL.shape[1])
    columns = [Column("depth"), *(Column(corpus, "share") for corpus in found.corpora)]
    rows: list[list[Cell]] = [
        [f"{100 * run / num_runs:.0f}-{100 * (run + 1) / num_runs:.0f} %", *shares]
        for run, shares in enumerate(_run_shares(found.specific_CL, num_runs).tolist())
    ]
    return Table(name, title, columns, rows, is_long=True)


def _run_shares(count_CL: np.ndarray, num_runs: int) -> np.ndarray:
    """[run, C]: of each corpus's neurons, those in each equal stretch of depth; NaN for a corpus without neurons."""
    below_C = np.cumsum(_densities(count_CL), axis=1) / count_CL.shape[1]
    edges = np.linspace(0, 1, num_runs + 1)
    return np.stack([np.diff(np.interp(edges, _edges(count_CL), [0, *below_L])) for below_L in below_C], axis=1)


def _chart(document: Mapping[str, Any]) -> Chart:
    """One panel a corpus: its specific neurons' profiles in both stores, over relative depth if layers differ."""
    is_relative = document["relative_axis"]
    return Chart(
        "compare", "Where each corpus's neurons sit in two stores",
        [_panel(document, name) for name in document["corpora"]],
        "depth, from the input (0) to the output (1)" if is_relative else "layer, from the input to the output",
        "density (1: evenly spread)" if is_relative else "share of the specific neurons",
        x="number" if is_relative else "layers", y="count" if is_relative else "share",
    )  # fmt: skip


def _panel(document: Mapping[str, Any], name: str) -> Panel:
    series, looks = [], cast(Sequence[Mark], ("filled", "steps"))
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


def _by_name(found: Comparison, value_C: np.ndarray) -> dict[str, float | None]:
    return {name: float(value) for name, value in zip(found.corpora, value_C, strict=True)}
