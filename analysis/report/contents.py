"""What a store is made of, as results: its corpora, and where it comes from."""

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from neurotally.analysis.concat_rows import concat_note, corpus_concat_rows
from neurotally.analysis.languages.counts import unfinished_corpora
from neurotally.analysis.parts import Cell, Column, Table
from neurotally.analysis.result import Result
from neurotally.profiler import store
from neurotally.profiler.visible import visible

FAMILIES = ("loss", "embeddings", "lens")
"""Of groups beside the corpora."""
_NUMBERS = ("duplicates", "tokens", "special_tokens", "bytes", "units")


def provenance(path: Path) -> Result:
    """The model, the settings and the versions that made the store."""
    attributes = store.store_attributes(path)
    model = dict(attributes.get("model") or {})
    config = model.pop("config", {})
    groups = {
        "Model": model or {"model": "none: the counts were imported"},
        "Model config": config,
        "Tokenizer": attributes.get("tokenizer") or {},
        "Settings": attributes.get("config") or {},
        "Versions": attributes.get("versions") or {},
        "Store": {"name": path.resolve().name, "schema": attributes.get("schema"), **_dates(path)},
        "Other passes": _passes(path),
    }
    tables = [_facts(title, values) for title, values in groups.items() if values]
    lead = "The model, the settings and the versions that made this store."
    return Result("provenance", {}, lead, tables, title="Where it comes from")


def corpora(path: Path) -> Result:
    """One row a corpus: what was read, and what was not."""
    found = store.family_attributes(path, "corpora")
    columns = [Column("corpus"), Column("documents", "count"), Column("skipped"),
               *(Column(name.replace("_", " "), "count") for name in _NUMBERS), Column("source"),
               Column("finished (UTC)")]  # fmt: skip
    skipped: list[list[Cell]] = [
        [name, visible(str(document))] for name, of in found.items() for document in of.get("skipped_documents") or []
    ]
    tables = [
        Table("corpora", "Finished corpora", columns, [_corpus_row(name, of) for name, of in found.items()]),
        Table("skipped", f"Skipped documents ({len(skipped):,} named)", [Column("corpus"), Column("document")], skipped,
              is_long=True),
    ]  # fmt: skip
    root = store.store_attributes(path).get("versions")
    notes = [f"{name}: unfinished, so not in this report" for name in unfinished_corpora(path)]
    for name, of in found.items():
        if restarted := of.get("restarted_units"):
            notes.append(f"{name}: {len(restarted):,} units were computed in smaller batches, since memory ran out")
        if (beyond := corpus_concat_rows(path, name)) is not None:
            notes.append(concat_note(name, beyond, of["tokens"]))
        if differing := _differing(root, of):
            notes.append(f"{name}: made with {differing}")
    tokens = sum(int(of.get("tokens") or 0) for of in found.values())
    lead = f"{len(found)} corpora of {tokens:,} tokens; each was read once."
    return Result("corpora", {}, lead, tables if found else [], notes=notes, title="Corpora")


def _facts(title: str, values: Mapping[str, Any]) -> Table:
    rows: list[list[Cell]] = [
        [name.replace("_", " "), "–" if value is None else str(value)] for name, value in values.items()
    ]
    return Table(title, title, [Column("name"), Column("value")], rows, look="facts")


def _dates(path: Path) -> dict[str, str]:
    """When the corpora were read."""
    attributes = store.family_attributes(path, "corpora").values()
    ends = {
        "first corpus started, UTC": min((of["started"] for of in attributes if of.get("started")), default=None),
        "last corpus finished, UTC": max((of["finished"] for of in attributes if of.get("finished")), default=None),
    }
    return {name: _date(when) for name, when in ends.items() if when}


def _passes(path: Path) -> dict[str, str]:
    """The groups of the passes beside the neuron pass, and when and where they were made."""
    return {
        f"{family}/{name}": f"{_date(of.get('finished'))} UTC, {of.get('device', '–')}"
        for family in FAMILIES
        for name, of in store.family_attributes(path, family).items()
    }


def _date(seconds: float | None) -> str:
    if not seconds:
        return "–"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _corpus_row(name: str, of: Mapping[str, Any]) -> list[Cell]:
    skipped = of.get("skipped") or {}
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())
    total = f"{sum(skipped.values()):,}" + (f" ({reasons})" if reasons else "")
    source = ":".join(str(part) for part in (of.get("source"), of.get("selector")) if part) or "–"
    return [name, of.get("documents"), total, *(of.get(key) for key in _NUMBERS), source, _date(of.get("finished"))]


def _differing(root: Mapping[str, str] | None, of: Mapping[str, Any]) -> str:
    """The versions of a corpus that aren't the store's."""
    theirs = of.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in theirs.items() if root and root.get(name) != version)
