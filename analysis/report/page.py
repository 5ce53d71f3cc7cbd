"""One page of all that a store holds: what every study says, the neurons to read, the corpora, where it comes from.

Which studies there are, and which sections each makes of a store, the registry tells. The page begins with what they
found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from neurotally.analysis import studies
from neurotally.analysis.keys.concepts import concepts_result, read_concepts_document
from neurotally.analysis.keys.texts import ANYWHERE, Texts
from neurotally.analysis.keys.triggers import gather_triggers
from neurotally.analysis.languages.lape import DEFAULT, Rule
from neurotally.analysis.options import Group, Option, parameters
from neurotally.analysis.progress import BARS, Progress
from neurotally.analysis.render.html import Section, page, section
from neurotally.analysis.report.contents import corpora, provenance
from neurotally.analysis.report.neurons import most_specific
from neurotally.analysis.report.neurons import neurons as neurons_section
from neurotally.analysis.result import Result, model_name
from neurotally.profiler import store as stores
from neurotally.profiler.buckets import on_disk
from neurotally.profiler.errors import InputError

_WITHOUT = "no error bars: "


@dataclass(frozen=True)
class Report:
    """A page."""

    html: str
    sections: Sequence[Section]
    notes: Sequence[str]
    """What could not be shown, or not as it should be."""


def report(
    store: Path,
    neurons: Annotated[
        int,
        Option("The N most specific neurons of every corpus, to read.", "N", 1, names=("--neurons", "--top-neurons")),
    ] = 20,
    triggers: Annotated[int, Option("The N largest triggers of each.", "N", 1, names=("--triggers", "--top"))] = 6,
    rule: Annotated[Rule, Group()] = DEFAULT,
    concepts: Annotated[Path | None, Option("What `concepts --out` wrote: shown, too.", "FILE.json")] = None,
    texts: Annotated[Texts, Group()] = ANYWHERE,
    progress: Progress = BARS,
) -> Report:
    """One HTML page of all that STORE holds, to read and to pass on: it needs no network and no other file.

    A summary, LAPE with error bars, profiles, overlaps, what other passes left in the store, every corpus's most
    specific neurons with their triggers, its corpora and where it comes from. Texts come from where `triggers` finds
    them.

    Example:
      neurotally report llama.store --out llama.html
    """
    stores.store_attributes(store)
    more, missing = [], ""
    known: dict[str, Result] = {}
    if concepts is not None:
        more.append(concepts_result(read_concepts_document(on_disk(concepts), store)))
    try:
        lape = known["lape"] = _result("lape", store, {**asdict(rule), "error_bars": True})
        found, missing = gather_triggers(store, texts, most_specific(lape.document, neurons), triggers, progress)
        more.append(neurons_section(lape.document, neurons, found, missing))
    except InputError as error:
        missing = str(error)
    return build_report(store, asdict(rule), more, [missing] if missing else [], progress, known)


def build_report(
    store: Path, settings: Mapping[str, Any], more: Sequence[Result] = (), notes: Sequence[str] = (),
    progress: Progress = BARS, known: Mapping[str, Result] = MappingProxyType({}),
) -> Report:  # fmt: skip
    """The page of a store. `settings` go to all studies that have such a parameter; `more` comes after them.

    `known`: what studies have said already.
    """
    sections: list[Section] = []
    findings: list[str] = []
    said: list[str] = []
    asked = list(_asked(store, settings))
    for name, wanted, own in progress.over(asked, "report", "section", len(asked)):
        try:
            result = known.get(name) or _result(name, store, {**wanted, **own})
        except InputError as error:
            if str(error) in said:
                continue
            said.append(str(error))
            result = Result(name, {}, "This can't be shown.", notes=[str(error)], title=studies.STUDIES[name].help,
                            anchor="-".join([name, *map(str, own.values())]))  # fmt: skip
        sections.append(section(result))
        findings += result.findings[:1]
        said += [note for note in result.notes if note.startswith(_WITHOUT)]
    sections += [section(result) for result in (*more, corpora(store), provenance(store)) if result.tables]
    title = model_name(stores.store_attributes(store).get("model"))
    said += [note for note in notes if not any(note in one for one in said)]
    return Report(page(title, _tiles(store), " ".join(findings), sections), sections, said)


def _asked(store: Path, settings: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """By study what all are asked for, error bars among it, and what tells its sections of this store apart."""
    for name, about in studies.STUDIES.items():
        if about.in_report:
            known = {parameter.name for parameter in parameters(studies.study(name))}
            wanted = {key: value for key, value in {**settings, "error_bars": True}.items() if key in known}
            module = studies.module(name)
            sections: list[dict[str, Any]] = module.sections(store) if hasattr(module, "sections") else [{}]
            yield from ((name, wanted, own) for own in sections)


def _result(name: str, store: Path, values: Mapping[str, Any]) -> Result:
    """What a study says; without error bars where these can't be had."""
    try:
        return studies.run(name, store, **values)
    except InputError as error:
        if "error_bars" not in values:
            raise
        why = str(error)
    result = studies.run(name, store, **{**values, "error_bars": False})
    return replace(result, notes=[*result.notes, f"{_WITHOUT}{why}"])


def _tiles(store: Path) -> list[tuple[str, str]]:
    """The numbers that the page begins with."""
    model: Mapping[str, Any] = stores.store_attributes(store).get("model") or {}
    corpora = stores.family_attributes(store, "corpora")
    tokens = sum(int(of.get("tokens") or 0) for of in corpora.values())
    tiles = [("corpora", f"{len(corpora):,}"), ("tokens", f"{tokens:,}")]
    if model.get("num_layers") and model.get("num_neurons"):
        tiles += [("layers", f"{model['num_layers']:,}"), ("neurons a layer", f"{model['num_neurons']:,}")]
    return tiles
