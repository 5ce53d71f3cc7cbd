"""What switching neurons off costs: the losses that `ablate` and `mask` measured, judged, as tables and heat maps.

The documents are those of `losses_document`. Shown first is what each set costs its own text: the corpus it is called
after, or the matches of its concept, beside as many random neurons of the same layers, and of those above LAPE's
threshold.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from neurotally.analysis.masking.judgement import MIN_DOCUMENTS
from neurotally.analysis.masking.losses import FAMILY, Losses, read_losses
from neurotally.analysis.masking.losses_document import LEVEL, ablation_document, mask_document
from neurotally.analysis.options import GroupName, Option
from neurotally.analysis.parts import Cell, Chart, Column, Grid, Table, Value, matrix
from neurotally.analysis.render.numbers import number_text
from neurotally.analysis.result import Result, model_name
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError

Form = Literal["ablate", "mask"]
Rows = list[list[Cell]]

_TITLES: Mapping[Form, tuple[str, str, str]] = {
    "ablate": (
        "Ablation",
        "How much worse the model reads each corpus when another's, or its own, specific neurons are switched off",
        "What switching off each corpus's neurons costs",
    ),
    "mask": (
        "Masked neurons",
        "How much worse the model reads text, and the tokens of each concept, with named sets of neurons switched off",
        "What switching off sets of neurons costs",
    ),
}
"""Of the section, the lead, and of the figure."""
_COSTS_MORE = {True: "yes", False: "no", None: "-"}
_FEW_DOCUMENTS = 10
_FULL_Z = 4.0
"""No smaller z has the fullest colour: what chance gives looks pale."""
_OVER = ("change_over_random", "change_over_random_standard_error")
_MEASURED = [
    Column("documents", "count"), Column("tokens", "count"), Column("perplexity", "number", 2),
    Column("change", "signed", 4), Column("over same layers", "signed", 4), Column("z same layers", "signed", 1),
    Column("over above threshold", "signed", 4), Column("z above threshold", "signed", 1),
]  # fmt: skip

_MAPS = {
    "change": ("Change of the loss", False, "change", "standard_error"),
    "same-layers": ("Change over random neurons of the same layers", False, *_OVER),
    "above-threshold": ("Change over random neurons above the threshold", True, *_OVER),
    "z": ("z, the smaller of both", False, "z_stricter", ""),
    "z-same-layers": ("z over random neurons of the same layers", False, "z", ""),
    "z-above-threshold": ("z over random neurons above the threshold", True, "z", ""),
    "perplexity": ("Change of the perplexity", False, "perplexity_change", ""),
}
"""What is shown of every effect: title, whether it is beside candidates, keys of the value and of its error."""

ShownEffect = Mapping[str, Value]
"""Of a set on some tokens: a value by each name of `_MAPS`."""
ShownEffects = Mapping[str, Mapping[str, ShownEffect]]
"""By set and by what the tokens are of."""


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
    others = [one for one in losses.specific if one not in losses.corpora]
    if (form or ("mask" if losses.concepts or others else "ablate")) == "mask":
        return mask_result(losses, name)
    if others:
        raise InputError(f"--form ablate: {FAMILY}/{name} has a set {others[0]!r}, but no corpus of this name")
    return ablation_result(losses, name)


def sections(store: Path) -> list[dict[str, Any]]:
    """One for every group of losses."""
    return [{"name": name} for name in stores.committed(store, FAMILY)]


def ablation_result(losses: Losses, name: str = "ablate") -> Result:
    """Each corpus's own neurons, and what it loses without them; every corpus's to every other one's text in full."""
    document = ablation_document(losses)
    names, over = document["corpora"], document["random_candidates"] or {}
    effects = {
        off: {text: _shown(_at(document, row, column), _at(over, row, column)) for column, text in enumerate(names)}
        for row, off in enumerate(names)
    }
    own: Rows = []
    for at, corpus in enumerate(names):
        base = {key: document[key][at] for key in ("documents", "tokens", "perplexity")}
        costs_more = _COSTS_MORE[document["verdict"][corpus]["costs_more"]]
        own.append([corpus, document["neurons"][corpus], *_measured(base, effects[corpus][corpus]), costs_more])
    head = [Column("corpus"), Column("neurons off", "count"), *_MEASURED, Column("more than random")]
    title = "What each corpus's own held-out text loses without its neurons, nats per token"
    cells = [effect for of in effects.values() for effect in of.values()]
    known = [what for what in _MAPS if what == "change" or any(cell[what].value is not None for cell in cells)]
    tables = [Table("own", title, head, own), *(_square(effects, what) for what in known)]
    grids = [_grid(_MAPS[what][0], effects, what) for what in known if what != "perplexity"]
    return _result("ablate", losses, name, document, tables, grids)


