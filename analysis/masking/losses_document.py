"""The JSON documents of `neurotally ablate` and `neurotally mask`, from the losses of a pass.

Losses and changes are in nats a token. Of `ablate`, with the corpora's sets as rows and their text as columns:

    {"schema": 1, "model": {"id", "fingerprint"}, "corpora": [...], "baseline": [...], "change": [[masked, evaluated]],
     "standard_error": [[...]], "random": [[...]], "change_over_random": [[...]], "in_standard_errors": [[...]], ...}

`random` is the mean of the draws, `random_draws` [draw][masked][evaluated] each of them, `random_spread` their
standard deviation. `in_standard_errors` is the change over random in its own error, with the draws held fixed, and
`in_standard_errors_with_draws` with their spread in it. `z` counts both the draws and the documents, as `judgement`
says, and `not_judged` tells why where it is null. `random_candidates` holds the same keys for random neurons of which
as many are above LAPE's threshold, and `neurons` of each set's draws, or is null where nothing was drawn. `controls`
tells by set why it lacks one, and whether as many candidates were drawn in each layer or from all layers together.
`z_stricter` is the smaller of both z, null without both. Of every set's own text, `verdict` says

    {NAME: {"on", "z", "z_candidates", "z_stricter", "costs_more": z_stricter ≥ 1.96 or null, "not_judged"}}

Of `mask`, every effect has these keys for its own cell, those of the other control in `candidates`; `verdict` has the
sets that are called like a concept, on its matches, or like a corpus. No cell of fewer than five documents has an error
or a z.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from neurotally.analysis.masking.losses import (
    CLASSES,
    NO_CONTROL,
    Cell,
    Change,
    Losses,
    Ratio,
    baseline,
    change,
    difference,
    in_errors,
)
from neurotally.analysis.masking.mask_sets import CONTROLS
from neurotally.analysis.result import finite, model_key

LOSSES_SCHEMA = 1
LEVEL = 1.96
"""A set whose z over both controls is as large costs more than random: by chance, 1 in 40 does."""

Rows = list[list[Change]]


def ablation_document(losses: Losses) -> dict[str, Any]:
    """The document of `ablate --json`: square, the sets' corpora by the same corpora's text."""
    names = losses.specific
    cells = [losses.cell(name) for name in names]
    base = np.array([baseline(cell) for cell in cells])
    changes = _changes(losses, cells, "random")
    over_candidates = _changes(losses, cells, "candidates")
    loss_C, perplexity_C = base[:, 0], np.exp(base[:, 0])
    perplexity_CC = np.exp(_values(changes, lambda one: one.change.value) + loss_C)
    document: dict[str, Any] = finite({
        **_head(losses),
        "corpora": names,
        "baseline": loss_C.tolist(),
        "change": _matrix(changes, lambda one: one.change.value),
        "standard_error": _matrix(changes, lambda one: one.change.error),
        **_controls(changes),
        "random_candidates": _candidates(losses, over_candidates),
        "z_stricter": np.minimum(_z(changes), _z(over_candidates)).tolist(),
        "verdict": {
            name: _verdict(name, changes[row][row], over_candidates[row][row]) for row, name in enumerate(names)
        },
        "perplexity": perplexity_C.tolist(),
        "perplexity_change": (perplexity_CC - perplexity_C).tolist(),
        "perplexity_change_percent": (100 * (perplexity_CC / perplexity_C - 1)).tolist(),
        "accuracy": base[:, 1].tolist(),
        "accuracy_change": _matrix(changes, lambda one: one.accuracy.value),
        "accuracy_standard_error": _matrix(changes, lambda one: one.accuracy.error),
        "neurons": {name: losses.sets[losses.numbers("specific", name)[0]]["neurons"] for name in names},
        "by_layer": {name: losses.sets[losses.numbers("specific", name)[0]]["by_layer"] for name in names},
        "tokens": [cell.tokens for cell in cells],
        "documents": [cell.documents for cell in cells],
    })  # fmt: skip
    return document


def mask_document(losses: Losses) -> dict[str, Any]:
    """The document of `mask --json`: every set's effect on every class of tokens, and on every corpus."""
    names = losses.specific
    rows = [(name, "specific") for name in names] + [
        (name, "spared") for name in names if losses.numbers("spared", name)
    ]
    document: dict[str, Any] = finite({
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
        "verdict": _verdicts(losses),
        "polysemantic": _polysemantic(losses),
    })  # fmt: skip
    return document


def _head(losses: Losses) -> dict[str, Any]:
    attributes = losses.attributes
    return {
        "schema": LOSSES_SCHEMA,
        "model": model_key(losses.model),
        "how": attributes["identity"]["how"],
        "draws": attributes.get(
            "draws", 1 + max((one["draw"] for one in losses.sets if one["kind"] in CONTROLS), default=-1)
        ),
        "row_tokens": attributes["identity"]["row_tokens"],
        "document_tokens": attributes["identity"].get("document_tokens"),
        "left_out": 0 if attributes["forced"] else len(attributes["used_documents"]),
        "forced": len(attributes["used_documents"]) if attributes["forced"] else 0,
        "controls": {name: _control_facts(losses, name) for name in losses.specific},
        **attributes["described"],
    }


def _control_facts(losses: Losses, name: str) -> dict[str, str | None]:
    drawn = losses.numbers("candidates", name)
    return {
        **{control: losses.control(control, name).not_judged or None for control in CONTROLS},
        "candidates_drawn_from": losses.sets[drawn[0]].get("drawn_from") if drawn else None,
    }


