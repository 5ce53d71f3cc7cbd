"""Layer agreement of a store. What `neurotally agreement` says.

    {"schema": 1, "model": {"id", "fingerprint"}, "variants": [names], "head_bias", "positions_a_document", "layers",
     "left_out": [contexts], "contexts": [{"kind", "size", "label"}],
     "corpora": {name: {"documents", "skipped", "skipped_documents",
        "positions", "gold_positions", "model_gold": [by context],
        "agreement" | "gold": {variant: [[by layer] by context]}, "first_50" | "first_90": {variant: [by context]}}}}

Agreement is the share of `positions` at which the layer's first token is the model's; gold: of `gold_positions`, the
token that comes next; model_gold is the model's own share of these. first_50: the first layer that reaches half of
the last layer's agreement. Shares of no position are null. Layers are counted from 0, after the first block.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import numbers
from neurotally.analysis.overlap import safe_divide
from neurotally.analysis.result import model_key
from neurotally.analysis.text_table import layer_runs, percent, text_table
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

AGREEMENT_SCHEMA = 1
_COUNTS = ("agreed", "gold", "model_gold", "positions", "gold_positions")
_NAMES = ("corpus", "variant", "context_kind", "context_size")
_SHARES = {"first_50": 0.5, "first_90": 0.9}


def agreement_document(path: Path, name: str) -> dict[str, Any]:
    """The document of `agreement --json` and `--out`, from a store's lens/NAME."""
    group = f"lens/{name}"
    try:
        arrays = store.read_group(path, group, [*_COUNTS, *_NAMES])
    except InputError as error:
        raise InputError(f"{error}; expected a result of `neurotally agreement`") from error
    attributes = store.group_attributes(path, group)
    variants = arrays["variant"].tolist()
    agreed, gold = (
        safe_divide(arrays[count], arrays[of][:, :, None, None])
        for count, of in (("agreed", "positions"), ("gold", "gold_positions"))
    )
    model_gold = safe_divide(arrays["model_gold"], arrays["gold_positions"])
    kinds, sizes = arrays["context_kind"].tolist(), arrays["context_size"].tolist()
    labels = attributes["identity"]["contexts"]
    corpora = {}
    for number, corpus in enumerate(arrays["corpus"].tolist()):
        corpora[corpus] = {
            **attributes["corpora"][corpus],
            "positions": arrays["positions"][number].tolist(),
            "gold_positions": arrays["gold_positions"][number].tolist(),
            "model_gold": numbers(model_gold[number]),
            "agreement": _by_variant(agreed[number], variants),
            "gold": _by_variant(gold[number], variants),
            **{
                key: {name: _first_layers(agreed[number, :, at], share) for at, name in enumerate(variants)}
                for key, share in _SHARES.items()
            },
        }
    return {
        "schema": AGREEMENT_SCHEMA,
        "model": model_key(store.store_attributes(path)["model"]),
        "variants": variants,
        "head_bias": attributes["head_bias"],
        "positions_a_document": attributes["positions"],
        "layers": agreed.shape[-1],
        "left_out": attributes["left_out"],
        "document_tokens": attributes["identity"].get("document_tokens"),
        "contexts": [
            {"kind": kind, "size": size, "label": label} for kind, size, label in zip(kinds, sizes, labels, strict=True)
        ],
        "corpora": corpora,
    }


def agreement_table(document: Mapping[str, Any]) -> str:
    """The document as text: a block a variant, a row a corpus and context, agreement in runs of layers."""
    runs = layer_runs(document["layers"], 6)
    blocks = []
    for variant in document["variants"]:
        rows = []
        for name, corpus in document["corpora"].items():
            for number, context in enumerate(document["contexts"]):
                if corpus["positions"][number]:
                    by_layer = np.array(corpus["agreement"][variant][number])
                    first = corpus["first_90"][variant][number]
                    rows.append([f"{name}, {context['label']}", f"{corpus['positions'][number]:,}",
                                 *(percent(float(by_layer[run].mean())) for run in runs.values()),
                                 "-" if first is None else str(first)])  # fmt: skip
        blocks.append(text_table((variant, "positions", *runs, "90 % at"), rows))
    notes = [
        "share of positions at which the layer's first token is the model's own; 90 % at: the first layer that reaches "
        "nine tenths of the last one's",
        "ffn, residual: the vector that is read; raw, norm: as it is, or after the model's final norm; head bias "
        + ("added" if document["head_bias"] else "left out"),
    ]
    if document["left_out"]:
        notes.append(f"left out, beyond the model's context: {', '.join(document['left_out'])}")
    for name, corpus in document["corpora"].items():
        if corpus["skipped"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in corpus["skipped"].items())
            notes.append(f"{name}: skipped {reasons} of {corpus['documents']} documents")
    return "\n\n".join([*blocks, "\n".join(notes)])


def _by_variant(share_CAL: np.ndarray, variants: Sequence[str]) -> dict[str, list[list[float | None]]]:
    return {name: [numbers(share_L) for share_L in share_CAL[:, at]] for at, name in enumerate(variants)}


def _first_layers(share_CL: np.ndarray, part: float) -> list[int | None]:
    """The first layer of each context that reaches a part of the last layer's share."""
    return [
        int(np.argmax(share_L >= part * share_L[-1])) if np.isfinite(share_L).all() and share_L[-1] > 0 else None
        for share_L in share_CL
    ]
