"""LAPE over a grid of settings: how much depends on the quantile, on neurons per corpus and on the top rate.

Every quantile is combined with every number per corpus (balanced) and with every top rate (top). Each setting has
its set sizes, its profile by layer, and its overlap with the default setting; settings next to each other in the
grid, one step apart in one number, have theirs. The document:

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "layers", "neurons",
     "quantiles": [...], "per_corpus": [...], "top_rates": [...],
     "default": {"select", "quantile", "per_corpus" | "top_rate"}, "default_too_few_candidates": {name: candidates},
     "settings": [{"select", "quantile", "per_corpus" | "top_rate", "bar", "distinct": n, "shared": n,
                   "candidates": {name: n}, "sizes": {"specific": {name: n}, "exclusive": {name: n}},
                   "with_default": {name: {"jaccard", "contained"}},
                   "by_layer": {"specific": {name: [...]}, "exclusive": {name: [...]}}}, ...],
     "neighbours": [{"settings": [index, index], "changed": "quantile" | "per_corpus" | "top_rate",
                     "overlap": {name: {"jaccard", "contained"}}}, ...],
     "left_out": {name: reason}}

`distinct` counts each chosen neuron once, `shared` those specific to two corpora or more; `contained` is the share
of the smaller set that the larger one holds, which says more than Jaccard where sizes differ. Null: no neurons.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts, read_counts
from neurotally.analysis.languages.lape import DEFAULT, Rule, Selection, Sets, lape
from neurotally.analysis.languages.profiles import neurons_by_layer
from neurotally.analysis.layer_runs import known_mean
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.overlap import contained, jaccard
from neurotally.analysis.parts import Chart, Column, Grid, Panel, Series, Table
from neurotally.analysis.render.numbers import number_text
from neurotally.analysis.result import Result, finite, left_out_notes, model_key, model_name
from neurotally.profiler.errors import InputError

QUANTILES = (0.9, 0.925, 0.95, 0.975, 0.99)
PER_CORPUS = (100, 200, 400, 800, 1600)
TOP_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
FIGURES = {"profiles": "Draw the neurons by layer at every setting."}


class _Kind(NamedTuple):
    """Settings of one `select`."""

    limit: str
    """Its key in the document."""
    axis: str
    title: str


_KINDS = {
    "balanced": _Kind("per_corpus", "neurons per corpus", "Balanced: the same number for every corpus"),
    "top": _Kind("top_rate", "share of all neurons", "Top: a share of all neurons"),
}


def study(
    store: Path,
    corpus: OnlyCorpora = (),
    quantile: Annotated[
        tuple[float, ...], Option("Default: 0.9 0.925 0.95 0.975 0.99; may be repeated.", "Q", share=True)
    ] = (),
    per_corpus: Annotated[tuple[int, ...], Option("Default: 100 200 400 800 1600", "N", min=1)] = (),
    top_rate: Annotated[tuple[float, ...], Option("Default: 0.0025 ... 0.04", "R", share=True)] = (),
    base: Annotated[Rule, Group("base")] = DEFAULT,
) -> Result:
    """LAPE at every setting of a grid: set sizes, overlaps, profiles by layer.

    --quantile, --per-corpus and --top-rate may be repeated. Each setting is compared with a base: lape's
    default, or what --base-select, --base-per-corpus, --base-top-rate and --base-quantile say.

    Example:
      neurotally sweep llama.store --quantile 0.95 --per-corpus 200 --per-corpus 400

    >>> result = store.sweep(quantile=(0.6, 0.7), per_corpus=(5, 10), top_rate=(0.1,), base_per_corpus=10)
    >>> len(result.frame("balanced")), len(result.frame("top"))
    (4, 2)
    """
    return sweep(read_counts(store, corpus), quantile or QUANTILES, per_corpus or PER_CORPUS, top_rate or None, base)


def sweep(
    counts: CorpusCounts,
    quantiles: Sequence[float] = QUANTILES,
    per_corpus: Sequence[int] = PER_CORPUS,
    top_rates: Sequence[float] | None = None,
    base: Rule = DEFAULT,
) -> Result:
    """Neurons chosen by every setting; those of each list are sorted, each once: heat maps, and a row a setting.

    Without `top_rates` those of TOP_RATES are taken that are one neuron or more. `base`: the setting that others are
    compared with. InputError as of `lape`.
    """
    if top_rates is None:
        num_neurons = counts.num_neurons
        top_rates = [rate for rate in TOP_RATES if round(rate * num_neurons) >= 1]
    if not quantiles or not (per_corpus or top_rates):
        raise InputError("a sweep needs at least one quantile, and one number per corpus or one top rate")
    quantiles, per_corpus, top_rates = sorted(set(quantiles)), sorted(set(per_corpus)), sorted(set(top_rates))
    document = finite(_document(counts, base, quantiles, per_corpus, top_rates))
    kinds = [select for select in _KINDS if _by_quantile(document, select)[0]]
    charts = [
        Chart("sweep", f"Sensitivity to LAPE's settings; the base: {base}",
              [grid for select in kinds for grid in _grids(document, select)], num_columns=2),
        Chart("profiles", "Where the specific neurons of all corpora sit, by setting",
              [panel for select in kinds for panel in _panels(document, select)],
              "share of the specific neurons", y="share", num_columns=2),
    ]  # fmt: skip
    notes = [
        "distinct: neurons chosen; shared: by two corpora or more; specific, exclusive: fewest to most of a corpus",
        f"with base, Jaccard: overlap with the base ({base}), share of the smaller set that the larger one holds, and "
        "Jaccard index, means over corpora",
    ]
    if few := document["default_too_few_candidates"]:
        corpora = ", ".join(f"{name} {number:,}" for name, number in few.items())
        notes.append(f"the base takes all candidates where there are fewer: {corpora}; --base-per-corpus compares with "
                     "another")  # fmt: skip
    notes += left_out_notes(counts.left_out)
    lead = f"Sweep of LAPE of {model_name(counts.model)}, {len(counts.corpora)} corpora"
    tables = [_table(document, select) for select in kinds]
    return Result("sweep", document, lead, tables, charts, notes, title="LAPE's settings")


def _document(
    counts: CorpusCounts, base: Rule, quantiles: list[float], per_corpus: list[int], top_rates: list[float]
) -> dict[str, Any]:
    """The document of `sweep --json`, with NaN for null. Settings: balanced first, then top; in each by quantile."""
    rules = [Rule(quantile, "balanced", per_corpus=number) for quantile in quantiles for number in per_corpus]
    rules += [Rule(quantile, "top", top_rate=rate) for quantile in quantiles for rate in top_rates]
    by_base = lape(counts, base)
    settings, sets = [], []
    for rule in rules:
        selection = lape(counts, rule)
        settings.append(_setting(selection, by_base.specific))
        sets.append(selection.specific)
    num_layers, num_neurons = by_base.entropy_LF.shape
    return {
        "schema": 1,
        "model": model_key(counts.model),
        "corpora": list(counts.corpora),
        "layers": num_layers,
        "neurons": num_neurons,
        "quantiles": quantiles,
        "per_corpus": per_corpus,
        "top_rates": top_rates,
        "default": base.as_json(),
        "default_too_few_candidates": by_base.too_few_candidates,
        "settings": settings,
        "neighbours": [
            {"settings": [one, other], "changed": changed, "overlap": _overlap(sets[one], sets[other])}
            for one, other, changed in _neighbours(quantiles, {"per_corpus": per_corpus, "top_rate": top_rates})
        ],
        "left_out": dict(counts.left_out),
    }


def _neighbours(quantiles: Sequence[float], limits: Mapping[str, Sequence[float]]) -> Iterator[tuple[int, int, str]]:
    """Positions of settings one step apart in one number, and the number's name."""
    first = 0
    for limit, values in limits.items():
        for row, column in product(range(len(quantiles)), range(len(values))):
            index = first + row * len(values) + column
            if row + 1 < len(quantiles):
                yield index, index + len(values), "quantile"
            if column + 1 < len(values):
                yield index, index + 1, limit
        first += len(quantiles) * len(values)


