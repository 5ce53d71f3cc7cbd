"""What `neurotally stability` says: one JSON document, and the same as a table to read.

    {"schema": 1, "model": {"id", "fingerprint"} | null, "corpora": [name, ...], "select", "quantile",
     "per_corpus" | "top_rate", "seed", "groups": {name: n}, "half_groups": {name: n}, "empty_groups": {name: n},
     "half_samples": n, "specific": {name: [[layer, neuron], ...]}, "times_selected": {name: [n, ...]},
     "core": {name: [[layer, neuron], ...]},
     "selected_again": {name: {"mean", "least", "most"}}, "halves_agree": {name: {"mean", "least", "most"}},
     "by_chance": {name: share},
     "curve": {"orders": n, "groups": {name: [...]}, "tokens": {name: [...]}, "documents": {name: [...] | null},
               "recovered": {name: {"mean": [...], "least": [...], "most": [...]}}, "jaccard": {name: [...]},
               "agreement": {name: [..., null beyond half the groups]}},
     "enough": {name: {"share", "groups", "tokens", "documents"} | null}, "left_out": {name: reason}}

`times_selected` runs beside `specific`. Shares are null for a corpus without specific neurons. `enough`: the fewest
groups from which on the mean share recovered stays at or above `share`; null where only the whole reaches it.
"""

from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number, numbers
from neurotally.analysis.languages.counts import GroupCounts
from neurotally.analysis.languages.stability import Stability
from neurotally.analysis.result import model_key, model_name
from neurotally.analysis.text_table import percent, text_table

STABILITY_SCHEMA = 1
ENOUGH = 0.9
"""The share of the whole's neurons that counts as enough."""

_HEADER = ("corpus", "groups", "specific", "again", "least", "core", "halves agree", "by chance", "90 % from")


def stability_document(groups: GroupCounts, found: Stability) -> dict[str, Any]:
    """The document of `stability --json`: plain lists, numbers and strings, no NaN."""
    names = found.selection.corpora
    specific = found.selection.specific
    return {
        "schema": STABILITY_SCHEMA,
        "model": model_key(groups.model),
        "corpora": list(names),
        **found.rule.as_json(),
        "seed": found.seed,
        "groups": dict(found.num_groups),
        "half_groups": dict(found.half_groups),
        "empty_groups": dict(groups.num_empty),
        "half_samples": len(found.again_SC),
        "specific": {name: specific[name].tolist() for name in names},
        "times_selected": {name: found.times_selected[name].tolist() for name in names},
        "core": {name: found.core[name].tolist() for name in names},
        "selected_again": {name: _spread(found.again_SC[:, c]) for c, name in enumerate(names)},
        "halves_agree": {name: _spread(found.halves_agree_PC[:, c]) for c, name in enumerate(names)},
        "by_chance": {name: number(found.by_chance_C[c]) for c, name in enumerate(names)},
        "curve": _curve(found),
        "enough": {name: enough(found, c) for c, name in enumerate(names)},
        "left_out": dict(groups.left_out),
    }


def enough(found: Stability, c: int, share: float = ENOUGH) -> dict[str, Any] | None:
    """The fewest groups of corpus `c` from which on the mean share recovered stays at least `share`."""
    mean_K = found.curve.recovered_OKC[:, :, c].mean(axis=0)
    short_K = np.flatnonzero(~(mean_K >= share))
    first = int(short_K[-1]) + 1 if len(short_K) else 0
    if first >= len(mean_K) - 1:  # all groups are the whole, whatever it is worth
        return None
    documents = number(found.curve.documents_KC[first, c])
    return {
        "share": share,
        "groups": int(found.curve.groups_KC[first, c]),
        "tokens": round(found.curve.tokens_KC[first, c]),
        "documents": None if documents is None else round(documents),
    }


