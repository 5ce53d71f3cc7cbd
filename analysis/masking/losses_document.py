"""The JSON documents of `neurotally ablate` and `neurotally mask`, from the losses of a pass.

Losses and changes are in nats per token. Of `ablate`, with the corpora's sets as rows and their text as columns:

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

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from neurotally.analysis.masking.losses import CLASSES, NO_CONTROL, Change, Losses, Scored, change, in_errors, ratio
from neurotally.analysis.masking.mask_sets import CONTROLS
from neurotally.analysis.result import finite, model_key

LEVEL = 1.96
"""A set whose z over both controls is as large costs more than random: by chance, 1 in 40 does."""

_OVER = ("random", "random_spread", "change_over_random", "change_over_random_standard_error", "in_standard_errors",
         "in_standard_errors_with_draws", "z", "not_judged")  # fmt: skip
"""Beside a control, of every effect."""

Effect = Mapping[str, Any]
"""What switching a set off does to some tokens, as `mask --json` gives it."""


def ablation_document(losses: Losses) -> dict[str, Any]:
    """The document of `ablate --json`: square, the sets' corpora by the same corpora's text."""
    names, sets = losses.specific, _sets(losses)
    cells = [losses.cell(name) for name in names]
    bases = [_baseline(cell) for cell in cells]
    effects = [[_effect(losses, name, "specific", cell) for cell in cells] for name in names]
    perplexity_C = np.array([base["perplexity"] for base in bases])
    perplexity_CC = np.array(_matrix(effects, "perplexity"))
    document: dict[str, Any] = finite({
        **_head(losses),
        "corpora": names,
        "baseline": [base["loss"] for base in bases],
        **_controls(effects),
        "random_candidates": _candidates(losses, effects),
        **{key: _matrix(effects, key) for key in (
            "change", "standard_error", "z_stricter", "accuracy_change", "accuracy_standard_error"
        )},
        "verdict": {name: _verdict(name, effects[row][row]) for row, name in enumerate(names)},
        "perplexity": perplexity_C.tolist(),
        "perplexity_change": (perplexity_CC - perplexity_C).tolist(),
        "perplexity_change_percent": (100 * (perplexity_CC / perplexity_C - 1)).tolist(),
        **{key: [base[key] for base in bases] for key in ("accuracy", "tokens", "documents")},
        **{key: {name: one[key] for name, one in sets.items()} for key in ("neurons", "by_layer")},
    })  # fmt: skip
    return document


def mask_document(losses: Losses) -> dict[str, Any]:
    """The document of `mask --json`: every set's effect on every class of tokens, and on every corpus."""
    effects = {name: _everywhere(losses, partial(_effect, losses, name, "specific")) for name in losses.specific}
    effects |= {
        _spared(name): _everywhere(losses, partial(_effect, losses, name, "spared"))
        for name in losses.specific
        if losses.numbers("spared", name)
    }
    verdict = {}
    for name in losses.specific:
        if name in losses.concepts:
            verdict[name] = _verdict(f"{name} match", effects[name]["concepts"][name]["match"])
        elif name in losses.corpora:
            verdict[name] = _verdict(name, effects[name]["corpora"][name])
    document: dict[str, Any] = finite({
        **_head(losses),
        "corpora": losses.corpora,
        "concepts": losses.concepts,
        "classes": list(CLASSES) if losses.concepts else [],
        "sets": _sets(losses),
        "baseline": _everywhere(losses, _baseline),
        "effects": effects,
        "verdict": verdict,
        "polysemantic": _polysemantic(losses, effects),
    })  # fmt: skip
    return document


def _everywhere(losses: Losses, read: Callable[[Scored], Any]) -> dict[str, Any]:
    """What is to be read of every corpus, and of every class of every concept's tokens."""
    return {
        "corpora": {corpus: read(losses.cell(corpus)) for corpus in losses.corpora},
        "concepts": {
            concept: {kind: read(losses.cell(None, concept, kind)) for kind in CLASSES} for concept in losses.concepts
        },
    }


def _spared(name: str) -> str:
    return f"{name} without polysemantic"


def _sets(losses: Losses) -> dict[str, dict[str, Any]]:
    """How many neurons of each set are switched off."""
    own = {name: losses.sets[losses.numbers("specific", name)[0]] for name in losses.specific}
    return {name: {key: one[key] for key in ("neurons", "by_layer")} for name, one in own.items()}


