"""What `neurotally ablate` and `neurotally mask` say: one JSON document each, and the same as tables to read.

Losses and changes are in nats a token. Of `ablate`, with the corpora's sets as rows and their text as columns:

    {"schema": 1, "model": {"id", "fingerprint"}, "corpora": [...], "baseline": [...], "change": [[masked, evaluated]],
     "standard_error": [[...]], "random": [[...]], "change_over_random": [[...]], "in_standard_errors": [[...]], ...}

`random` is the mean of the draws, `random_draws` [draw][masked][evaluated] each of them, `random_spread` their
standard deviation; `random_candidates` holds the same keys for random neurons above the bar, or null.
`in_standard_errors` is the change over random in its own error, with the draws held fixed, and
`in_standard_errors_with_draws` with their spread in it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number, numbers
from neurotally.analysis.languages.counts import model_key
from neurotally.analysis.masking.losses import (
    CLASSES,
    Cell,
    Change,
    Losses,
    Ratio,
    baseline,
    change,
    difference,
    in_errors,
)
from neurotally.analysis.text_table import text_table

LOSSES_SCHEMA = 1
_FEW_DOCUMENTS = 10

Rows = list[list[Change]]


def ablation_document(losses: Losses) -> dict[str, Any]:
    """The document of `ablate --json`: square, the sets' corpora by the same corpora's text."""
    names = losses.specific
    cells = [losses.cell(name) for name in names]
    base = np.array([baseline(cell) for cell in cells])
    changes = _changes(losses, cells, "random")
    loss_C, perplexity_C = base[:, 0], np.exp(base[:, 0])
    perplexity_CC = np.exp(_values(changes, lambda one: one.change.value) + loss_C)
    return {
        **_head(losses),
        "corpora": names,
        "baseline": numbers(loss_C),
        "change": _matrix(changes, lambda one: one.change.value),
        "standard_error": _matrix(changes, lambda one: one.change.error),
        **_controls(changes),
        "random_candidates": _candidates(losses, cells),
        "perplexity": numbers(perplexity_C),
        "perplexity_change": _nested(perplexity_CC - perplexity_C),
        "perplexity_change_percent": _nested(100 * (perplexity_CC / perplexity_C - 1)),
        "accuracy": numbers(base[:, 1]),
        "accuracy_change": _matrix(changes, lambda one: one.accuracy.value),
        "accuracy_standard_error": _matrix(changes, lambda one: one.accuracy.error),
        "neurons": {name: losses.sets[losses.numbers("specific", name)[0]]["neurons"] for name in names},
        "by_layer": {name: losses.sets[losses.numbers("specific", name)[0]]["by_layer"] for name in names},
        "tokens": [cell.tokens for cell in cells],
        "documents": [cell.documents for cell in cells],
    }


def ablation_table(document: Mapping[str, Any]) -> str:
    """The document as text."""
    names = document["corpora"]
    perplexity = [f"{value:.2f}" if value is not None else "-" for value in document["perplexity"]]
    counted = zip(names, document["documents"], document["tokens"], perplexity, _own(document["change"]), strict=True)
    over = zip(_own(document["change_over_random"]), _own(document["in_standard_errors"]), strict=True)
    rows = [
        [name, f"{documents:,}", f"{tokens:,}", ppl, f"{document['neurons'][name]:,}", _signed(own), _signed(more),
         _signed(errors, 1)]
        for (name, documents, tokens, ppl, own), (more, errors) in zip(counted, over, strict=True)
    ]  # fmt: skip
    header = ("corpus", "documents", "tokens", "perplexity", "neurons off", "own change", "over random", "in errors")
    blocks = [_title(document), text_table(header, rows)]
    for key, what in (("change", "change"), ("change_over_random", "change over random neurons of the same layers")):
        if _has_numbers(document[key]):
            blocks.append(f"{what}, nats a token; row: switched off, column: text\n{_square(document[key], names, 3)}")
    if _has_numbers(document["in_standard_errors"]):
        table = _square(document["in_standard_errors"], names, 1)
        blocks.append(f"change over random in standard errors\n{table}")
    return "\n\n".join([*blocks, "\n".join(_notes(document))])


def mask_document(losses: Losses) -> dict[str, Any]:
    """The document of `mask --json`: every set's effect on every class of tokens, and on every corpus."""
    names = losses.specific
    rows = [(name, "specific") for name in names] + [
        (name, "spared") for name in names if losses.numbers("spared", name)
    ]
    return {
        **_head(losses),
        "corpora": losses.corpora,
        "concepts": losses.concepts,
        "classes": list(CLASSES) if losses.concepts else [],
        "sets": {
            name: {key: losses.sets[losses.numbers("specific", name)[0]][key] for key in ("neurons", "by_layer")}
            for name in names
        },
        "baseline": {
            "corpora": {corpus: _baseline(losses.cell(corpus)) for corpus in losses.corpora},
            "concepts": {
                concept: {kind: _baseline(losses.cell(None, concept, kind)) for kind in CLASSES}
                for concept in losses.concepts
            },
        },
        "effects": {
            label: {
                "corpora": {corpus: _effect(losses, losses.cell(corpus), name, kind) for corpus in losses.corpora},
                "concepts": {
                    concept: {
                        where: _effect(losses, losses.cell(None, concept, where), name, kind) for where in CLASSES
                    }
                    for concept in losses.concepts
                },
            }
            for name, kind in rows
            for label in [name if kind == "specific" else f"{name} without polysemantic"]
        },
        "polysemantic": _polysemantic(losses),
    }  # fmt: skip


