"""What `neurotally lape --error-bars` adds: the error bars of the specific neurons, as JSON and as a table.

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

from typing import Any

import numpy as np

from neurotally.analysis.languages.jackknife import ErrorBars
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.text_table import text_table

_HEADER = ("corpus", "groups", "specific", "entropy", "± half", "flagged", "p", "± half", "flagged", "above the bar")


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


def error_bars_table(bars: ErrorBars, selection: Selection) -> str:
    """One row a corpus: how well its specific neurons' entropies and probabilities are known, as medians."""
    rows = [_row(bars, c, selection) for c in range(len(bars.corpora))]
    flagged = ", ".join(f"{int(is_LF.sum()):,} {flag}" for flag, is_LF in bars.entropy_flags().items())
    notes = [
        f"{100 * bars.level:g} % intervals by a jackknife over groups; medians over each corpus's specific neurons",
        "above the bar: neurons whose whole interval of p is; flagged: intervals that can't be trusted",
        f"flagged entropies of {int(np.isfinite(bars.entropy_LF).sum()):,} neurons that are ever active: {flagged}",
    ]
    notes += [f"{name}: {number} empty groups left out" for name, number in bars.num_empty.items() if number]
    return "\n".join([text_table(_HEADER, rows), "", *notes])


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


def _row(bars: ErrorBars, c: int, selection: Selection) -> list[str]:
    name = bars.corpora[c]
    layer_n, neuron_n = selection.specific[name].T
    if not len(layer_n):
        return [name, str(bars.num_groups[name]), "0", *["-"] * 7]
    at = (layer_n, neuron_n)
    is_flagged_LF = np.any(list(bars.entropy_flags().values()), axis=0)
    return [
        name,
        str(bars.num_groups[name]),
        f"{len(layer_n):,}",
        f"{np.median(bars.entropy_LF[at]):.4f}",
        f"{bars.entropy_t * np.median(bars.entropy_error_LF[at]):.4f}",
        f"{int(is_flagged_LF[at].sum()):,}",
        f"{np.median(bars.p_CLF[c][at]):.4f}",
        f"{bars.p_t_C()[c] * np.median(bars.p_error_CLF[c][at]):.4f}",
        f"{int(bars.has_few_hits_CLF[c][at].sum()):,}",
        f"{_num_above_bar(bars, c, selection):,}",
    ]
