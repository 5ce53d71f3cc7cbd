"""One self-contained page of all that a store holds: `neurotally report`.

`SECTIONS` lists the builders, in the order of the page; each looks whether the store has what it is about. The page
asks the network for nothing: styles, script and pictures stand in it, and its Content-Security-Policy forbids the
rest. Texts of corpora are untrusted: the template escapes all of them, and the policy lets no script run but the
page's own, known by its hash.
"""

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from neurotally.analysis.languages.counts import model_name
from neurotally.analysis.report import passes, sections
from neurotally.analysis.report.concepts import concepts
from neurotally.analysis.report.neurons import Place, TriggerEntry, neurons
from neurotally.analysis.report.parts import Notes, Section
from neurotally.analysis.report.sections import Material
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

SECTIONS: Sequence[Callable[[Material], Section | None]] = (
    sections.provenance,
    sections.corpora,
    sections.lape,
    sections.layer_profiles,
    sections.overlaps,
)
PASSES: Mapping[str, Callable[[Material], Iterator[Section]]] = {
    "Ablation": passes.ablations,
    "Alignment of languages (MEXA)": passes.alignments,
    "Logit lens": passes.lenses,
    "Layer agreement": passes.agreements,
}
"""By heading: a section for every group that such a pass left."""


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
    found += [section for title, build in PASSES.items() for section in _of_passes(title, build, material)]
    found += [] if concepts_document is None else [concepts(concepts_document)]
    found.append(neurons(material, num_neurons, triggers, no_triggers))
    sections = [section for section in found if section is not None]
    environment = Environment(loader=PackageLoader("neurotally.analysis.report", ""), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    style, script = (_file(environment, name) for name in ("page.css", "page.js"))
    html = environment.get_template("page.html").render(
        title=model_name(store.store_attributes(material.store).get("model")),
        tiles=_tiles(material),
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        made_by=f"neurotally {_version()}",
    )
    return Report(html, sections)


def _of_passes(title: str, build: Callable[[Material], Iterator[Section]], material: Material) -> Iterator[Section]:
    """The sections; where a group can't be read, one that says why."""
    try:
        yield from build(material)
    except InputError as error:
        yield Section(
            title.split(" ")[0].lower(), title, "This part of the store can't be shown.", [Notes([str(error)])]
        )


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


def _file(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _version() -> str:
    try:
        return version("neurotally")
    except PackageNotFoundError:
        return ""
