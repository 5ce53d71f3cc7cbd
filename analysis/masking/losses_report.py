"""What `neurotally ablate` and `neurotally mask` say: one JSON document each, and the same as tables to read.

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

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number, numbers
from neurotally.analysis.masking.judgement import MIN_DOCUMENTS
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
from neurotally.analysis.result import model_key
from neurotally.analysis.text_table import signed, text_table

LOSSES_SCHEMA = 1
LEVEL = 1.96
"""A set whose z over both controls is as large costs more than random: by chance, 1 in 40 does."""
COSTS_MORE = {True: "yes", False: "no", None: "-"}
_FEW_DOCUMENTS = 10

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
    return {
        **_head(losses),
        "corpora": names,
        "baseline": numbers(loss_C),
        "change": _matrix(changes, lambda one: one.change.value),
        "standard_error": _matrix(changes, lambda one: one.change.error),
        **_controls(changes),
        "random_candidates": _candidates(losses, over_candidates),
        "z_stricter": _nested(np.minimum(_z(changes), _z(over_candidates))),
        "verdict": {
            name: _verdict(name, changes[row][row], over_candidates[row][row]) for row, name in enumerate(names)
        },
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
    names, over = document["corpora"], document["random_candidates"] or {}
    perplexity = [f"{value:.2f}" if value is not None else "-" for value in document["perplexity"]]
    rows = [
        [name, f"{document['documents'][at]:,}", f"{document['tokens'][at]:,}", perplexity[at],
         f"{document['neurons'][name]:,}", signed(document["change"][at][at]),
         signed(document["change_over_random"][at][at]), signed(document["z"][at][at], 1),
         signed(over["change_over_random"][at][at] if over else None), signed(over["z"][at][at] if over else None, 1),
         COSTS_MORE[document["verdict"][name]["costs_more"]]]
        for at, name in enumerate(names)
    ]  # fmt: skip
    header = ("corpus", "documents", "tokens", "perplexity", "neurons off", "own change", "over same layers", "z",
              "over above threshold", "z", "more than random")  # fmt: skip
    blocks = [_title(document), text_table(header, rows), "\n".join(verdict_lines(document))]
    squares = [
        ("change, nats per token", document["change"], 3),
        ("change over random neurons of the same layers, nats per token", document["change_over_random"], 3),
        ("change over random neurons above the threshold, nats per token", over.get("change_over_random", []), 3),
        ("z of the change over random neurons, the smaller of both controls'", document["z_stricter"], 1),
    ]
    for what, values, decimals in squares:
        if _has_numbers(values):
            blocks.append(f"{what}; row: switched off, column: text\n{_square(values, names, decimals)}")
    return "\n\n".join([*(block for block in blocks if block), "\n".join(_notes(document))])


def verdict_lines(document: Mapping[str, Any]) -> list[str]:
    """Which sets cost their own text more than both kinds of random neurons, which don't, and which can't be judged."""
    if not document["draws"] or not document["verdict"]:
        return []
    by_answer: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for name, one in document["verdict"].items():
        by_answer[one["costs_more"]].append(name)
    more, not_more, not_judged = by_answer.values()
    number, verdict = len(more) + len(not_more), document["verdict"]
    lines = [
        f"{len(more)} of {number} sets cost their own text more than random neurons of the same layers and random "
        f"neurons above the threshold, z ≥ {LEVEL} over both (by chance at most {number / 40:.2g} would): "
        f"{', '.join(more) or 'none'}"
    ] if number else []  # fmt: skip
    if not_more:
        each = [f"{name} ({_both(verdict[name])})" for name in not_more]
        lines.append(f"not more than random: {', '.join(each)}")
    if not_judged:
        lines.append(f"can't be judged: {_by_reason({name: verdict[name]['not_judged'] for name in not_judged})}")
    return lines


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
        "verdict": _verdicts(losses),
        "polysemantic": _polysemantic(losses),
    }  # fmt: skip


def mask_table(document: Mapping[str, Any]) -> str:
    """The document as text: by concept and class, by corpus, and what polysemantic neurons cost other concepts."""
    blocks = [_title(document), *(["\n".join(lines)] if (lines := verdict_lines(document)) else [])]
    header = (
        "switched off", "on", "documents", "tokens", "perplexity before", "change", "error", "random, same layers", "z",
        "random, above threshold", "z", "top-1",
    )  # fmt: skip
    for part, what in (("concepts", "tokens of concepts, over all corpora"), ("corpora", "all tokens, by corpus")):
        rows = [
            [label, " ".join(where), f"{base['documents']:,}", f"{base['tokens']:,}", _plain(base["perplexity"], 2),
             signed(one["change"], 4), _plain(one["standard_error"], 4), signed(one["random"], 4),
             signed(one["z"], 1), signed((one["candidates"] or {}).get("random"), 4),
             signed((one["candidates"] or {}).get("z"), 1), _percent(one["accuracy_change"])]
            for label, effect in not_empty(document).items()
            for (where, one), (_, base) in zip(_leaves(effect[part]), _leaves(document["baseline"][part]), strict=True)
        ]  # fmt: skip
        if rows:
            blocks.append(f"{what}\n{text_table(header, rows)}")
    if document["polysemantic"]:
        rows = [
            [one["set"], one["concept"], f"{one['neurons']:,}", signed(one["masked"], 4), signed(one["spared"], 4),
             signed(one["difference"], 4), _plain(one["standard_error"], 4)]
            for one in document["polysemantic"]
        ]  # fmt: skip
        head = ("switched off", "tokens of", "polysemantic", "change", "without them", "difference", "error")
        blocks.append(f"what polysemantic neurons cost\n{text_table(head, rows)}")
    return "\n\n".join([*blocks, "\n".join(_notes(document))])


def not_empty(document: Mapping[str, Any]) -> dict[str, Any]:
    """The effects of `mask`'s document without those of sets that have no neuron."""
    empty = {name for name, one in document["sets"].items() if not one["neurons"]}
    return {label: effect for label, effect in document["effects"].items() if label not in empty}


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
            [numbers(one.draws[draw] if one.draws else np.nan for one in row) for row in changes]
            for draw in range(num_draws)
        ],
        "random_spread": _matrix(changes, lambda one: one.spread),
        "change_over_random": _matrix(changes, lambda one: one.over_random.value),
        "change_over_random_standard_error": _matrix(changes, lambda one: one.over_random.error),
        "in_standard_errors": _matrix(changes, lambda one: in_errors(one.over_random)),
        "in_standard_errors_with_draws": _matrix(
            changes, lambda one: in_errors(Ratio(one.over_random.value, one.over_random_error_with_draws))
        ),
        "z": _nested(_z(changes)),
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
        "z": number(z[0]),
        "z_candidates": number(z[1]),
        "z_stricter": number(stricter),
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
        "tokens": cell.tokens, "documents": cell.documents, "loss": number(loss), "perplexity": number(np.exp(loss)),
        "accuracy": number(accuracy),
    }  # fmt: skip


