"""The sections of a report about what every store holds: where it comes from, its corpora, LAPE, profiles, overlap.

Each builder takes the `Material` and gives a `Section`, or None where the store has nothing of the kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neurotally.analysis.concat_rows import concat_note, corpus_concat_rows
from neurotally.analysis.languages.counts import CorpusCounts, read_group_counts, unfinished_corpora
from neurotally.analysis.languages.jackknife import ErrorBars, error_bars
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.rule import Rule
from neurotally.analysis.render.html import (
    Cell,
    Facts,
    Notes,
    Part,
    Section,
    Table,
    count,
    row_head,
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
