"""One self-contained page of all that a store holds: `neurotally report`.

`SECTIONS` lists the builders, in the order of the page; each looks whether the store has what it is about.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from neurotally.analysis import studies
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.languages.profiles import profiles_result
from neurotally.analysis.render.html import Notes, Section, section
from neurotally.analysis.render.page import page
from neurotally.analysis.report import sections
from neurotally.analysis.report.concepts import concepts
from neurotally.analysis.report.neurons import Place, TriggerEntry, neurons
from neurotally.analysis.report.sections import Material
from neurotally.analysis.result import model_name
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

SECTIONS: Sequence[Callable[[Material], Section | None]] = (
    sections.provenance,
    sections.corpora,
)


@dataclass(frozen=True)
class Report:
    """A page."""

    html: str
    sections: Sequence[Section]


def build_report(
    material: Material,
    num_neurons: int,
    triggers: Mapping[Place, Sequence[TriggerEntry]],
    no_triggers: str = "",
    concepts_document: Mapping[str, Any] | None = None,
) -> Report:
    """The page of a store, with the `num_neurons` most specific neurons of every corpus.

    `triggers`: what was gathered for them (`neurons.most_specific`); `no_triggers` says why some or all are
    without a text. `concepts_document`: what `concepts --out` wrote, if asked for.
    """
    found = [build(material) for build in SECTIONS]
    found += list(_selections(material))
    found += list(_studies(material))
    found += [] if concepts_document is None else [concepts(concepts_document)]
    found.append(neurons(material, num_neurons, triggers, no_triggers))
    made = [one for one in found if one is not None]
    title = model_name(store.store_attributes(material.store).get("model"))
    html = page(title, _tiles(material), made)
    return Report(html, made)


def _selections(material: Material) -> Iterator[Section]:
    """LAPE and its profiles; where it can't be computed, why."""
    counts, selection = material.counts, material.selection
    if counts is None or selection is None:
        yield Section("lape", "Language-specific neurons (LAPE)", "LAPE can't be computed from this store.",
                      [Notes([material.no_lape])])  # fmt: skip
        return
    model = model_name(counts.model)
    found = lape_result(counts, selection, material.bars)
    found = replace(found, notes=[*found.notes, *([f"No error bars: {material.no_bars}"] if material.no_bars else [])])
    for result in (found, profiles_result(counts, material.rule, selection)):
        yield section(result.of(model, store.committed_corpora(material.store)))


def _studies(material: Material) -> Iterator[Section]:
    """The sections of the studies that say which they have; where one can't be made, why."""
    for name, about in studies.STUDIES.items():
        sections_of = getattr(studies.module(name), "sections", None)
        if not about.in_report or sections_of is None:
            continue
        for asked in sections_of(material.store):
            try:
                yield section(studies.run(name, material.store, **asked))
            except InputError as error:
                anchor = "-".join([name, *map(str, asked.values())])
                yield Section(anchor, about.help, "This part of the store can't be shown.", [Notes([str(error)])])


def _tiles(material: Material) -> list[tuple[str, str]]:
    """The numbers that the page begins with."""
    attributes = store.store_attributes(material.store)
    model: Mapping[str, Any] = attributes.get("model") or {}
    names = store.committed_corpora(material.store)
    tokens = sum(int(store.corpus_attributes(material.store, name).get("tokens") or 0) for name in names)
    tiles = [("corpora", f"{len(names):,}"), ("tokens", f"{tokens:,}")]
    if model.get("num_layers") and model.get("num_neurons"):
        tiles += [("layers", f"{model['num_layers']:,}"), ("neurons a layer", f"{model['num_neurons']:,}")]
    if material.selection is not None:
        chosen = {tuple(neuron) for of in material.selection.specific.values() for neuron in of.tolist()}
        tiles.append(("chosen neurons", f"{len(chosen):,}"))
    return tiles