def _effect(losses: Losses, cell: Cell, name: str, kind: str) -> dict[str, Any]:
    """What a set does to a cell, beside its controls; a spared set has none of its size."""
    own = losses.numbers(kind, name)[0]
    controls = [losses.control(control, name) if kind == "specific" else NO_CONTROL for control in CONTROLS]
    one, beside = (change(cell, own, control) for control in controls)
    loss, _ = baseline(cell)
    return {
        "change": number(one.change.value),
        "standard_error": number(one.change.error),
        **_over(one),
        "candidates": _over(beside) if kind == "specific" else None,
        "z_stricter": number(np.minimum(one.judgement.z, beside.judgement.z)),
        "perplexity": number(np.exp(loss + one.change.value)),
        "accuracy_change": number(one.accuracy.value),
        "accuracy_standard_error": number(one.accuracy.error),
    }


def _over(one: Change) -> dict[str, Any]:
    """A change beside a control."""
    return {
        "random": number(one.random),
        "random_draws": numbers(one.draws),
        "random_spread": number(one.spread),
        "change_over_random": number(one.over_random.value),
        "change_over_random_standard_error": number(one.over_random.error),
        "in_standard_errors": number(in_errors(one.over_random)),
        "z": number(one.judgement.z),
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
                "masked": number(change(cell, whole).change.value),
                "spared": number(change(cell, spared[0]).change.value),
                "difference": number(apart.value),
                "standard_error": number(apart.error),
            })  # fmt: skip
    return found


def _z(rows: Rows) -> np.ndarray:
    return _values(rows, lambda one: one.judgement.z)


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
    cells = [[name, *(signed(value, decimals) for value in row)] for name, row in zip(names, rows, strict=True)]
    return text_table(("", *names), cells)


def _title(document: Mapping[str, Any]) -> str:
    model = (document["model"] or {}).get("id") or "a model"
    return f"losses of {model} with neurons switched off ({document['how']})"


def _notes(document: Mapping[str, Any]) -> list[str]:
    draws = document["draws"]
    notes = [
        f"errors are over documents; random: as many neurons in every layer, mean of {draws} draws; above the "
        "threshold: as many neurons of each layer that are above LAPE's threshold",
        "z counts both the documents and the spread of the draws: beyond ±1.96 lie 5 % of cells by chance",
    ] if draws else ["errors are over documents; nothing random to compare with was drawn (--draws 0)"]  # fmt: skip
    notes += control_notes(document)
    documents = document.get("documents") or [base["documents"] for base in document["baseline"]["corpora"].values()]
    if min(documents, default=0) < _FEW_DOCUMENTS:
        notes.append(
            f"some corpora have fewer than {_FEW_DOCUMENTS} documents: their errors are rough, and left out below "
            f"{MIN_DOCUMENTS}"
        )
    if document["left_out"]:
        notes.append(f"{document['left_out']:,} documents that chose the neurons are left out")
    if document["forced"]:
        notes.append(f"{document['forced']:,} documents that chose the neurons are in (--force): the changes flatter")
    return notes


def control_notes(document: Mapping[str, Any]) -> list[str]:
    """What isn't as it should be about the sets and their controls."""
    notes, controls = [], document["controls"]
    numbers_off = document.get("neurons") or {name: one["neurons"] for name, one in document["sets"].items()}
    if empty := [name for name, number_off in numbers_off.items() if not number_off]:
        notes.append(f"no neuron to switch off: {', '.join(empty)}")
    if anywhere := [name for name, one in controls.items() if one["candidates_drawn_from"] == "all layers"]:
        notes.append(
            f"above the threshold of any layer, since some layers have too few: the controls of {', '.join(anywhere)}"
        )
    for control, what in (("random", "of the same layers"), ("candidates", "above the threshold")):
        without = {name: one[control] for name, one in controls.items() if one[control] and name not in empty}
        if without and document["draws"]:
            notes.append(f"no random neurons {what} to judge by for {_by_reason(without)}")
    return notes


def _by_reason(reasons: Mapping[str, str]) -> str:
    """Names with their reasons, each reason once."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(of)} ({reason})" for reason, of in names.items())


def _both(one: Mapping[str, Any]) -> str:
    return f"z {signed(one['z'], 1)} over the same layers, {signed(one['z_candidates'], 1)} above the threshold"


def _plain(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.2f} %"
