"""LAPE over a grid of settings: how much hangs on the quantile, on neurons per corpus and on the top rate.

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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.profiles import Profiles, profiles, sets_by_layer
from neurotally.analysis.languages.rule import DEFAULT, Rule
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.overlap import contained, jaccard
from neurotally.analysis.render.numbers import number_text
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
from neurotally.profiler.errors import InputError

if TYPE_CHECKING:
    from neurotally.analysis.languages.counts import CorpusCounts

SWEEP_SCHEMA = 1
QUANTILES = (0.9, 0.925, 0.95, 0.975, 0.99)
PER_CORPUS = (100, 200, 400, 800, 1600)
TOP_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)
FIGURES = {"profiles": "Draw the neurons by layer at every setting."}


@dataclass(frozen=True, eq=False)
class Setting:
    """What one setting chooses."""

    rule: Rule
    bar: float
    num_candidates: Mapping[str, int]
    specific: Mapping[str, np.ndarray]
    """int64 [n, 2] of (layer, neuron)."""
    profiles: Profiles


@dataclass(frozen=True, eq=False)
class Sweep:
    """All settings: balanced first, then top; in each by quantile, then by limit."""

    default: Setting
    quantiles: tuple[float, ...]
    per_corpus: tuple[int, ...]
    top_rates: tuple[float, ...]
    settings: tuple[Setting, ...]
    num_layers: int
    num_neurons: int

    def neighbours(self) -> list[tuple[int, int, str]]:
        """Positions of settings one step apart in one number, and the number's name."""
        position = {setting.rule: index for index, setting in enumerate(self.settings)}
        found = []
        for index, rule in enumerate(position):
            limits: Sequence[float] = self.per_corpus if rule.select == "balanced" else self.top_rates
            steps: list[tuple[str, Sequence[float]]] = [("quantile", self.quantiles), (rule.limit_name, limits)]
            for name, values in steps:
                step = values.index(getattr(rule, name)) + 1
                if step < len(values):
                    change: dict[str, Any] = {name: values[step]}
                    found.append((index, position[replace(rule, **change)], name))
        return found


def study(
    store: Path,
    corpus: OnlyCorpora = (),
    quantile: Annotated[
        tuple[float, ...], Option("Default: 0.9 0.925 0.95 0.975 0.99; as often as you like.", "Q", share=True)
    ] = (),
    per_corpus: Annotated[tuple[int, ...], Option("Default: 100 200 400 800 1600", "N", min=1)] = (),
    top_rate: Annotated[tuple[float, ...], Option("Default: 0.0025 ... 0.04", "R", share=True)] = (),
    base: Annotated[Rule, Group("base")] = DEFAULT,
) -> Result:
    """LAPE at every setting of a grid: set sizes, overlaps, profiles by layer.

    Give --quantile, --per-corpus and --top-rate as often as you like. Each setting is compared with a base: lape's
    default, or what --base-select, --base-per-corpus, --base-top-rate and --base-quantile say.

    Example:
      neurotally sweep llama.store --quantile 0.95 --per-corpus 200 --per-corpus 400

    >>> result = store.sweep(quantile=(0.6, 0.7), per_corpus=(5, 10), top_rate=(0.1,), base_per_corpus=10)
    >>> len(result.frame("balanced")), len(result.frame("top"))
    (4, 2)
    """
    from neurotally.analysis.languages.counts import read_counts

    counts = read_counts(store, corpus)
    return sweep_result(counts, sweep(counts, quantile or QUANTILES, per_corpus or PER_CORPUS, top_rate or None, base))


def sweep(
    counts: "CorpusCounts",
    quantiles: Sequence[float] = QUANTILES,
    per_corpus: Sequence[int] = PER_CORPUS,
    top_rates: Sequence[float] | None = None,
    default: Rule | None = None,
) -> Sweep:
    """Choose neurons by every setting; the settings of each list are sorted, each once.

    Without `top_rates` those of TOP_RATES are taken that are one neuron or more. `default`: the setting that others are
    compared with; without it `lape`'s default. InputError as of `lape`.
    """
    if top_rates is None:
        num_neurons = counts.active_CLF[0].size
        top_rates = [rate for rate in TOP_RATES if round(rate * num_neurons) >= 1]
    if not quantiles or not (per_corpus or top_rates):
        raise InputError("a sweep needs at least one quantile, and one number per corpus or one top rate")
    default = default or Rule()
    quantiles, per_corpus, top_rates = sorted(set(quantiles)), sorted(set(per_corpus)), sorted(set(top_rates))
    rules = [Rule(quantile, "balanced", per_corpus=number) for quantile in quantiles for number in per_corpus]
    rules += [Rule(quantile, "top", top_rate=rate) for quantile in quantiles for rate in top_rates]
    settings = [_setting(rule, rule.choose(counts)) for rule in rules]
    return Sweep(
        default=_setting(default, default.choose(counts)),
        quantiles=tuple(quantiles),
        per_corpus=tuple(per_corpus),
        top_rates=tuple(top_rates),
        settings=tuple(settings),
        num_layers=counts.active_CLF.shape[1],
        num_neurons=counts.active_CLF.shape[2],
    )