def _setting(selection: Selection, base: Sets) -> dict[str, Any]:
    by_layer = neurons_by_layer(selection.specific, len(selection.entropy_LF))
    distinct = sum(by_layer["distinct"])
    sets = {"specific": selection.specific, "exclusive": selection.exclusive}
    return {
        **selection.rule.as_json(),
        "bar": selection.threshold,
        "distinct": distinct,
        "shared": distinct - sum(by_layer["shared_by"]["1"]),
        "candidates": dict(selection.num_candidates),
        "sizes": {kind: {name: len(of) for name, of in by_name.items()} for kind, by_name in sets.items()},
        "with_default": _overlap(selection.specific, base),
        "by_layer": {kind: by_layer[kind] for kind in sets},
    }


def _overlap(one: Sets, other: Sets) -> dict[str, dict[str, float]]:
    return {
        name: {"jaccard": jaccard(neurons_n2, other[name]), "contained": contained(neurons_n2, other[name])}
        for name, neurons_n2 in one.items()
    }


def _table(document: Mapping[str, Any], select: str) -> Table:
    columns = [Column("quantile", "number"), Column("threshold", "number"), Column("limit"),
               Column("distinct", "count"), Column("shared", "count"), Column("specific"), Column("exclusive"),
               Column("with base", "share"), Column("Jaccard", "number", 2)]  # fmt: skip
    rows = [
        [of["quantile"], of["bar"], _limit_text(of), of["distinct"], of["shared"],
         *(_range(of["sizes"][kind].values()) for kind in ("specific", "exclusive")), _mean_overlap(of, "contained"),
         _mean_overlap(of, "jaccard")]
        for of_quantile in _by_quantile(document, select)
        for of in of_quantile
    ]  # fmt: skip
    return Table(select, _KINDS[select].title, columns, rows)


