"""What switching neurons off costs: the losses that `ablate` and `mask` measured, judged, as tables and heat maps.

The documents are those of `losses_document`. Shown first is what each set costs its own text: the corpus it is called
after, or the matches of its concept, beside as many random neurons of the same layers, and of those above LAPE's
threshold.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from neurotally.analysis.masking.judgement import MIN_DOCUMENTS
from neurotally.analysis.masking.losses import FAMILY, Losses, read_losses
from neurotally.analysis.masking.losses_document import LEVEL, ablation_document, mask_document
from neurotally.analysis.options import GroupName, Option
from neurotally.analysis.render.numbers import number_text
from neurotally.analysis.result import Cell, Chart, Column, Grid, Result, Table, Value, model_name
from neurotally.profiler import store as stores

Form = Literal["ablate", "mask"]
Rows = list[list[Cell]]
Squares = Sequence[Sequence[float | None]]

_SAME_LAYERS, _ABOVE = "random neurons of the same layers", "random neurons above the threshold"
_COSTS_MORE = {True: "yes", False: "no", None: "-"}
_FEW_DOCUMENTS = 10
_FULL_Z = 4.0
"""No smaller z has the fullest colour: what chance gives looks pale."""
_MEASURED = [
    Column("documents", "count"),
    Column("tokens", "count"),
    Column("perplexity", "number", 2),
    Column("change", "signed", 4),
    Column("over same layers", "signed", 4),
    Column("z same layers", "signed", 1),
    Column("over above threshold", "signed", 4),
    Column("z above threshold", "signed", 1),
]


def study(
    store: Path,
    name: GroupName = "ablate",
    form: Annotated[
        Form | None, Option("As `ablate` says it or as `mask` does; left out: by what was switched off.")
    ] = None,
) -> Result:
    """What switching neurons off costs: the losses that `ablate` and `mask` left in the store, with no model loaded.

    Example:
      neurotally losses llama.store --name ablate --figure ablation.png

    >>> store.losses("ablate").frame("own")["corpus"].tolist()
    ['a', 'b']
    """
    losses = read_losses(store, name)
    is_square = not losses.concepts and set(losses.specific) <= set(losses.corpora)
    build = ablation_result if (form or ("ablate" if is_square else "mask")) == "ablate" else mask_result
    return build(losses, name)


def sections(store: Path) -> list[dict[str, Any]]:
    """One for every group of losses."""
    return [{"name": name} for name in stores.committed(store, FAMILY)]


def ablation_result(losses: Losses, name: str = "ablate") -> Result:
    """Each corpus's own neurons, and what they are worth to it; every corpus's to every other one's text in full."""
    document = ablation_document(losses)
    names, draws = document["corpora"], document["draws"]
    over = document["random_candidates"] or {}
    none: Squares = [[None] * len(names)] * len(names)
    of_same = document["change_over_random"], document["change_over_random_standard_error"], document["z"]
    of_above = [over.get(key, none) for key in ("change_over_random", "change_over_random_standard_error", "z")]
    own: Rows = [
        [corpus, document["neurons"][corpus], document["documents"][at], document["tokens"][at],
         document["perplexity"][at], Value(document["change"][at][at], document["standard_error"][at][at]),
         *_beside(of_same, at), *_beside(of_above, at), _COSTS_MORE[document["verdict"][corpus]["costs_more"]]]
        for at, corpus in enumerate(names)
    ]  # fmt: skip
    head = [Column("corpus"), Column("neurons off", "count"), *_MEASURED, Column("more than random")]
    title = "What each corpus's neurons are worth to its own held-out text, nats per token"
    maps = [("change", "Change of the loss", document["change"], document["standard_error"])]
    if draws:
        maps += [
            ("same-layers", f"Change over {_SAME_LAYERS}", *of_same[:2]),
            ("above-threshold", f"Change over {_ABOVE}", *of_above[:2]),
            ("z", "z, the smaller of both", document["z_stricter"], ()),
            ("z-same-layers", f"z over {_SAME_LAYERS}", document["z"], ()),
            ("z-above-threshold", f"z over {_ABOVE}", of_above[2], ()),
        ]
    maps = maps[:1] + [one for one in maps[1:] if any(value is not None for row in one[2] for value in row)]
    more = ("perplexity", "Change of the perplexity", document["perplexity_change"], ())
    tables = [Table("own", title, head, own), *(_square(names, *one) for one in [*maps, more])]
    grids = [_grid(title, names, names, values, errors, key.startswith("z")) for key, title, values, errors in maps]
    return _result(
        losses, name, document, tables, grids, f"What switching off each corpus's neurons costs ({document['how']})",
        "How much worse the model reads each corpus when another's, or its own, specific neurons are switched off",
        "Ablation",
    )  # fmt: skip


