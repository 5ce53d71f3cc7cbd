"""The sections of a report about what every store holds: where it comes from, its corpora, LAPE, profiles, overlap.

Each builder takes the `Material` and gives a `Section`, or None where the store has nothing of the kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.concat_rows import concat_note, corpus_concat_rows
from neurotally.analysis.figures.charts import draw_layers
from neurotally.analysis.figures.sets import draw_error_bars, draw_profiles
from neurotally.analysis.languages.counts import CorpusCounts, read_group_counts, unfinished_corpora
from neurotally.analysis.languages.jackknife import ErrorBars, error_bars
from neurotally.analysis.languages.jackknife_report import error_bars_document
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.lape_report import candidates_warning, lape_document
from neurotally.analysis.languages.profiles import profiles_document
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.report.parts import (
    Cell,
    Facts,
    Notes,
    Part,
    Section,
    Table,
    count,
    draw_inline,
    real,
    row_head,
    square_matrix,
    word,
)
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.visible import visible

FAMILIES = ("loss", "embeddings", "lens")
"""Of groups beside the corpora."""


@dataclass(frozen=True, eq=False)
class Material:
    """What sections are made from, read once."""

    store: Path
    rule: Rule
    counts: CorpusCounts | None
    """None where LAPE can't be computed; `no_lape` says why."""
    selection: Selection | None
    bars: ErrorBars | None
    no_lape: str = ""
    no_bars: str = ""


def read_material(path: Path, rule: Rule) -> Material:
    """Read a store's counts and choose its neurons; InputError where there is no store."""
    store.store_attributes(path)
    try:
        groups = read_group_counts(path)
    except InputError as error:
        return Material(path, rule, None, None, None, no_lape=str(error))
    counts = groups.total()
    try:
        bars, no_bars = error_bars(groups), ""
    except InputError as error:
        bars, no_bars = None, str(error)
    return Material(path, rule, counts, rule.choose(counts), bars, no_bars=no_bars)


def provenance(material: Material) -> Section:
    """The model, the settings and the versions that made the store."""
    attributes = store.store_attributes(material.store)
    model = dict(attributes.get("model") or {})
    config = model.pop("config", {})
    groups = [
        Facts("Model", _facts(model) if model else [("model", "none: the counts were imported")]),
        Facts("Model config", _facts(config)),
        Facts("Tokenizer", _facts(attributes.get("tokenizer") or {})),
        Facts("Settings", _facts(attributes.get("config") or {})),
        Facts("Versions", _facts(attributes.get("versions") or {})),
        Facts("Store", [("path", str(material.store)), ("schema", str(attributes.get("schema"))), *_dates(material)]),
        Facts("Other passes", _passes(material)),
    ]
    lead = "The model, the settings and the versions that made this store."
    return Section("provenance", "Where it comes from", lead, [part for part in groups if part.rows])


def corpora(material: Material) -> Section | None:
    """One row a corpus: what was read, and what was not."""
    names = store.committed_corpora(material.store)
    if not names:
        return None
    found = {name: store.corpus_attributes(material.store, name) for name in names}
    header = ("corpus", "documents", "skipped", "duplicates", "tokens", "special tokens", "bytes", "units",
              "source", "finished (UTC)")  # fmt: skip
    rows = [_corpus_row(name, of) for name, of in found.items()]
    parts: list[Part] = [Table("Finished corpora", header, rows)]
    skipped = [
        [row_head(name), word(visible(str(document)))]
        for name, of in found.items()
        for document in of.get("skipped_documents") or []
    ]
    if skipped:
        caption = f"Skipped documents ({len(skipped):,} named)"
        parts.append(Table(caption, ("corpus", "document"), skipped, is_folded=True, is_searchable=True))
    notes = [f"{name}: unfinished, so not in this report" for name in unfinished_corpora(material.store)]
    notes += [
        f"{name}: {len(of['restarted_units']):,} units ran again after the machine was out of memory"
        for name, of in found.items()
        if of.get("restarted_units")
    ]
    notes += [
        concat_note(name, beyond, of["tokens"])
        for name, of in found.items()
        if (beyond := corpus_concat_rows(material.store, name)) is not None
    ]
    root = store.store_attributes(material.store).get("versions")
    notes += [f"{name}: made with {_differing(root, of)}" for name, of in found.items() if _differing(root, of)]
    parts += [Notes(notes)] if notes else []
    tokens = sum(int(of.get("tokens") or 0) for of in found.values())
    return Section("corpora", "Corpora", f"{len(names)} corpora of {tokens:,} tokens; each was read once.", parts)


