"""LAPE over a grid of settings: how much hangs on the quantile, on neurons per corpus and on the top rate.

Every quantile is combined with every number per corpus (balanced) and with every top rate (top). Each setting has
its set sizes, its profile by layer, and its overlap with the default setting; settings next to each other in the
grid, one step apart in one number, have theirs. `sweep_document` is what `neurotally sweep` says:

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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number
from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.profiles import Profiles, profiles, sets_by_layer
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.overlap import contained, jaccard
from neurotally.analysis.result import model_key, model_name
from neurotally.analysis.text_table import decimals, percent, text_table
from neurotally.profiler.errors import InputError

SWEEP_SCHEMA = 1
QUANTILES = (0.9, 0.925, 0.95, 0.975, 0.99)
PER_CORPUS = (100, 200, 400, 800, 1600)
TOP_RATES = (0.0025, 0.005, 0.01, 0.02, 0.04)

_HEADER = ("quantile", "bar", "limit", "distinct", "shared", "specific", "exclusive", "with base", "Jaccard")


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


def sweep(
    counts: CorpusCounts,
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


def sweep_document(counts: CorpusCounts, found: Sweep) -> dict[str, Any]:
    """The document of `sweep --json`: plain lists, numbers and strings, no NaN."""
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


def sweep_table(counts: CorpusCounts, found: Sweep) -> str:
    """One row a setting, balanced and top apart."""
    lines = [f"Sweep of LAPE of {model_name(counts.model)}, {len(counts.corpora)} corpora", ""]
    for select, title in (("balanced", "the same number for every corpus"), ("top", "a share of all neurons")):
        rows = [_row(setting, found.default) for setting in found.settings if setting.rule.select == select]
        if rows:
            lines += [f"{select}: {title}", text_table(_HEADER, rows), ""]
    lines += [
        "distinct: neurons chosen; shared: by two corpora or more; specific, exclusive: fewest to most of a corpus",
        f"with base ({found.default.rule}):",
        "  share of the smaller set that the larger one holds, and Jaccard index, means over corpora",
        *_few_notes(found),
        *(f"left out: {name} ({reason})" for name, reason in counts.left_out.items()),
    ]
    return "\n".join(lines)


def mean_overlap(one: Setting, other: Setting, measure: str) -> float:
    """Mean over corpora of `jaccard` or `contained`, those without neurons left out; NaN if all are."""
    values = [value for of in _overlap(one, other).values() if (value := of[measure]) is not None]
    return float(np.mean(values)) if values else np.nan


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


def _few_notes(found: Sweep) -> list[str]:
    if not (few := _too_few(found.default)):
        return []
    corpora = ", ".join(f"{name} {number:,}" for name, number in few.items())
    return [f"the base takes all candidates where there are fewer: {corpora}; --base-per-corpus compares with another"]


def _overlap(one: Setting, other: Setting) -> dict[str, dict[str, float | None]]:
    return {
        name: {
            "jaccard": number(jaccard(neurons_n2, other.specific[name])),
            "contained": number(contained(neurons_n2, other.specific[name])),
        }
        for name, neurons_n2 in one.specific.items()
    }


def _row(setting: Setting, default: Setting) -> list[str]:
    rule, found = setting.rule, setting.profiles
    count_M = found.shared_by_ML.sum(axis=1)
    return [
        f"{rule.quantile:g}",
        f"{setting.bar:.4g}",
        f"{rule.limit:,}" if rule.select == "balanced" else f"{100 * rule.limit:g} %",
        f"{count_M.sum():,}",
        f"{count_M[1:].sum():,}",
        _range(found.specific_CL.sum(axis=1)),
        _range(found.exclusive_CL.sum(axis=1)),
        percent(mean_overlap(setting, default, "contained")),
        decimals(mean_overlap(setting, default, "jaccard"), 2),
    ]


def _range(count_C: np.ndarray) -> str:
    least, most = count_C.min(), count_C.max()
    return f"{least:,}" if least == most else f"{least:,}-{most:,}"
