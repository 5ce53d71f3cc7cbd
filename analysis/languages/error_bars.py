"""LAPE's error bars, shown: how well the specific neurons' entropies and rates are known, from `jackknife`.

In LAPE's document `error_bars` is

    {"level", "groups": {name: n}, "empty_groups": {name: n}, "entropy_t", "probability_t": {name: t},
     "specific": {name: {"entropy": [...], "entropy_standard_error", "entropy_low", "entropy_high",
                         "entropy_flags": [[flag, ...], ...],
                         "probability", "probability_standard_error", "probability_low", "probability_high",
                         "probability_flags": [[...], ...]}},
     "above_bar": {name: n}, "flagged": {flag: n}, "active_neurons": n}

The lists run beside `specific`: entry i belongs to its i-th neuron, the probability to the corpus itself.
`above_bar` counts the specific neurons whose interval of p lies above the threshold (`bar`) whole; `flagged` counts all
neurons of the model, of which `active_neurons` have an entropy. Everything else is in `jackknife.save_error_bars`'s
archive.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from neurotally.analysis.languages.jackknife import ErrorBars
from neurotally.analysis.languages.lape import NO_NEURON, Selection
from neurotally.analysis.parts import Cell, Chart, Column, Panel, Series, Table, Value
from neurotally.analysis.result import by_name


def error_bars_document(bars: ErrorBars, selection: Selection) -> dict[str, Any]:
    """The value of `error_bars` in LAPE's document."""
    arrays, flags = bars.arrays(), bars.entropy_flags()
    specific: dict[str, dict[str, list[Any]]] = {}
    for c, name in enumerate(bars.corpora):
        neurons_n2 = selection.specific[name]
        at = tuple(neurons_n2.T)
        of = specific[name] = {}
        for what in ("", "_standard_error", "_low", "_high"):
            of[f"entropy{what}"] = arrays[f"entropy{what}"][at].tolist()
            of[f"probability{what}"] = arrays[f"p{what}"][c][at].tolist()
        of["entropy_flags"] = [[flag for flag, is_LF in flags.items() if is_LF[pair]] for pair in zip(*at, strict=True)]
        of["probability_flags"] = [["few hits"] if is_few else [] for is_few in arrays["p_few_hits"][c][at]]
    return {
        "level": bars.level,
        "groups": dict(bars.num_groups),
        "empty_groups": dict(bars.num_empty),
        "entropy_t": bars.entropy_t,
        "probability_t": by_name(bars.corpora, bars.p_t_C()),
        "specific": specific,
        "above_bar": {
            name: sum(low > selection.threshold for low in of["probability_low"]) for name, of in specific.items()
        },
        "flagged": {flag: int(is_LF.sum()) for flag, is_LF in flags.items()},
        "active_neurons": int(np.isfinite(bars.entropy_LF).sum()),
    }


def bars_table(document: Mapping[str, Any]) -> Table:
    """One row a corpus: how well its specific neurons' entropies and probabilities are known, as medians."""
    bars = document["error_bars"]
    columns = [Column("corpus"), Column("groups", "count"), Column("specific", "count"), Column("entropy", "number", 4),
               Column("flagged", "count"), Column("p", "number", 4), Column("p flagged", "count"),
               Column("above threshold", "count")]  # fmt: skip
    rows: list[list[Cell]] = []
    for name, of in bars["specific"].items():
        if not of["entropy"]:
            rows.append([name, bars["groups"][name], 0, None, None, None, None, None])
            continue
        entropy, entropy_error, p, p_error = (
            float(np.median(of[key]))
            for key in ("entropy", "entropy_standard_error", "probability", "probability_standard_error")
        )
        rows.append([
            name, bars["groups"][name], len(of["entropy"]), Value(entropy, bars["entropy_t"] * entropy_error),
            sum(map(bool, of["entropy_flags"])), Value(p, bars["probability_t"][name] * p_error),
            sum(map(bool, of["probability_flags"])), bars["above_bar"][name],
        ])  # fmt: skip
    return Table("error bars", "How well their entropies and activation rates p are known: medians ± half of the "
                 f"{100 * bars['level']:g} % interval", columns, rows)  # fmt: skip


def bars_notes(bars: Mapping[str, Any]) -> list[str]:
    """How the intervals were made, and which can't be trusted."""
    flagged = ", ".join(f"{number:,} {flag}" for flag, number in bars["flagged"].items())
    return [
        f"{100 * bars['level']:g} % intervals by a jackknife over each corpus's groups; flagged: intervals that can't "
        "be trusted; above threshold: neurons whose whole interval of p is",
        f"flagged entropies of {bars['active_neurons']:,} neurons that are ever active: {flagged}",
        *empty_groups_notes(bars["empty_groups"]),
    ]


def empty_groups_notes(num_empty: Mapping[str, int]) -> list[str]:
    """Of any result from groups: those without a token."""
    return [f"{name}: {number} empty groups left out" for name, number in num_empty.items() if number]


def bars_chart(document: Mapping[str, Any]) -> Chart:
    """One panel a corpus: for each specific neuron half its entropy's interval against the entropy.

    Below the grey line an interval ends before the set's highest entropy: these neurons are clear of the cut.
    """
    bars = document["error_bars"]
    panels = [_bars_panel(name, of) if of["entropy"] else Panel(name, (), empty=NO_NEURON)
              for name, of in bars["specific"].items()]  # fmt: skip
    return Chart(
        "error-bars", "How well the specific neurons' entropies are known", panels,
        f"± half of the {100 * bars['level']:g} % interval (nats)",
        f"entropy over corpora (nats; at most {math.log(len(panels)):.2f})", x="number", y="log",
    )  # fmt: skip


def _bars_panel(name: str, of_corpus: Mapping[str, Any]) -> Panel:
    entropy_n, error_n, low_n, high_n = (
        np.array(of_corpus[key]) for key in ("entropy", "entropy_standard_error", "entropy_low", "entropy_high")
    )
    half_n = np.maximum(high_n - entropy_n, entropy_n - low_n)  # one side may be cut short at an end
    is_flagged_n = np.array([bool(flags) for flags in of_corpus["entropy_flags"]])
    cut = entropy_n.max()
    is_shown_n = error_n > 0  # a logarithmic axis has no 0
    entropy_x = np.linspace(entropy_n.min(), cut, 300)[:-1]
    sound_n, doubtful_n = is_shown_n & ~is_flagged_n, is_shown_n & is_flagged_n
    series = [
        Series("specific neuron", half_n[sound_n].tolist(), entropy_n[sound_n].tolist(), "points", corpus=name),
        Series("flagged: don't trust its interval", half_n[doubtful_n].tolist(), entropy_n[doubtful_n].tolist(),
               "crosses", tone="contrast"),
        Series("below it: clear of the set's highest entropy", (cut - entropy_x).tolist(), entropy_x.tolist(),
               tone="grey"),
    ]  # fmt: skip
    num_clear = int((entropy_n + half_n < cut).sum())
    return Panel(name, series, f"{num_clear:,} of {len(half_n):,} clear, {is_flagged_n.sum():,} flagged")