def lape(material: Material) -> Section:
    """LAPE's sets, with error bars where the store has groups."""
    title = "Language-specific neurons (LAPE)"
    counts, selection, bars = material.counts, material.selection, material.bars
    if counts is None or selection is None:
        return Section("lape", title, "LAPE can't be computed from this store.", [Notes([material.no_lape])])
    document = lape_document(counts, selection)
    lead = (
        f"A neuron is a candidate of a corpus where it is active at more than {selection.bar:.6g} of the tokens; "
        f"chosen are {material.rule}. Exclusive neurons are specific to one corpus only."
    )
    parts: list[Part] = []
    if bars is None:
        rows = [_lape_row(document, name) for name in selection.corpora]
        parts = [Table("Specific neurons by corpus", _LAPE_HEADER, rows),
                 Notes([f"No error bars: {material.no_bars}"]),
                 draw_inline(lambda of: draw_layers(of["specific"], of["exclusive"], of["layers"]), document, "layers",
                             "Where each corpus's specific and exclusive neurons sit, layer by layer")]  # fmt: skip
    else:
        document["error_bars"] = error_bars_document(bars, selection)
        rows = [[*_lape_row(document, name), *_bars_row(document, name)] for name in selection.corpora]
        parts = [Table("Specific neurons by corpus, entropy and p as medians ± half of their interval",
                       (*_LAPE_HEADER, *_BARS_HEADER), rows),
                 Notes(_bars_notes(document["error_bars"])),
                 draw_inline(draw_error_bars, document, "error-bars",
                             "Half of each specific neuron's interval against its entropy, one panel a corpus: "
                             "below the grey line an interval ends before the set's highest entropy")]  # fmt: skip
    notes = [f"{name}: {n:,} more candidates tie with the last one chosen" for name, n in selection.num_tied_out.items()
             if n]  # fmt: skip
    notes += [f"{name}: no neuron passes the bar" for name in document["without_candidates"]]
    if warning := candidates_warning(selection):
        notes.insert(0, f"* {warning}")
    notes += [f"left out: {name} ({reason})" for name, reason in counts.left_out.items()]
    parts += [Notes(notes)] if notes else []
    return Section("lape", title, lead, parts)


def layer_profiles(material: Material) -> Section | None:
    """Where the chosen neurons sit."""
    if material.counts is None or material.selection is None:
        return None
    document = profiles_document(material.counts, material.rule, material.selection)
    by_layer = document["by_layer"]
    layers = range(document["layers"])
    specific = [
        [_layer(layer), *(Cell(f"{by_layer['specific'][name][layer]:,} / {by_layer['exclusive'][name][layer]:,}",
                               by_layer["specific"][name][layer]) for name in document["corpora"])]
        for layer in layers
    ]  # fmt: skip
    sharing = {m: of for m, of in by_layer["shared_by"].items() if m == "1" or any(of)}
    shared = [
        [_layer(layer), count(by_layer["distinct"][layer]), *(count(of[layer]) for of in sharing.values())]
        for layer in layers
    ]
    by_number = ("layer", "distinct", *("exclusive" if m == "1" else f"shared by {m}" for m in sharing))
    parts: list[Part] = [
        draw_inline(draw_profiles, document, "profiles",
                    "Chosen neurons by layer, stacked by how many corpora share them: all corpora, then each"),
        Table("Specific / exclusive neurons by layer and corpus", ("layer", *document["corpora"]), specific, True),
        Table("Chosen neurons by layer and by how many corpora share them", by_number, shared, is_folded=True),
    ]  # fmt: skip
    return Section(
        "profiles", "Profiles by layer", "Where the chosen neurons sit, from the input to the output.", parts
    )


def overlaps(material: Material) -> Section | None:
    """How many neurons every two corpora share."""
    if material.counts is None or material.selection is None:
        return None
    document = profiles_document(material.counts, material.rule, material.selection)
    names, overlap = document["corpora"], document["overlap"]
    jaccard_CC = np.array(overlap["jaccard"], dtype=np.float64)
    texts = [
        [f"{common:,}" if row == column else f"{real(jaccard_CC[row, column], '.2f').text} · {common:,}"
         for column, common in enumerate(of)]
        for row, of in enumerate(overlap["count"])
    ]  # fmt: skip
    caption = "Jaccard index · neurons in common; on the diagonal all specific neurons"
    lead = "How alike the sets of every two corpora are: 0 where they share no neuron, 1 where they are one."
    return Section("overlap", "Overlap", lead, [square_matrix(caption, "corpus", names, jaccard_CC, texts)])