def _changes(losses: Losses, cells: Sequence[Cell], control: str) -> Rows:
    """By set and cell, beside the sets of the kind `control`."""
    return [
        [change(cell, losses.numbers("specific", name)[0], losses.control(control, name)) for cell in cells]
        for name in losses.specific
    ]


def _controls(changes: Rows) -> dict[str, Any]:
    """Beside random sets: the mean of the draws, each of them, and what is beyond."""
    num_draws = max((len(row[0].draws) for row in changes), default=0)
    return {
        "random": _matrix(changes, lambda one: one.random),
        "random_draws": [
            [[one.draws[draw] if one.draws else None for one in row] for row in changes] for draw in range(num_draws)
        ],
        "random_spread": _matrix(changes, lambda one: one.spread),
        "change_over_random": _matrix(changes, lambda one: one.over_random.value),
        "change_over_random_standard_error": _matrix(changes, lambda one: one.over_random.error),
        "in_standard_errors": _matrix(changes, lambda one: in_errors(one.over_random)),
        "in_standard_errors_with_draws": _matrix(
            changes, lambda one: in_errors(Ratio(one.over_random.value, one.over_random_error_with_draws))
        ),
        "z": _z(changes).tolist(),
        "not_judged": [[one.judgement.not_judged or None for one in row] for row in changes],
    }


def _candidates(losses: Losses, changes: Rows) -> dict[str, Any] | None:
    drawn = {name: losses.numbers("candidates", name) for name in losses.specific}
    if not any(drawn.values()) and not losses.attributes.get("not_drawn", {}).get("candidates"):
        return None
    return {
        **_controls(changes),
        "neurons": {name: losses.sets[of[0]]["neurons"] if of else 0 for name, of in drawn.items()},
    }


def _verdict(on: str, over_random: Change, over_candidates: Change) -> dict[str, Any]:
    """Whether a set costs its own text more than both controls do."""
    z = over_random.judgement.z, over_candidates.judgement.z
    stricter = float(np.minimum(*z))
    reasons = {
        "same layers": over_random.judgement.not_judged, "above the threshold": over_candidates.judgement.not_judged,
    }  # fmt: skip
    found = [f"{control}: {reason}" for control, reason in reasons.items() if reason]
    if len(set(reasons.values())) == 1:
        found = [reason for reason in reasons.values() if reason][:1]
    return {
        "on": on,
        "z": z[0],
        "z_candidates": z[1],
        "z_stricter": stricter,
        "costs_more": None if np.isnan(stricter) else bool(stricter >= LEVEL),
        "not_judged": "; ".join(found) or None,
    }


def _verdicts(losses: Losses) -> dict[str, Any]:
    """Of `mask`'s sets that are called like a concept or a corpus."""
    found = {}
    for name in losses.specific:
        if name in losses.concepts:
            on, cell = f"{name} match", losses.cell(None, name, "match")
        elif name in losses.corpora:
            on, cell = name, losses.cell(name)
        else:
            continue
        own = losses.numbers("specific", name)[0]
        found[name] = _verdict(on, *(change(cell, own, losses.control(kind, name)) for kind in CONTROLS))
    return found


def _baseline(cell: Cell) -> dict[str, Any]:
    loss, accuracy = baseline(cell)
    return {
        "tokens": cell.tokens,
        "documents": cell.documents,
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "accuracy": accuracy,
    }


def _effect(losses: Losses, cell: Cell, name: str, kind: str) -> dict[str, Any]:
    """What a set does to a cell, beside its controls; a spared set has none of its size."""
    own = losses.numbers(kind, name)[0]
    controls = [losses.control(control, name) if kind == "specific" else NO_CONTROL for control in CONTROLS]
    one, beside = (change(cell, own, control) for control in controls)
    loss, _ = baseline(cell)
    return {
        "change": one.change.value,
        "standard_error": one.change.error,
        **_over(one),
        "candidates": _over(beside) if kind == "specific" else None,
        "z_stricter": float(np.minimum(one.judgement.z, beside.judgement.z)),
        "perplexity": float(np.exp(loss + one.change.value)),
        "accuracy_change": one.accuracy.value,
        "accuracy_standard_error": one.accuracy.error,
    }


def _over(one: Change) -> dict[str, Any]:
    """A change beside a control."""
    return {
        "random": one.random,
        "random_draws": one.draws,
        "random_spread": one.spread,
        "change_over_random": one.over_random.value,
        "change_over_random_standard_error": one.over_random.error,
        "in_standard_errors": in_errors(one.over_random),
        "z": one.judgement.z,
        "not_judged": one.judgement.not_judged or None,
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
                "masked": change(cell, whole).change.value,
                "spared": change(cell, spared[0]).change.value,
                "difference": apart.value,
                "standard_error": apart.error,
            })  # fmt: skip
    return found


def _z(rows: Rows) -> np.ndarray:
    return _values(rows, lambda one: one.judgement.z)


def _values(rows: Rows, read: Callable[[Change], float]) -> np.ndarray:
    return np.array([[read(one) for one in row] for row in rows], np.float64)


def _matrix(rows: Rows, read: Callable[[Change], float]) -> list[list[float | None]]:
    matrix: list[list[float | None]] = _values(rows, read).tolist()
    return matrix
