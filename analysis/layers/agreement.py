"""Layer agreement of a store. What `neurotally agreement` says.

    {"schema": 1, "model": {"id", "fingerprint"}, "variants": [names], "head_bias", "positions_a_document", "layers",
     "left_out": [contexts], "contexts": [{"kind", "size", "label"}],
     "corpora": {name: {"documents", "skipped", "skipped_documents",
        "positions", "gold_positions", "model_gold": [by context],
        "agreement" | "gold": {variant: [[by layer] by context]}, "first_50" | "first_90": {variant: [by context]}}}}

Agreement is the share of `positions` at which the layer's top-1 prediction is the model's; gold: of `gold_positions`,
the token that comes next; model_gold is the model's own share of these. first_50: the first layer that reaches half of
the last layer's agreement. Shares of no position are null. Layers are counted from 0, after the first block.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.layer_runs import known_mean, layer_runs, run_means
from neurotally.analysis.options import GroupName
from neurotally.analysis.overlap import safe_divide
from neurotally.analysis.parts import Cell, Chart, Column, Grid, Panel, Series, Table
from neurotally.analysis.result import Result, finite, model_key
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError

_COUNTS = ("agreed", "gold", "model_gold", "positions", "gold_positions")
_NAMES = ("corpus", "variant", "context_kind", "context_size")
_VARIANTS = {
    "ffn-raw": "FFN, raw",
    "ffn-norm": "FFN, normed",
    "residual-raw": "residual, raw",
    "residual-norm": "residual, normed",
}
_MOST_RUNS = 8
"""Of layers, as rows of a heat map."""


def study(store: Path, name: GroupName = "agreement") -> Result:
    """How often each layer's top-1 prediction is the model's own (arXiv 2407.04868), as `agreement` counted it.

    >>> store.agreement().frame().columns.tolist()[:3]
    ['corpus', 'positions', 'next token']
    """
    document = agreement_document(store, name)
    tables = [_corpus_table(document), *(_context_table(document, variant) for variant in document["variants"])]
    charts = [_layer_chart(document), *(_context_chart(document, variant) for variant in document["variants"])]
    lead = "Layer agreement: at how many positions a layer's top-1 prediction is the model's own"
    heading = "Layer agreement"
    return Result("agreement", document, lead, tables, charts, _notes(document), anchor=f"lens-{name}",
                  title=heading if name == "agreement" else f"{heading}: {name}")  # fmt: skip


def sections(store: Path) -> list[dict[str, Any]]:
    """One for every group that `agreement` left."""
    return [{"name": name} for name, of in stores.family_attributes(store, "lens").items() if "head_bias" in of]


def agreement_document(path: Path, name: str) -> dict[str, Any]:
    """The document of `agreement --json` and `--out`, from a store's lens/NAME."""
    group = f"lens/{name}"
    try:
        arrays = stores.read_group(path, group, [*_COUNTS, *_NAMES])
    except InputError as error:
        raise InputError(f"{error}; expected a result of `neurotally agreement`") from error
    attributes = stores.group_attributes(path, group)
    variants = arrays["variant"].tolist()
    agreed = safe_divide(arrays["agreed"], arrays["positions"][:, :, None, None])
    gold = safe_divide(arrays["gold"], arrays["gold_positions"][:, :, None, None])
    model_gold = safe_divide(arrays["model_gold"], arrays["gold_positions"])
    contexts = zip(arrays["context_kind"].tolist(), arrays["context_size"].tolist(),
                   attributes["identity"]["contexts"], strict=True)  # fmt: skip
    corpora = {}
    for number, corpus in enumerate(arrays["corpus"].tolist()):
        corpora[corpus] = {
            **attributes["corpora"][corpus],
            "positions": arrays["positions"][number].tolist(),
            "gold_positions": arrays["gold_positions"][number].tolist(),
            "model_gold": model_gold[number].tolist(),
            "agreement": {name: agreed[number, :, at].tolist() for at, name in enumerate(variants)},
            "gold": {name: gold[number, :, at].tolist() for at, name in enumerate(variants)},
            "first_50": {name: _first_layers(agreed[number, :, at], 0.5) for at, name in enumerate(variants)},
            "first_90": {name: _first_layers(agreed[number, :, at], 0.9) for at, name in enumerate(variants)},
        }
    document: dict[str, Any] = finite({
        "schema": 1,
        "model": model_key(stores.store_attributes(path)["model"]),
        "variants": variants,
        "head_bias": attributes["head_bias"],
        "positions_a_document": attributes["positions"],
        "layers": agreed.shape[-1],
        "left_out": attributes["left_out"],
        "document_tokens": attributes["identity"].get("document_tokens"),
        "contexts": [{"kind": kind, "size": size, "label": label} for kind, size, label in contexts],
        "corpora": corpora,
    })  # fmt: skip
    return document