def sweep_result(counts: "CorpusCounts", found: Sweep) -> Result:
    """One row a setting, balanced and top apart; heat maps of sizes and overlaps, profiles as curves."""
    document = finite(_document(counts, found))
    kinds = [
        (select, limit, title, document[f"{limit}s" if limit == "top_rate" else limit])
        for select, limit, title in (
            ("balanced", "per_corpus", "Balanced: the same number for every corpus"),
            ("top", "top_rate", "Top: a share of all neurons"),
        )
    ]
    kinds = [kind for kind in kinds if kind[-1]]
    base = found.default.rule
    charts = [
        Chart("sweep", f"What hangs on LAPE's settings? The base: {base}",
              [grid for kind in kinds for grid in _grids(document, kind[0], kind[1], kind[3])], num_columns=2),
        Chart("profiles", "Where the specific neurons of all corpora sit, by setting",
              [panel for kind in kinds for panel in _panels(document, kind[0], kind[1], kind[3])],
              "layer, from the input to the output", "share of the specific neurons", y="share", num_columns=2),
    ]  # fmt: skip
    notes = [
        "distinct: neurons chosen; shared: by two corpora or more; specific, exclusive: fewest to most of a corpus",
        f"with base, Jaccard: overlap with the base ({base}), share of the smaller set that the larger one holds, and "
        "Jaccard index, means over corpora",
        *_few_notes(document["default_too_few_candidates"]),
        *(f"left out: {name} ({reason})" for name, reason in counts.left_out.items()),
    ]
    tables = [_table(select, title, document) for select, _, title, _ in kinds]
    lead = f"Sweep of LAPE of {model_name(counts.model)}, {len(counts.corpora)} corpora"
    return Result("sweep", document, lead, tables, charts, notes, title="LAPE's settings")


def _document(counts: "CorpusCounts", found: Sweep) -> dict[str, Any]:
    """The document of `sweep --json`."""
    return {
        "schema": SWEEP_SCHEMA,
        "model": model_key(counts.model),
        "corpora": list(counts.corpora),
        "layers": found.num_layers,
        "neurons": found.num_neurons,
        "quantiles": list(found.quantiles),
        "per_corpus": list(found.per_corpus),
        "top_rates": list(found.top_rates),
        "default": found.default.rule.as_json(),
        "default_too_few_candidates": _too_few(found.default),
        "settings": [_setting_json(setting, found.default) for setting in found.settings],
        "neighbours": [
            {
                "settings": [one, other],
                "changed": changed,
                "overlap": _overlap(found.settings[one], found.settings[other]),
            }
            for one, other, changed in found.neighbours()
        ],
        "left_out": dict(counts.left_out),
    }


def _mean_overlap(setting: Mapping[str, Any], measure: str) -> float | None:
    """With the base: the mean over corpora of `jaccard` or `contained`, those without neurons left out."""
    values = [of_corpus[measure] for of_corpus in setting["with_default"].values() if of_corpus[measure] is not None]
    return float(np.mean(values)) if values else None


def _setting(rule: Rule, selection: Selection) -> Setting:
    by_layer = profiles(selection.specific, len(selection.entropy_LF))
    return Setting(rule, selection.bar, selection.num_candidates, selection.specific, by_layer)


def _setting_json(setting: Setting, default: Setting) -> dict[str, Any]:
    found = setting.profiles
    count_M = found.shared_by_ML.sum(axis=1)
    by_layer = sets_by_layer(found)
    return {
        **setting.rule.as_json(),
        "bar": setting.bar,
        "distinct": int(count_M.sum()),
        "shared": int(count_M[1:].sum()),
        "candidates": dict(setting.num_candidates),
        "sizes": {key: {name: sum(of) for name, of in by_name.items()} for key, by_name in by_layer.items()},
        "with_default": _overlap(setting, default),
        "by_layer": by_layer,
    }


def _too_few(setting: Setting) -> dict[str, int]:
    """The corpora with fewer candidates than a balanced setting takes, and how many they have."""
    if setting.rule.select != "balanced":
        return {}
    return {name: number for name, number in setting.num_candidates.items() if 0 < number < setting.rule.per_corpus}


def _few_notes(few: Mapping[str, int]) -> list[str]:
    if not few:
        return []
    corpora = ", ".join(f"{name} {number:,}" for name, number in few.items())
    return [f"the base takes all candidates where there are fewer: {corpora}; --base-per-corpus compares with another"]