def _range(counts: Iterable[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _limit_text(setting: Mapping[str, Any]) -> str:
    return f"{setting['per_corpus']:,}" if "per_corpus" in setting else f"{100 * setting['top_rate']:g} %"


def _mean_overlap(setting: Mapping[str, Any], measure: str) -> float | None:
    """With the base: the mean over corpora of `jaccard` or `contained`, those without neurons left out."""
    return known_mean([of_corpus[measure] for of_corpus in setting["with_default"].values()])


def _grids(document: Mapping[str, Any], select: str) -> list[Grid]:
    """Quantiles down and limits across: sizes, then the overlap with the base; the base is framed."""
    rows = _by_quantile(document, select)
    base = document["default"].items()
    framed = [(row, column) for row, of_row in enumerate(rows) for column, setting in enumerate(of_row)
              if base <= setting.items()]  # fmt: skip
    quantiles = [f"{quantile:g}" for quantile in document["quantiles"]]
    limits = [_limit_text(setting) for setting in rows[0]]
    titles = {f"{select}: distinct neurons, % of them shared": _shared_cell,
              "overlap with the base: contained, Jaccard": _overlap_cell}  # fmt: skip
    grids = []
    for title, cell in titles.items():
        cells = [[cell(setting) for setting in row] for row in rows]
        values = [[value for value, _ in row] for row in cells]
        texts = [[text for _, text in row] for row in cells]
        grids.append(Grid(title, quantiles, limits, values, texts, "quantile", _KINDS[select].axis, high=1.15,
                          framed=framed))  # fmt: skip
    return grids


def _shared_cell(setting: Mapping[str, Any]) -> tuple[float | None, str]:
    share = setting["shared"] / setting["distinct"] if setting["distinct"] else None
    return share, f"{setting['distinct']:,}\n{number_text(share, 'share')}"


def _overlap_cell(setting: Mapping[str, Any]) -> tuple[float | None, str]:
    share = _mean_overlap(setting, "contained")
    return share, f"{number_text(share, 'share')}\n{number_text(_mean_overlap(setting, 'jaccard'), 'number', 2)}"


def _panels(document: Mapping[str, Any], select: str) -> list[Panel]:
    """Curves over the layers, by limit and by quantile; the other is the base's or the middle one."""
    base, quantiles, rows = document["default"], document["quantiles"], _by_quantile(document, select)
    limit = _KINDS[select].limit
    row = _place(base["quantile"], quantiles)
    column = _place(base.get(limit), [setting[limit] for setting in rows[0]])
    by_quantile = [of_row[column] for of_row in rows]
    return [
        _panel(f"{select} at {quantiles[row]:g}", rows[row], map(_limit_text, rows[row])),
        _panel(f"{select}, {_limit_text(rows[row][column])}", by_quantile, (f"quantile {q:g}" for q in quantiles)),
    ]


def _place(value: float | None, values: Sequence[float]) -> int:
    """Where the value stands, or the middle."""
    return values.index(value) if value in values else len(values) // 2


def _panel(name: str, settings: Sequence[Mapping[str, Any]], labels: Iterable[str]) -> Panel:
    """A curve a setting, each darker than the one before."""
    series = []
    for number, (setting, label) in enumerate(zip(settings, labels, strict=True), start=1):
        count_L = np.sum(list(setting["by_layer"]["specific"].values()), axis=0)
        share_L = count_L / max(1, count_L.sum())
        series.append(Series(label, share_L.tolist(), tone=number / len(settings)))
    return Panel(name, series)


def _by_quantile(document: Mapping[str, Any], select: str) -> list[list[Mapping[str, Any]]]:
    """The settings of one kind: a row a quantile."""
    settings = [of_setting for of_setting in document["settings"] if of_setting["select"] == select]
    return [[of for of in settings if of["quantile"] == quantile] for quantile in document["quantiles"]]
