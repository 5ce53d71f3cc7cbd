"""What `stability` says: which of LAPE's neurons other text would choose, and how much text is enough.

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

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.languages.counts import GroupCounts, read_group_counts
from neurotally.analysis.languages.error_bars import empty_groups_notes
from neurotally.analysis.languages.lape import DEFAULT, NO_NEURON, Rule
from neurotally.analysis.languages.lape_study import candidates_warnings, set_notes
from neurotally.analysis.languages.stability import Curve, Stability, stability
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.parts import Cell, Chart, Column, Panel, Series, Table
from neurotally.analysis.result import Result, by_name, finite, model_key, model_name

ENOUGH = 0.9
"""The share of the whole's neurons that counts as enough."""


def study(
    store: Path,
    corpus: OnlyCorpora = (),
    rule: Annotated[Rule, Group()] = DEFAULT,
    samples: Annotated[int, Option("Half-samples; an even number.", min=1)] = 20,
    orders: Annotated[int, Option("Orders for the curve; an even number.", min=1)] = 6,
    seed: Annotated[int, Option("Of half-samples and orders.", min=0)] = 0,
) -> Result:
    """Which of LAPE's neurons would other text of the same kind choose, and how much text is enough?

    Example:
      neurotally stability llama.store --figure stability.png

    >>> result = store.stability(quantile=0.6, per_corpus=12, samples=4, orders=2)
    >>> result.frame().set_index("corpus").loc["python", "specific"].item()
    12
    """
    groups = read_group_counts(store, corpus)
    return stability_result(groups, stability(groups, rule, samples, orders, seed))


def stability_result(groups: GroupCounts, found: Stability) -> Result:
    """One row a corpus, and the curve: the share of the whole's neurons that fewer groups find."""
    document = finite(_document(groups, found))
    notes = [
        f"again: share of the specific neurons chosen again from half the groups, mean of {document['half_samples']} "
        "half-samples; least: of any of them; core: chosen by all",
        "split halves: overlap of two halves without common text; random: of random candidates",
        f"90 % from: text from which on at least {100 * ENOUGH:g} % of the whole's neurons are found",
        *empty_groups_notes(groups.num_empty),
        *set_notes(groups, found.selection),
    ]
    curve = document["curve"]
    mean = {name: of_corpus["mean"] for name, of_corpus in curve["recovered"].items()}
    tables = [
        _table(document),
        _curve_table("recovered", "Share of the whole's neurons found from fewer groups", mean),
        _curve_table("agreement", "Agreement of two samples without common text", curve["agreement"], is_long=True),
    ]
    lead = f"Stability of LAPE of {model_name(groups.model)}: {found.selection.rule}"
    return Result("stability", document, lead, tables, [_chart(document)], notes, candidates_warnings(found.selection),
                  title="Stability of LAPE's sets")  # fmt: skip


def _document(groups: GroupCounts, found: Stability) -> dict[str, Any]:
    """The document of `stability --json`: plain lists, numbers and strings, with NaN for null."""
    names, curve = groups.corpora, _curve(groups.corpora, found.curve)
    return {
        "schema": 1,
        "model": model_key(groups.model),
        "corpora": list(names),
        **found.selection.rule.as_json(),
        "seed": found.seed,
        "groups": groups.num_groups,
        "half_groups": dict(found.half_groups),
        "empty_groups": dict(groups.num_empty),
        "half_samples": len(found.again_SC),
        "specific": _as_lists(found.selection.specific),
        "times_selected": _as_lists(found.times_selected),
        "core": _as_lists(found.core),
        "selected_again": {name: _spread(found.again_SC[:, c]) for c, name in enumerate(names)},
        "halves_agree": {name: _spread(found.halves_agree_PC[:, c]) for c, name in enumerate(names)},
        "by_chance": by_name(names, found.by_chance_C),
        "curve": curve,
        "enough": {name: _enough(curve, name) for name in names},
        "left_out": dict(groups.left_out),
    }