def mask_result(losses: Losses, name: str = "mask") -> Result:
    """Each set on its own text; on every concept's tokens and on every corpus in full."""
    document = mask_document(losses)
    baseline, concepts, corpora = document["baseline"], document["concepts"], document["corpora"]
    empty = [name for name, one in document["sets"].items() if not one["neurons"]]
    effects = {label: effect for label, effect in document["effects"].items() if label not in empty}
    own: Rows = []
    by_concept: Rows = []
    by_corpus: Rows = []
    for label, effect in effects.items():
        of_concept = {
            concept: [
                _effect_row(document, label, f"{concept} {kind}", baseline["concepts"][concept][kind], one)
                for kind, one in effect["concepts"][concept].items()
            ]
            for concept in sorted(concepts, key=lambda concept: concept != label)
        }
        of_corpus = {
            corpus: _effect_row(document, label, corpus, baseline["corpora"][corpus], effect["corpora"][corpus])
            for corpus in corpora
        }
        by_concept += [row for rows in of_concept.values() for row in rows]
        by_corpus += of_corpus.values()
        if label in document["verdict"]:
            own += of_concept.get(label) or [of_corpus[label]]
    head = [Column("switched off"), Column("on"), *_MEASURED, Column("top-1", "share", 2), Column("more than random")]
    tables = [
        Table("own", "What a set costs its own text, nats per token", head, own),
        Table("concepts", "On tokens of concepts, over all corpora", head, by_concept, is_long=True),
        Table("corpora", "On all tokens, by corpus", head, by_corpus, is_long=bool(own)),
        _polysemantic_table(document),
    ]  # fmt: skip
    return _result("mask", losses, name, document, tables, _mask_grids(document, list(effects)))


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
    form: Form, losses: Losses, name: str, document: dict[str, Any], tables: Sequence[Table], grids: Sequence[Grid]
) -> Result:
    heading, lead, title = _TITLES[form]
    found = findings(document)
    chart = Chart("losses", f"{title} ({document['how']})", grids, num_columns=min(3, len(grids)), notes=found)
    return Result(
        "losses", document, f"{lead}: losses of {model_name(losses.model)} ({name})", tables, [chart],
        _notes(document), findings=found, title=heading if name == form else f"{heading}: {name}",
        anchor=f"{FAMILY}-{name}", model=model_name(losses.model),
    )  # fmt: skip


def _at(matrices: Mapping[str, Any], row: int, column: int) -> dict[str, float | None]:
    """One effect, of the matrices in `ablate`'s document."""
    keys = {key for _, _, value, error in _MAPS.values() for key in (value, error)}
    return {key: matrices[key][row][column] for key in keys & matrices.keys()}


def _shown(one: Mapping[str, Any], candidates: Mapping[str, Any] | None) -> ShownEffect:
    """Of an effect in a document, and of its part beside candidates."""
    shown = {}
    for what, (_, is_beside_candidates, key, error) in _MAPS.items():
        of = (candidates or {}) if is_beside_candidates else one
        shown[what] = Value(of.get(key), of.get(error))
    return shown


def _measured(base: Mapping[str, Any], effect: ShownEffect) -> list[Cell]:
    """The cells of `_MEASURED`."""
    return [base["documents"], base["tokens"], base["perplexity"], effect["change"], effect["same-layers"],
            effect["z-same-layers"].value, effect["above-threshold"], effect["z-above-threshold"].value]  # fmt: skip


def _square(effects: ShownEffects, what: str) -> Table:
    """Sets by text."""
    number = Column("", "signed", 1 if what.startswith("z") else 4)
    values = [[effect[what] for effect in of.values()] for of in effects.values()]
    return matrix(what, _MAPS[what][0], "off \\ text", list(effects), values, number, look="signed")


def _grid(title: str, effects: ShownEffects, what: str, column_label: str = "text of corpus") -> Grid:
    """A heat map, each set's own text framed."""
    rows, columns = list(effects), list(next(iter(effects.values())))
    cells = [[effect[what] for effect in of.values()] for of in effects.values()]
    most = max((abs(cell.value) for of in cells for cell in of if cell.value is not None), default=0.0)
    is_z = what.startswith("z")
    return Grid(
        title, rows, columns, [[cell.value for cell in of] for of in cells], row_label="neurons switched off",
        column_label=column_label, scale="z" if is_z else "nats per token", is_signed=True,
        high=max(_FULL_Z, most) if is_z else None, digits=1 if is_z else None,
        framed=[(row, columns.index(name)) for row, name in enumerate(rows) if name in columns],
        errors=[[cell.error for cell in of] for of in cells],
    )  # fmt: skip


def _effect_row(
    document: Mapping[str, Any], label: str, on: str, base: Mapping[str, Any], one: Mapping[str, Any]
) -> list[Cell]:
    verdict = document["verdict"].get(label, {})
    costs_more = _COSTS_MORE[verdict["costs_more"]] if verdict.get("on") == on else ""
    return [label, on, *_measured(base, _shown(one, one["candidates"])), one["accuracy_change"], costs_more]


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
    names = [name for name in labels if name in document["sets"]] or list(document["sets"])
    on_matches, on_corpora = {}, {}
    for name in names:
        of = document["effects"][name]
        on_corpora[name] = {corpus: _shown(one, one["candidates"]) for corpus, one in of["corpora"].items()}
        matches = {concept: one["match"] for concept, one in of["concepts"].items()}
        on_matches[name] = {concept: _shown(one, one["candidates"]) for concept, one in matches.items()}
    grids = []
    for where, effects in (("matches of concepts", on_matches), ("all tokens", on_corpora)):
        for what in ("same-layers", "above-threshold", "z") if document["draws"] else ("change",):
            title = _MAPS[what][0].replace("Change over random neurons", "over random")
            grids.append(_grid(f"{where}: {title}", effects, what, where))
    return [grid for grid in grids if grid.columns]


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
        notes.append(
            f"{document['forced']:,} documents that chose the neurons are in (--force): their effects are biased upward"
        )
    return notes


def _control_notes(document: Mapping[str, Any]) -> list[str]:
    """What isn't as it should be about the sets and their controls."""
    notes, controls = [], document["controls"]
    numbers_off = document.get("neurons") or {name: one["neurons"] for name, one in document["sets"].items()}
    if empty := [name for name, number_off in numbers_off.items() if not number_off]:
        notes.append(f"no neuron to switch off: {', '.join(empty)}")
    if any(one.get("random_drawn_from") == "networks" for one in controls.values()):
        notes.append("random neurons of the same layers are of the same networks or experts, too")
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