def _head(losses: Losses) -> dict[str, Any]:
    attributes = losses.attributes
    draws = 1 + max((one["draw"] for one in losses.sets if one["kind"] in CONTROLS), default=-1)
    controls: dict[str, Any] = {}
    for name in losses.specific:
        controls[name] = {control: losses.control(control, name).not_judged or None for control in CONTROLS}
        drawn = losses.numbers("candidates", name)
        controls[name]["candidates_drawn_from"] = losses.sets[drawn[0]].get("drawn_from") if drawn else None
        if any(losses.sets[number].get("drawn_from") for number in losses.numbers("random", name)):
            controls[name]["random_drawn_from"] = "networks"
    return {
        "schema": 1,
        "model": model_key(losses.model),
        "how": attributes["identity"]["how"],
        "draws": attributes.get("draws", draws),
        "row_tokens": attributes["identity"]["row_tokens"],
        "document_tokens": attributes["identity"].get("document_tokens"),
        "left_out": 0 if attributes["forced"] else len(attributes["used_documents"]),
        "forced": len(attributes["used_documents"]) if attributes["forced"] else 0,
        "controls": controls,
        **attributes["described"],
    }


def _matrix(effects: Sequence[Sequence[Effect]], key: str) -> list[list[Any]]:
    return [[one[key] for one in row] for row in effects]


def _controls(effects: Sequence[Sequence[Effect]]) -> dict[str, Any]:
    """Beside random sets, by set and text: the mean of the draws, a matrix of each of them, and what is beyond."""
    draws = _matrix(effects, "random_draws")
    num_draws = max((len(of_cell) for row in draws for of_cell in row), default=0)
    return {
        **{key: _matrix(effects, key) for key in _OVER},
        "random_draws": [
            [[of_cell[draw] if of_cell else None for of_cell in row] for row in draws] for draw in range(num_draws)
        ],
    }


def _candidates(losses: Losses, effects: Sequence[Sequence[Effect]]) -> dict[str, Any] | None:
    drawn = {name: losses.numbers("candidates", name) for name in losses.specific}
    if not any(drawn.values()) and not losses.attributes.get("not_drawn", {}).get("candidates"):
        return None
    return {
        **_controls(_matrix(effects, "candidates")),
        "neurons": {name: losses.sets[of[0]]["neurons"] if of else 0 for name, of in drawn.items()},
    }


def _verdict(on: str, effect: Effect) -> dict[str, Any]:
    """Whether a set costs its own text more than both controls do."""
    reasons = {"same layers": effect["not_judged"], "above the threshold": effect["candidates"]["not_judged"]}
    if len(set(reasons.values())) == 1:
        not_judged = effect["not_judged"]
    else:
        not_judged = "; ".join(f"{control}: {reason}" for control, reason in reasons.items() if reason)
    return {
        "on": on,
        "z": effect["z"],
        "z_candidates": effect["candidates"]["z"],
        "z_stricter": effect["z_stricter"],
        "costs_more": None if np.isnan(effect["z_stricter"]) else effect["z_stricter"] >= LEVEL,
        "not_judged": not_judged,
    }


def _baseline(cell: Scored) -> dict[str, Any]:
    """With nothing switched off."""
    loss = ratio(cell.nats_SD[0], cell.scored_D).value
    return {
        "tokens": cell.tokens,
        "documents": cell.documents,
        "loss": loss,
        "perplexity": float(np.exp(loss)),
        "accuracy": ratio(cell.hits_SD[0], cell.scored_D).value,
    }


def _effect(losses: Losses, name: str, kind: str, cell: Scored) -> dict[str, Any]:
    """What a set does to a cell, beside its controls; a spared set has none of its size."""
    own = losses.numbers(kind, name)[0]
    controls = [losses.control(control, name) if kind == "specific" else NO_CONTROL for control in CONTROLS]
    one, beside = (change(cell, own, control) for control in controls)
    return {
        "change": one.change.value,
        "standard_error": one.change.error,
        **_over(one),
        "candidates": _over(beside) if kind == "specific" else None,
        "z_stricter": float(np.minimum(one.judgement.z, beside.judgement.z)),
        "perplexity": float(np.exp(_baseline(cell)["loss"] + one.change.value)),
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
        "in_standard_errors_with_draws": in_errors(one.over_random_with_draws),
        "z": one.judgement.z,
        "not_judged": one.judgement.not_judged or None,
    }


def _polysemantic(losses: Losses, effects: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every set with polysemantic neurons, and every concept's tokens: with them masked, and spared."""
    found = []
    for name in losses.specific:
        whole, spared = (losses.numbers(kind, name) for kind in ("specific", "spared"))
        for concept in losses.concepts if spared else ():
            cell = losses.cell(None, concept, "match")
            apart = ratio(cell.nats_SD[whole[0]] - cell.nats_SD[spared[0]], cell.scored_D)
            found.append({
                "set": name,
                "concept": concept,
                "neurons": losses.sets[whole[0]]["neurons"] - losses.sets[spared[0]]["neurons"],
                "masked": effects[name]["concepts"][concept]["match"]["change"],
                "spared": effects[_spared(name)]["concepts"][concept]["match"]["change"],
                "difference": apart.value,
                "standard_error": apart.error,
            })  # fmt: skip
    return found