def mask_result(losses: Losses, name: str = "mask") -> Result:
    """Each set on its own text; on every concept's tokens and on every corpus in full."""
    document = mask_document(losses)
    baseline, concepts, corpora = document["baseline"], document["concepts"], document["corpora"]
    effects = {label: effect for label, effect in document["effects"].items() if _is_there(document, label)}
    by_corpus = [
        _effect_row(document, label, corpus, baseline["corpora"][corpus], effect["corpora"][corpus])
        for label, effect in effects.items()
        for corpus in corpora
    ]
    by_concept = {
        (label, concept): [
            _effect_row(document, label, f"{concept} {kind}", baseline["concepts"][concept][kind], one)
            for kind, one in effect["concepts"][concept].items()
        ]
        for label, effect in effects.items()
        for concept in sorted(concepts, key=lambda concept: concept != label)
    }
    own = [
        row
        for label in effects
        if label in document["verdict"]
        for row in by_concept.get((label, label)) or [row for row in by_corpus if row[:2] == [label, label]]
    ]
    head = [Column("switched off"), Column("on"), *_MEASURED, Column("top-1", "share", 2), Column("more than random")]
    tables = [
        Table("own", "What each set is worth to its own text, nats per token", head, own),
        Table("concepts", "On tokens of concepts, over all corpora", head,
              [row for rows in by_concept.values() for row in rows], is_long=True),
        Table("corpora", "On all tokens, by corpus", head, by_corpus, is_long=bool(own)),
        _polysemantic_table(document),
    ]  # fmt: skip
    return _result(
        losses, name, document, tables, _mask_grids(document, list(effects)),
        f"What switching off sets of neurons costs ({document['how']})",
        "How much worse the model reads text, and the tokens of each concept, with named sets of neurons switched off",
        "Masked neurons",
    )  # fmt: skip


def findings(document: Mapping[str, Any]) -> list[str]:
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
        lines.append(f"not more than random: {', '.join(f'{name} ({_both(verdict[name])})' for name in not_more)}")
    if not_judged:
        lines.append(f"can't be judged: {_by_reason({name: verdict[name]['not_judged'] for name in not_judged})}")
    return lines


def _result(
    losses: Losses, name: str, document: dict[str, Any], tables: Sequence[Table], grids: Sequence[Grid], title: str,
    about: str, heading: str,
) -> Result:  # fmt: skip
    found = findings(document)
    chart = Chart("losses", title, grids, num_columns=min(3, len(grids)), notes=found)
    usual = {"Ablation": "ablate", "Masked neurons": "mask"}[heading]
    return Result(
        "losses", document, f"{about}: losses of {model_name(losses.model)} ({name})", tables, [chart],
        _notes(document), findings=found, title=heading if name == usual else f"{heading}: {name}",
        anchor=f"{FAMILY}-{name}", model=model_name(losses.model),
    )  # fmt: skip


def _beside(control: Sequence[Squares], at: int) -> list[Cell]:
    """A set on its own text, beside a control: the change over it, and z."""
    over, error, z = control
    return [Value(over[at][at], error[at][at]), z[at][at]]


def _square(names: Sequence[str], key: str, title: str, values: Squares, errors: Squares) -> Table:
    """Sets by text."""
    columns = [Column("off \\ text"), *(Column(name, "signed", 1 if key.startswith("z") else 4) for name in names)]
    rows: Rows = [
        [name, *(Value(value, errors[at][column] if errors else None) for column, value in enumerate(values[at]))]
        for at, name in enumerate(names)
    ]
    return Table(key, title, columns, rows, is_long=True, look="signed")


def _grid(
    title: str, rows: Sequence[str], columns: Sequence[str], values: Squares, errors: Squares, is_z: bool,
    column_label: str = "text of corpus",
) -> Grid:  # fmt: skip
    """A heat map, each set's own text framed."""
    own = [(row, columns.index(name)) for row, name in enumerate(rows) if name in columns]
    most = max((abs(value) for of in values for value in of if value is not None), default=0.0)
    return Grid(
        title, rows, columns, values, row_label="neurons switched off", column_label=column_label,
        scale="z" if is_z else "nats per token", is_signed=True, high=max(_FULL_Z, most) if is_z else None, framed=own,
        digits=1 if is_z else None, errors=errors,
    )  # fmt: skip