def mask_table(document: Mapping[str, Any]) -> str:
    """The document as text: by concept and class, by corpus, and what polysemantic neurons cost other concepts."""
    blocks = [_title(document)]
    header = (
        "switched off", "on", "tokens", "perplexity before", "change", "error", "random", "spread",
        "over random in errors", "top-1",
    )  # fmt: skip
    for part, what in (("concepts", "tokens of concepts, over all corpora"), ("corpora", "all tokens, by corpus")):
        rows = [
            [label, " ".join(where), f"{base['tokens']:,}", _plain(base["perplexity"], 2), _signed(one["change"], 4),
             _plain(one["standard_error"], 4), _signed(one["random"], 4), _plain(one["random_spread"], 4),
             _signed(one["in_standard_errors"], 1), _percent(one["accuracy_change"])]
            for label, effect in document["effects"].items()
            for (where, one), (_, base) in zip(_leaves(effect[part]), _leaves(document["baseline"][part]), strict=True)
        ]  # fmt: skip
        if rows:
            blocks.append(f"{what}\n{text_table(header, rows)}")
    if document["polysemantic"]:
        rows = [
            [one["set"], one["concept"], f"{one['neurons']:,}", _signed(one["masked"], 4), _signed(one["spared"], 4),
             _signed(one["difference"], 4), _plain(one["standard_error"], 4)]
            for one in document["polysemantic"]
        ]  # fmt: skip
        head = ("switched off", "tokens of", "polysemantic", "change", "without them", "difference", "error")
        blocks.append(f"what polysemantic neurons cost\n{text_table(head, rows)}")
    return "\n\n".join([*blocks, "\n".join(_notes(document))])


def _head(losses: Losses) -> dict[str, Any]:
    attributes = losses.attributes
    return {
        "schema": LOSSES_SCHEMA,
        "model": model_key(losses.model),
        "how": attributes["identity"]["how"],
        "draws": 1 + max((one["draw"] for one in losses.sets if one["kind"] == "random"), default=-1),
        "row_tokens": attributes["identity"]["row_tokens"],
        "document_tokens": attributes["identity"].get("document_tokens"),
        "left_out": 0 if attributes["forced"] else len(attributes["used_documents"]),
        "forced": len(attributes["used_documents"]) if attributes["forced"] else 0,
        **attributes["described"],
    }


def _changes(losses: Losses, cells: Sequence[Cell], control: str) -> Rows:
    """By set and cell, beside the sets of the kind `control`."""
    return [
        [change(cell, losses.numbers("specific", name)[0], losses.numbers(control, name)) for cell in cells]
        for name in losses.specific
    ]


def _controls(changes: Rows) -> dict[str, Any]:
    """Beside random sets: the mean of the draws, each of them, and what is beyond."""
    num_draws = len(changes[0][0].draws) if changes else 0
    return {
        "random": _matrix(changes, lambda one: one.random),
        "random_draws": [[numbers(one.draws[draw] for one in row) for row in changes] for draw in range(num_draws)],
        "random_spread": _matrix(changes, lambda one: one.spread),
        "change_over_random": _matrix(changes, lambda one: one.over_random.value),
        "change_over_random_standard_error": _matrix(changes, lambda one: one.over_random.error),
        "in_standard_errors": _matrix(changes, lambda one: in_errors(one.over_random)),
        "in_standard_errors_with_draws": _matrix(
            changes, lambda one: in_errors(Ratio(one.over_random.value, one.over_random_error_with_draws))
        ),
    }