_LAPE_HEADER = ("corpus", "tokens", "candidates", "only here", "specific", "exclusive")
_BARS_HEADER = ("entropy", "flagged", "p", "above the bar")


def _facts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), "–" if value is None else str(value)) for name, value in values.items()]


def _dates(material: Material) -> list[tuple[str, str]]:
    """When and on what the corpora were read."""
    attributes = [store.corpus_attributes(material.store, name) for name in store.committed_corpora(material.store)]
    started = [of["started"] for of in attributes if of.get("started")]
    finished = [of["finished"] for of in attributes if of.get("finished")]
    ends = (
        ("first corpus started, UTC", min(started, default=None)),
        ("last corpus finished, UTC", max(finished, default=None)),
    )
    return [(name, _date(when)) for name, when in ends if when]


def _passes(material: Material) -> list[tuple[str, str]]:
    """The groups of the passes beside the neuron pass, and when and where they were made."""
    groups = [f"{family}/{name}" for family in FAMILIES for name in store.committed(material.store, family)]
    found = {group: store.group_attributes(material.store, group) for group in groups}
    return [(group, f"{_date(of.get('finished'))} UTC, {of.get('device', '–')}") for group, of in found.items()]


def _date(seconds: float | None) -> str:
    if not seconds:
        return "–"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _corpus_row(name: str, of: Mapping[str, Any]) -> list[Cell]:
    skipped = of.get("skipped") or {}
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())
    total = sum(skipped.values())
    source = ":".join(str(part) for part in (of.get("source"), of.get("selector")) if part) or "–"
    return [
        row_head(name),
        _maybe_count(of.get("documents")),
        Cell(f"{total:,}" + (f" ({reasons})" if reasons else ""), total),
        *(_maybe_count(of.get(key)) for key in ("duplicates", "tokens", "special_tokens", "bytes", "units")),
        word(source),
        Cell(_date(of.get("finished")), of.get("finished")),
    ]


def _maybe_count(number: int | None) -> Cell:
    return Cell("–", None) if number is None else count(int(number))


def _differing(root: Mapping[str, str] | None, of: Mapping[str, Any]) -> str:
    """The versions of a corpus that aren't the store's."""
    theirs = of.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in theirs.items() if root and root.get(name) != version)


def _lape_row(document: Mapping[str, Any], name: str) -> list[Cell]:
    before = map(count, (document["tokens"][name], document["candidates"][name], document["sole_candidates"][name]))
    specific = count(len(document["specific"][name]))
    if name in document["too_few_candidates"]:
        specific = Cell(f"{specific.text}*", specific.value)
    return [row_head(name), *before, specific, count(len(document["exclusive"][name]))]


def _bars_row(document: Mapping[str, Any], name: str) -> list[Cell]:
    bars = document["error_bars"]
    of = bars["specific"][name]
    if not of["entropy"]:
        return [Cell("–", None)] * 4

    def median(key: str) -> float:
        return float(np.median(of[key]))

    return [
        real(median("entropy"), half=bars["entropy_t"] * median("entropy_standard_error")),
        count(sum(bool(flags) for flags in of["entropy_flags"])),
        real(median("probability"), half=bars["probability_t"][name] * median("probability_standard_error")),
        count(bars["above_bar"][name]),
    ]


def _bars_notes(bars: Mapping[str, Any]) -> list[str]:
    groups = " to ".join(str(number) for number in sorted({min(bars["groups"].values()), max(bars["groups"].values())}))
    flagged = ", ".join(f"{number:,} {flag}" for flag, number in bars["flagged"].items())
    notes = [
        f"{100 * bars['level']:g} % intervals by a jackknife over {groups} groups of each corpus. Flagged: entropies "
        "whose interval can't be trusted. Above the bar: neurons whose whole interval of p is.",
        f"Of {bars['active_neurons']:,} neurons that are ever active, flagged are: {flagged}.",
    ]
    empty = [f"{number} of {name}" for name, number in bars["empty_groups"].items() if number]
    return notes + ([f"Groups without a token, left out: {', '.join(empty)}."] if empty else [])


def _layer(layer: int) -> Cell:
    return Cell(str(layer), layer, is_row_head=True)