def _corpus_table(document: Mapping[str, Any]) -> Table:
    """Over whole documents: for each way to read a layer its mean over layers, and where it is nearly the last's."""
    columns = [Column("corpus"), Column("positions", "count"), Column("next token", "share", 1)]
    for variant in document["variants"]:
        columns += [Column(variant, "share", 1), Column(f"{variant} 90 %", "count")]
    rows = []
    for name, corpus in document["corpora"].items():
        row: list[Cell] = [name, corpus["positions"][0], corpus["model_gold"][0]]
        for variant in document["variants"]:
            row += [known_mean(corpus["agreement"][variant][0]), corpus["first_90"][variant][0]]
        rows.append(row)
    return Table("corpora", "Over whole documents: mean over layers, and the layer that reaches 90 % of the last one's",
                 columns, rows)  # fmt: skip


def _context_table(document: Mapping[str, Any], variant: str) -> Table:
    """A row a corpus and context, agreement in runs of layers."""
    runs = layer_runs(document["layers"], 6)
    columns = [Column("corpus"), Column("context"), Column("positions", "count"),
               *(Column(run, "share") for run in runs), Column("last", "share", 1), Column("50 % at", "count"),
               Column("90 % at", "count")]  # fmt: skip
    rows: list[list[Cell]] = [
        [name, context["label"], corpus["positions"][at], *run_means(corpus["agreement"][variant][at], runs),
         corpus["agreement"][variant][at][-1], corpus["first_50"][variant][at], corpus["first_90"][variant][at]]
        for name, corpus in document["corpora"].items()
        for at, context in enumerate(document["contexts"])
        if corpus["positions"][at]
    ]  # fmt: skip
    return Table(variant, f"{_VARIANTS[variant]}, by context", columns, rows, is_long=True)


def _layer_chart(document: Mapping[str, Any]) -> Chart:
    """A panel a variant, a line a corpus, over whole documents; dashed, with the token that comes next."""
    panels = []
    for variant in document["variants"]:
        series = [
            Series(f"{name} ({corpus['positions'][0]:,} positions)", corpus["agreement"][variant][0], corpus=name)
            for name, corpus in document["corpora"].items()
        ]
        series += [
            Series("agrees with the token that comes next", corpus["gold"][variant][0], corpus=name, is_dashed=True)
            for name, corpus in document["corpora"].items()
        ]
        panels.append(Panel(_VARIANTS[variant], series))
    return Chart("agreement", "Positions at which a layer's top-1 prediction is the model's", panels,
                 "share of positions", y="share",
                 caption="Agreement by layer over whole documents; dashed, with the token that comes next")  # fmt: skip


def _context_chart(document: Mapping[str, Any], variant: str) -> Chart:
    """A heat map a corpus: runs of layers by context size. That of the first variant is `context`."""
    runs = layer_runs(document["layers"], _MOST_RUNS)
    labels = [context["label"] for context in document["contexts"]]
    grids = []
    for name, corpus in document["corpora"].items():
        by_context = [run_means(share_L, runs) for share_L in corpus["agreement"][variant]]
        rows = [
            [None if share is None else 100 * share for share in of_run] for of_run in zip(*by_context, strict=True)
        ]
        grids.append(Grid(name, list(runs)[::-1], labels, rows[::-1], scale="% of positions", high=100, digits=0))
    is_first = variant == document["variants"][0]
    title = f"Agreement with the model's top-1 prediction, by what the model sees: {_VARIANTS[variant]}"
    return Chart("context" if is_first else f"context-{variant}", title, grids, is_on_request=True,
                 num_columns=min(2, len(grids)))  # fmt: skip


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = [
        "next token: the share at which the model's own top-1 prediction is the token that comes next",
        "ffn, residual: the vector that is read; raw, norm: as it is, or after the model's final norm; head bias "
        + ("added" if document["head_bias"] else "left out"),
    ]
    if document["left_out"]:
        notes.append(f"left out, beyond the model's context: {', '.join(document['left_out'])}")
    for name, corpus in document["corpora"].items():
        if corpus["skipped"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in corpus["skipped"].items())
            notes.append(f"{name}: skipped {reasons} of {corpus['documents']} documents")
    return notes


def _first_layers(share_CL: np.ndarray, part: float) -> list[int | None]:
    """The first layer of each context that reaches a part of the last layer's share."""
    return [
        int(np.argmax(share_L >= part * share_L[-1])) if np.isfinite(share_L).all() and share_L[-1] > 0 else None
        for share_L in share_CL
    ]