def _candidates(losses: Losses, cells: Sequence[Cell]) -> dict[str, Any] | None:
    if not any(losses.numbers("candidates", name) for name in losses.specific):
        return None
    drawn = {name: losses.sets[losses.numbers("candidates", name)[0]]["neurons"] for name in losses.specific}
    return {**_controls(_changes(losses, cells, "candidates")), "neurons": drawn}


def _baseline(cell: Cell) -> dict[str, Any]:
    loss, accuracy = baseline(cell)
    return {
        "tokens": cell.tokens, "documents": cell.documents, "loss": number(loss), "perplexity": number(np.exp(loss)),
        "accuracy": number(accuracy),
    }  # fmt: skip


def _effect(losses: Losses, cell: Cell, name: str, kind: str) -> dict[str, Any]:
    """What a set does to a cell, beside its random sets; a spared set has none of its size."""
    one = change(cell, losses.numbers(kind, name)[0], losses.numbers("random", name) if kind == "specific" else [])
    loss, _ = baseline(cell)
    return {
        "change": number(one.change.value),
        "standard_error": number(one.change.error),
        "random": number(one.random),
        "random_draws": numbers(one.draws),
        "random_spread": number(one.spread),
        "change_over_random": number(one.over_random.value),
        "change_over_random_standard_error": number(one.over_random.error),
        "in_standard_errors": number(in_errors(one.over_random)),
        "perplexity": number(np.exp(loss + one.change.value)),
        "accuracy_change": number(one.accuracy.value),
        "accuracy_standard_error": number(one.accuracy.error),
    }


def _polysemantic(losses: Losses) -> list[dict[str, Any]]:
    """For every set with polysemantic neurons, and every concept's tokens: with them masked, and spared."""
    found = []
    for name in losses.specific:
        spared = losses.numbers("spared", name)
        whole = losses.numbers("specific", name)[0]
        for concept in losses.concepts if spared else ():
            cell = losses.cell(None, concept, "match")
            apart = difference(cell, whole, spared[0])
            found.append({
                "set": name,
                "concept": concept,
                "neurons": losses.sets[whole]["neurons"] - losses.sets[spared[0]]["neurons"],
                "masked": number(change(cell, whole).change.value),
                "spared": number(change(cell, spared[0]).change.value),
                "difference": number(apart.value),
                "standard_error": number(apart.error),
            })  # fmt: skip
    return found


def _values(rows: Rows, read: Callable[[Change], float]) -> np.ndarray:
    return np.array([[read(one) for one in row] for row in rows], np.float64)


def _matrix(rows: Rows, read: Callable[[Change], float]) -> list[list[float | None]]:
    return _nested(_values(rows, read))


def _nested(value_RC: np.ndarray) -> list[list[float | None]]:
    return [numbers(row) for row in value_RC]


def _own(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [row[index] for index, row in enumerate(rows)]


def _has_numbers(rows: Sequence[Sequence[float | None]]) -> bool:
    return any(value is not None for row in rows for value in row)


def _leaves(tree: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The innermost dictionaries with the way to them."""
    for key, value in tree.items():
        if "tokens" in value or "change" in value:
            yield (key,), value
        else:
            yield from (((key, *way), leaf) for way, leaf in _leaves(value))


def _square(rows: Sequence[Sequence[float | None]], names: Sequence[str], decimals: int) -> str:
    cells = [[name, *(_signed(value, decimals) for value in row)] for name, row in zip(names, rows, strict=True)]
    return text_table(("", *names), cells)


def _title(document: Mapping[str, Any]) -> str:
    model = (document["model"] or {}).get("id") or "a model"
    return f"losses of {model} with neurons switched off ({document['how']})"


def _notes(document: Mapping[str, Any]) -> list[str]:
    draws = document["draws"]
    drawn = f"mean of {draws} draws" if draws else "not drawn (--draws 0)"
    notes = [f"errors are over documents; random: as many neurons in every layer, {drawn}"]
    documents = document.get("documents") or [base["documents"] for base in document["baseline"]["corpora"].values()]
    if min(documents, default=0) < _FEW_DOCUMENTS:
        notes.append(f"some corpora have fewer than {_FEW_DOCUMENTS} documents: their errors are rough")
    if document["left_out"]:
        notes.append(f"{document['left_out']:,} documents that chose the neurons are left out")
    if document["forced"]:
        notes.append(f"{document['forced']:,} documents that chose the neurons are in (--force): the changes flatter")
    return notes


def _signed(value: float | None, decimals: int = 3) -> str:
    return "-" if value is None else f"{value:+.{decimals}f}"


def _plain(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f} %"