def _effect_row(
    document: Mapping[str, Any], label: str, on: str, base: Mapping[str, Any], one: Mapping[str, Any]
) -> list[Cell]:
    over = one["candidates"] or {}
    verdict = document["verdict"].get(label, {})
    return [
        label, on, base["documents"], base["tokens"], base["perplexity"], Value(one["change"], one["standard_error"]),
        Value(one["change_over_random"], one["change_over_random_standard_error"]), one["z"],
        Value(over.get("change_over_random"), over.get("change_over_random_standard_error")), over.get("z"),
        one["accuracy_change"], _COSTS_MORE[verdict["costs_more"]] if verdict.get("on") == on else "",
    ]  # fmt: skip


def _polysemantic_table(document: Mapping[str, Any]) -> Table:
    columns = [Column("switched off"), Column("tokens of"), Column("polysemantic", "count"),
               Column("change", "signed", 4), Column("without them", "signed", 4),
               Column("difference", "signed", 4)]  # fmt: skip
    rows: Rows = [
        [one["set"], one["concept"], one["neurons"], one["masked"], one["spared"],
         Value(one["difference"], one["standard_error"])]
        for one in document["polysemantic"]
    ]  # fmt: skip
    title = "What polysemantic neurons cost, on matches of concepts"
    return Table("polysemantic", title, columns, rows, is_long=True)


def _mask_grids(document: Mapping[str, Any], labels: Sequence[str]) -> list[Grid]:
    """The change over either control, and the smaller z, by set: on every concept's matches, and on every corpus."""
    effects, concepts, corpora = document["effects"], document["concepts"], document["corpora"]
    names = [name for name in labels if name in document["sets"]] or list(document["sets"])
    groups: list[tuple[str, Sequence[str], Callable[[str], list[Mapping[str, Any]]]]] = [
        ("all tokens", corpora, lambda name: [effects[name]["corpora"][one] for one in corpora])
    ]
    if concepts:
        groups.insert(0, ("matches of concepts", concepts, lambda name: [
            effects[name]["concepts"][one]["match"] for one in concepts
        ]))  # fmt: skip
    read: dict[str, Callable[[Mapping[str, Any]], tuple[float | None, float | None]]] = {
        "change": lambda one: (one["change"], one["standard_error"]),
        f"over {_SAME_LAYERS}": lambda one: (one["change_over_random"], one["change_over_random_standard_error"]),
        f"over {_ABOVE}": lambda one: (
            one["candidates"]["change_over_random"], one["candidates"]["change_over_random_standard_error"]
        ),
        "z, the smaller of both": lambda one: (one["z_stricter"], None),
    }  # fmt: skip
    wanted = list(read)[1:] if document["draws"] else ["change"]
    grids = []
    for where, columns, effects_of in groups:
        for what in wanted:
            pairs = [[read[what](one) for one in effects_of(name)] for name in names]
            values, errors = ([[pair[part] for pair in row] for row in pairs] for part in (0, 1))
            is_z = what.startswith("z")
            title = f"{where}: {what}".replace("random neurons", "random")
            grids.append(_grid(title, names, columns, values, () if is_z else errors, is_z, where))
    return grids


def _is_there(document: Mapping[str, Any], label: str) -> bool:
    """Whether it is a set that has a neuron; those without polysemantic ones always do."""
    return bool(document["sets"].get(label, {"neurons": 1})["neurons"])


def _notes(document: Mapping[str, Any]) -> list[str]:
    draws = document["draws"]
    notes = [
        f"nats per token; errors are standard errors over documents; random: the mean of {draws} draws of as many "
        "neurons, in every layer, or of each layer's that are above LAPE's threshold",
        "z counts both the documents and the spread of the draws: beyond ±1.96 lie 5 % of cells by chance",
    ] if draws else ["nats per token; nothing random to compare with was drawn (--draws 0)"]  # fmt: skip
    notes += _control_notes(document)
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


def _control_notes(document: Mapping[str, Any]) -> list[str]:
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
    z, z_candidates = (number_text(one[key], "signed", 1) for key in ("z", "z_candidates"))
    return f"z {z} over the same layers, {z_candidates} above the threshold"