def _curve(names: Sequence[str], curve: Curve) -> dict[str, Any]:
    recovered_OKC = curve.recovered_OKC
    mean, least, most = (by_name(names, of_KC) for of_KC in (
        recovered_OKC.mean(axis=0), recovered_OKC.min(axis=0), recovered_OKC.max(axis=0)))  # fmt: skip
    documents = by_name(names, curve.documents_KC)
    return {
        "orders": len(recovered_OKC),
        "groups": by_name(names, curve.groups_KC),
        "tokens": by_name(names, curve.tokens_KC),
        "documents": {name: None if np.isnan(of_K).any() else of_K for name, of_K in documents.items()},
        "recovered": {name: {"mean": mean[name], "least": least[name], "most": most[name]} for name in names},
        "jaccard": by_name(names, curve.jaccard_OKC.mean(axis=0)),
        "agreement": by_name(names, curve.agreement_PKC.mean(axis=0)),
    }


def _enough(curve: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """The fewest groups of a corpus from which on the mean share recovered stays at least ENOUGH."""
    mean_K = curve["recovered"][name]["mean"]
    first = 1 + max((k for k, share in enumerate(mean_K) if not share >= ENOUGH), default=-1)
    if first >= len(mean_K) - 1:  # all groups are the whole, whatever it is worth
        return None
    documents_K = curve["documents"][name]
    return {
        "share": ENOUGH,
        "groups": curve["groups"][name][first],
        "tokens": round(curve["tokens"][name][first]),
        "documents": None if documents_K is None else round(documents_K[first]),
    }


def _as_lists(arrays: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    return {name: array.tolist() for name, array in arrays.items()}


def _spread(share_S: np.ndarray) -> dict[str, float]:
    return {"mean": float(share_S.mean()), "least": float(share_S.min()), "most": float(share_S.max())}


def _table(document: Mapping[str, Any]) -> Table:
    columns = [Column("corpus"), Column("groups", "count"), Column("specific", "count"), Column("again", "share"),
               Column("least", "share"), Column("core", "count"), Column("split halves", "share"),
               Column("random", "share"), Column("90 % from")]  # fmt: skip
    rows: list[list[Cell]] = []
    for name in document["corpora"]:
        size, again = len(document["specific"][name]), document["selected_again"][name]
        rows.append([
            name, document["groups"][name], size, again["mean"], again["least"],
            len(document["core"][name]) if size else None, document["halves_agree"][name]["mean"],
            document["by_chance"][name], _amount(document["enough"][name], size),
        ])  # fmt: skip
    return Table("corpora", "How stable the sets are", columns, rows)


def _amount(from_which: Mapping[str, Any] | None, size: int) -> str:
    if from_which is None:
        return "more than this" if size else "-"
    files = "" if from_which["documents"] is None else f", {from_which['documents']:,} files"
    return f"{from_which['tokens']:,} tokens{files}"


def _curve_table(name: str, title: str, by_corpus: Mapping[str, Sequence[Any]], is_long: bool = False) -> Table:
    num_steps = max(map(len, by_corpus.values())) - 1  # all groups are the whole
    columns = [Column("groups"), *(Column(str(k), "share") for k in range(1, num_steps + 1))]
    rows: list[list[Cell]] = [[corpus, *shares[:num_steps]] for corpus, shares in by_corpus.items()]
    return Table(name, title, columns, rows, is_long)


def _chart(document: Mapping[str, Any]) -> Chart:
    """One panel a corpus: the share of its neurons that less text finds, and how far two samples agree."""
    panels = [_panel(document, name) for name in document["corpora"]]
    return Chart(
        "stability", f"How much text is enough?  (core: chosen by all {document['half_samples']} half-samples)", panels,
        "share of the specific neurons", "tokens of the corpus", x="amount", y="share", share_x=False,
    )  # fmt: skip


def _panel(document: Mapping[str, Any], name: str) -> Panel:
    curve, recovered = document["curve"], document["curve"]["recovered"][name]
    if recovered["mean"][-1] is None:
        return Panel(name, (), empty=NO_NEURON)
    tokens_K = curve["tokens"][name]
    series = [
        Series(f"least to most of {curve['orders']} orders", recovered["most"], tokens_K, "band", recovered["least"],
               corpus=name, tone="light"),
        Series("of all text's neurons, found from less text (mean)", recovered["mean"], tokens_K, corpus=name),
        Series("two samples without common text agree", curve["agreement"][name], tokens_K, tone="grey",
               is_dashed=True),
        Series("random candidates", [document["by_chance"][name]], mark="level", tone="grey"),
    ]  # fmt: skip
    core = len(document["core"][name]) / len(document["specific"][name])
    again = document["selected_again"][name]["mean"]
    return Panel(name, series, f"half: {100 * again:.0f} % again, core {100 * core:.0f} %", top=1.04)