def _overlap(one: Setting, other: Setting) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            "jaccard": jaccard(neurons_n2, other.specific[name]),
            "contained": contained(neurons_n2, other.specific[name]),
        }
        for name, neurons_n2 in one.specific.items()
    }


def _table(select: str, title: str, document: Mapping[str, Any]) -> Table:
    columns = [Column("quantile", "number"), Column("threshold", "number"), Column("limit"),
               Column("distinct", "count"), Column("shared", "count"), Column("specific"), Column("exclusive"),
               Column("with base", "share"), Column("Jaccard", "number", 2)]  # fmt: skip
    rows: list[list[Cell]] = [
        [of_setting["quantile"], of_setting["bar"], _limit_text(of_setting), of_setting["distinct"],
         of_setting["shared"], *(_range(of_setting["sizes"][kind].values()) for kind in ("specific", "exclusive")),
         _mean_overlap(of_setting, "contained"), _mean_overlap(of_setting, "jaccard")]
        for of_setting in document["settings"]
        if of_setting["select"] == select
    ]  # fmt: skip
    return Table(select, title, columns, rows)


def _range(counts: Iterable[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"


def _limit_text(setting: Mapping[str, Any]) -> str:
    return f"{setting['per_corpus']:,}" if "per_corpus" in setting else f"{100 * setting['top_rate']:g} %"


def _grids(document: Mapping[str, Any], select: str, limit: str, limits: Sequence[float]) -> list[Grid]:
    """Quantiles down and limits across: sizes, then the overlap with the base; the base is framed."""
    rows = _by_quantile(document, select)
    base = document["default"]
    is_inside = base["select"] == select and base["quantile"] in document["quantiles"] and base[limit] in limits
    framed = [(document["quantiles"].index(base["quantile"]), limits.index(base[limit]))] if is_inside else []
    names = [_limit_text(setting) for setting in rows[0]]
    across = "neurons per corpus" if select == "balanced" else "share of all neurons"
    quantiles = [f"{quantile:g}" for quantile in document["quantiles"]]
    shared = [[of["shared"] / of["distinct"] if of["distinct"] else None for of in row] for row in rows]
    sizes = [[f"{of['distinct']:,}\n{number_text(share, 'share')}" for of, share in zip(row, shares, strict=True)]
             for row, shares in zip(rows, shared, strict=True)]  # fmt: skip
    contained = [[_mean_overlap(of, "contained") for of in row] for row in rows]
    overlaps = [
        [f"{number_text(share, 'share')}\n{number_text(_mean_overlap(of, 'jaccard'), 'number', 2)}"
         for of, share in zip(row, shares, strict=True)]
        for row, shares in zip(rows, contained, strict=True)
    ]  # fmt: skip
    what = (f"{select}: distinct neurons, % of them shared", shared, sizes), (
        "overlap with the base: contained, Jaccard", contained, overlaps)  # fmt: skip
    return [
        Grid(name, quantiles, names, values, texts, "quantile", across, high=1.15, framed=framed)
        for name, values, texts in what
    ]


def _panels(document: Mapping[str, Any], select: str, limit: str, limits: Sequence[float]) -> list[Panel]:
    """Curves over the layers, darker as the varied number grows; the other is the base's or the middle one."""
    quantiles, base, rows = document["quantiles"], document["default"], _by_quantile(document, select)
    row = quantiles.index(base["quantile"]) if base["quantile"] in quantiles else len(quantiles) // 2
    column = limits.index(base[limit]) if base.get(limit) in limits else len(limits) // 2
    along_limit = [(setting, f"{_limit_text(setting)}") for setting in rows[row]]
    along_quantile = [(of_row[column], f"quantile {of_row[column]['quantile']:g}") for of_row in rows]
    fixed = [f"{select} at {quantiles[row]:g}", f"{select}, {_limit_text(rows[row][column])}"]
    panels = []
    for name, settings in zip(fixed, (along_limit, along_quantile), strict=True):
        series = []
        for number, (setting, label) in enumerate(settings):
            count_L = np.sum(list(setting["by_layer"]["specific"].values()), axis=0)
            share_L = count_L / max(1, count_L.sum())
            series.append(Series(label, share_L.tolist(), tone=(number + 1) / len(settings)))
        panels.append(Panel(name, series))
    return panels


def _by_quantile(document: Mapping[str, Any], select: str) -> list[list[Mapping[str, Any]]]:
    """The settings of one kind: a row a quantile."""
    settings = [of_setting for of_setting in document["settings"] if of_setting["select"] == select]
    return [[of for of in settings if of["quantile"] == quantile] for quantile in document["quantiles"]]