def stability_table(groups: GroupCounts, found: Stability) -> str:
    """One row a corpus, then the curve: the share of the whole's neurons that fewer groups recover."""
    names = found.selection.corpora
    samples = len(found.again_SC)
    lines = [
        f"Stability of LAPE of {model_name(groups.model)}: {found.rule}",
        "",
        text_table(_HEADER, [_row(found, c) for c in range(len(names))]),
        "",
        f"again: share of the specific neurons chosen again from half the groups, mean of {samples} half-samples",
        f"core: chosen by all {samples}; halves agree: two halves without common text; by chance: random candidates",
        f"90 % from: text from which on at least {100 * ENOUGH:g} % of the whole's neurons are found",
        "",
        "share of the whole's neurons found from fewer groups (in brackets: agreement of two samples without common "
        "text)",
        text_table(("groups", *map(str, range(1, len(found.curve.tokens_KC)))), _curve_rows(found)),
        "",
        *_notes(groups, found),
    ]
    return "\n".join(lines).rstrip()


def _curve(found: Stability) -> dict[str, Any]:
    curve, names = found.curve, found.selection.corpora
    documents = {name: numbers(curve.documents_KC[:, c]) for c, name in enumerate(names)}
    return {
        "orders": len(curve.recovered_OKC),
        "groups": dict(zip(names, curve.groups_KC.T.tolist(), strict=True)),
        "tokens": {name: numbers(curve.tokens_KC[:, c]) for c, name in enumerate(names)},
        "documents": {name: None if None in of else of for name, of in documents.items()},
        "recovered": {
            name: {
                "mean": numbers(curve.recovered_OKC[:, :, c].mean(axis=0)),
                "least": numbers(curve.recovered_OKC[:, :, c].min(axis=0)),
                "most": numbers(curve.recovered_OKC[:, :, c].max(axis=0)),
            }
            for c, name in enumerate(names)
        },
        "jaccard": {name: numbers(curve.jaccard_OKC[:, :, c].mean(axis=0)) for c, name in enumerate(names)},
        "agreement": {name: numbers(curve.agreement_PKC[:, :, c].mean(axis=0)) for c, name in enumerate(names)},
    }


def _row(found: Stability, c: int) -> list[str]:
    name = found.selection.corpora[c]
    size = len(found.selection.specific[name])
    from_which = enough(found, c)
    return [
        name,
        str(found.num_groups[name]),
        f"{size:,}",
        percent(found.again_SC[:, c].mean()),
        percent(found.again_SC[:, c].min()),
        f"{len(found.core[name]):,}" if size else "-",
        percent(found.halves_agree_PC[:, c].mean()),
        percent(found.by_chance_C[c]),
        _amount(from_which) if from_which else ("more than this" if size else "-"),
    ]


def _amount(from_which: dict[str, Any]) -> str:
    files = "" if from_which["documents"] is None else f", {from_which['documents']:,} files"
    return f"{from_which['tokens']:,} tokens{files}"


def _curve_rows(found: Stability) -> list[list[str]]:
    mean_KC, agree_KC = found.curve.recovered_OKC.mean(axis=0), found.curve.agreement_PKC.mean(axis=0)
    rows = []
    for c, name in enumerate(found.selection.corpora):
        cells = [
            percent(share) + (f" ({percent(agree)})" if np.isfinite(agree) else "")
            for share, agree in zip(mean_KC[:-1, c], agree_KC[:-1, c], strict=True)
        ]
        rows.append([name, *cells])
    return rows


def _notes(groups: GroupCounts, found: Stability) -> list[str]:
    notes = [f"{name}: {number} empty groups left out" for name, number in groups.num_empty.items() if number]
    notes += [f"{name}: no neuron passes the bar" for name in found.selection.without_candidates]
    return notes + [f"left out: {name} ({reason})" for name, reason in groups.left_out.items()]


def _spread(share_S: np.ndarray) -> dict[str, float | None]:
    return {"mean": number(share_S.mean()), "least": number(share_S.min()), "most": number(share_S.max())}
