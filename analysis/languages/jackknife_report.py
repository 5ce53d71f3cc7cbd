"""What `lape --error-bars` adds: the error bars of the specific neurons.

    {"level", "groups": {name: n}, "empty_groups": {name: n}, "entropy_t", "probability_t": {name: t},
     "specific": {name: {"entropy": [...], "entropy_standard_error", "entropy_low", "entropy_high",
                         "entropy_flags": [[flag, ...], ...],
                         "probability", "probability_standard_error", "probability_low", "probability_high",
                         "probability_flags": [[...], ...]}},
     "above_bar": {name: n}, "flagged": {flag: n}, "active_neurons": n}

The lists run beside LAPE's `specific`: entry i belongs to its i-th neuron, the probability to the corpus itself.
`above_bar` counts the specific neurons whose interval of p lies above the bar whole; `flagged` counts all neurons
of the model, of which `active_neurons` have an entropy. Everything else is in `jackknife.save_error_bars`'s archive.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from neurotally.analysis.languages.jackknife import ErrorBars
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.result import Cell, Chart, Column, Panel, Series, Table, Value


def error_bars_document(bars: ErrorBars, selection: Selection) -> dict[str, Any]:
    """The value of `error_bars` in LAPE's document."""
    return {
        "level": bars.level,
        "groups": dict(bars.num_groups),
        "empty_groups": dict(bars.num_empty),
        "entropy_t": bars.entropy_t,
        "probability_t": dict(zip(bars.corpora, bars.p_t_C().tolist(), strict=True)),
        "specific": {name: _of_neurons(bars, c, selection.specific[name]) for c, name in enumerate(bars.corpora)},
        "above_bar": {name: _num_above_bar(bars, c, selection) for c, name in enumerate(bars.corpora)},
        "flagged": {flag: int(is_LF.sum()) for flag, is_LF in bars.entropy_flags().items()},
        "active_neurons": int(np.isfinite(bars.entropy_LF).sum()),
    }


def bars_table(document: Mapping[str, Any]) -> Table:
    """One row a corpus: how well its specific neurons' entropies and probabilities are known, as medians."""
    bars = document["error_bars"]
    columns = [Column("corpus"), Column("groups", "count"), Column("specific", "count"), Column("entropy", "number", 4),
               Column("flagged", "count"), Column("p", "number", 4), Column("p flagged", "count"),
               Column("above threshold", "count")]  # fmt: skip
    rows = [_row(bars, name) for name in document["corpora"]]
    return Table("error bars", "How well their entropies and activation rates p are known: medians ± half of the "
                 f"{100 * bars['level']:g} % interval", columns, rows)  # fmt: skip


def bars_notes(bars: Mapping[str, Any]) -> list[str]:
    """How the intervals were made, and which can't be trusted."""
    flagged = ", ".join(f"{number:,} {flag}" for flag, number in bars["flagged"].items())
    notes = [
        f"{100 * bars['level']:g} % intervals by a jackknife over each corpus's groups; flagged: intervals that can't "
        "be trusted; above threshold: neurons whose whole interval of p is",
        f"flagged entropies of {bars['active_neurons']:,} neurons that are ever active: {flagged}",
    ]
    return notes + [
        f"{name}: {number} empty groups left out" for name, number in bars["empty_groups"].items() if number
    ]


def bars_chart(document: Mapping[str, Any]) -> Chart:
    """One panel a corpus: for each specific neuron half its entropy's interval against the entropy.

    Below the grey line an interval ends before the set's highest entropy: these neurons are clear of the cut.
    """
    bars = document["error_bars"]
    panels = [_panel(name, bars["specific"][name]) for name in document["corpora"]]
    return Chart(
        "error-bars", "How well the specific neurons' entropies are known", panels,
        f"entropy over corpora (nats; at most {math.log(len(panels)):.2f})",
        f"± half of the {100 * bars['level']:g} % interval (nats)", x="number", y="log",
    )  # fmt: skip


def _panel(name: str, of_corpus: Mapping[str, Any]) -> Panel:
    if not of_corpus["entropy"]:
        return Panel(name, (), empty="no neuron\nabove the threshold")
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


def _of_neurons(bars: ErrorBars, c: int, neurons_n2: np.ndarray) -> dict[str, Any]:
    """The lists of one corpus; each neuron's flags by name."""
    layer_n, neuron_n = neurons_n2.T
    low_LF, high_LF = bars.entropy_interval()
    flags_n: list[list[str]] = [[] for _ in layer_n]
    for flag, is_LF in bars.entropy_flags().items():
        for index in np.flatnonzero(is_LF[layer_n, neuron_n]):
            flags_n[index].append(flag)
    p_n, p_error_n = bars.p_CLF[c, layer_n, neuron_n], bars.p_error_CLF[c, layer_n, neuron_n]
    half_n = bars.p_t_C()[c] * p_error_n
    return {
        "entropy": bars.entropy_LF[layer_n, neuron_n].tolist(),
        "entropy_standard_error": bars.entropy_error_LF[layer_n, neuron_n].tolist(),
        "entropy_low": low_LF[layer_n, neuron_n].tolist(),
        "entropy_high": high_LF[layer_n, neuron_n].tolist(),
        "entropy_flags": flags_n,
        "probability": p_n.tolist(),
        "probability_standard_error": p_error_n.tolist(),
        "probability_low": np.maximum(p_n - half_n, 0).tolist(),
        "probability_high": np.minimum(p_n + half_n, 1).tolist(),
        "probability_flags": [["few hits"] if is_few else [] for is_few in bars.has_few_hits_CLF[c, layer_n, neuron_n]],
    }


def _num_above_bar(bars: ErrorBars, c: int, selection: Selection) -> int:
    layer_n, neuron_n = selection.specific[bars.corpora[c]].T
    low_n = bars.p_CLF[c, layer_n, neuron_n] - bars.p_t_C()[c] * bars.p_error_CLF[c, layer_n, neuron_n]
    return int((low_n > selection.bar).sum())


def _row(bars: Mapping[str, Any], name: str) -> list[Cell]:
    of_corpus = bars["specific"][name]
    groups = bars["groups"][name]
    if not of_corpus["entropy"]:
        return [name, groups, 0, None, None, None, None, None]

    def median(key: str, t: float) -> Value:
        return Value(float(np.median(of_corpus[key])), t * float(np.median(of_corpus[f"{key}_standard_error"])))

    return [
        name, groups, len(of_corpus["entropy"]), median("entropy", bars["entropy_t"]),
        sum(map(bool, of_corpus["entropy_flags"])), median("probability", bars["probability_t"][name]),
        sum(map(bool, of_corpus["probability_flags"])), bars["above_bar"][name],
    ]  # fmt: skip
