"""The sections of a report about what other passes left in the store: ablation and masks, MEXA, lens, layer agreement.

Each builder gives a section a group of its family; none where the store has no such group.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from neurotally.analysis.figures.lens import draw_agreement, draw_lens
from neurotally.analysis.figures.mexa import draw_mexa
from neurotally.analysis.layers.agreement import agreement_document
from neurotally.analysis.layers.lens import lens_document, random_notes, read_lens
from neurotally.analysis.layers.mexa import mexa, read_embeddings
from neurotally.analysis.layers.mexa_report import means_note, mexa_document
from neurotally.analysis.render.html import (
    Cell,
    Matrix,
    Notes,
    Part,
    Section,
    Table,
    count,
    draw_inline,
    real,
    row_head,
    share_matrix,
    square_matrix,
    word,
)
from neurotally.analysis.report.sections import Material
from neurotally.profiler import store


def alignments(material: Material) -> Iterator[Section]:
    """MEXA of every embedded parallel corpus."""
    for name in store.committed(material.store, "embeddings"):
        embeddings = read_embeddings(material.store, name)
        document = mexa_document(embeddings, mexa(embeddings.vector_LND, embeddings.text_Cn))
        yield _alignment(document, name)


def lenses(material: Material) -> Iterator[Section]:
    """The logit lens over few-shot translation."""
    for name in store.committed(material.store, "lens"):
        if "paper" in store.group_attributes(material.store, f"lens/{name}"):
            yield _lens(lens_document(read_lens(material.store, name)), name)


def agreements(material: Material) -> Iterator[Section]:
    """How often each layer's first token is the model's."""
    for name in store.committed(material.store, "lens"):
        if "head_bias" in store.group_attributes(material.store, f"lens/{name}"):
            yield _agreement(agreement_document(material.store, name), name)


def _alignment(document: Mapping[str, Any], name: str) -> Section:
    languages = document["languages"]
    header = ("pivot", "paper's mean", "over all others", "largest", "at layer", "texts that differ")
    rows = [
        [row_head(pivot), _peak(document["paper_mean"].get(pivot, []))[0], *_peak(document["without_self"][pivot]),
         _peak(document["without_self_of_different"][pivot])[0]]
        for pivot in languages
    ]  # fmt: skip
    parts: list[Part] = [
        Table("By pivot: means over languages and layers", header, rows),
        _pairs("Share of ids aligned, mean over layers; rows: pivots", document, "mean_over_layers"),
        _pairs("The same over the ids whose two texts differ", document, "mean_over_layers_of_different"),
        draw_inline(draw_mexa, document, f"mexa-{name}", "Share of ids aligned by layer, for every pivot"),
        _pairs("Share of ids whose two texts are byte-identical, and so aligned whatever the model does", document,
               "identical"),
    ]  # fmt: skip
    notes = [f"By pivot: {means_note(document)}."]
    notes += [f"id {one['id']} left out: {one['reason']}" for one in document["left_out"][:20]]
    if document["missing"]:
        notes.append(f"{len(document['missing']):,} ids aren't in every language, the first {document['missing'][0]}")
    lead = (
        f"MEXA: the share of {document['ids']:,} ids whose texts in two languages are nearer to each other than to any "
        f"other id's ({document['embedding']} embeddings, BOS {document['bos']})."
    )
    title = _titled("Alignment of languages (MEXA)", name, "parallel")
    parts.append(Notes(notes))
    return Section(f"embeddings-{name}", title, lead, parts)


def _lens(document: Mapping[str, Any], name: str) -> Section:
    last = document["layers"] - 1
    header = ("pair", "snippets", "positions", "gold p, mean over layers", "in the last", "gold rank in the last",
              "among the first 10")  # fmt: skip
    rows = [
        [row_head(pair), count(of["snippets"]), count(of["positions"]), real(_mean(of["gold_probability"]), ".4f"),
         real(of["gold_probability"][last], ".4f"), real(of["gold_rank"][last], ",.1f"),
         real(of["gold_top10"][last], ".3f")]
        for pair, of in [*document["pairs"].items(), ("all pairs", document["all"])]
    ]  # fmt: skip
    parts: list[Part] = [
        draw_inline(draw_lens, document, f"lens-{name}",
                    "The gold token's probability and rank, and each token set's probability, layer by layer"),
        Table("The next token that the translation has, by pair", header, rows, is_searchable=len(rows) > 20),
    ]  # fmt: skip
    if document["sets"]:
        found = document["all"]["sets"]
        columns = ("set", "tokens", "m/V", "mean over layers", "random tokens", "rank", "largest", "at layer",
                   "random tokens there")  # fmt: skip
        sets = [[row_head(of), *_set_cells(document, of)] for of in found]
        parts.append(Table("Token sets: their probability, beside random sets", columns, sets))
        parts.append(Notes(random_notes(document)))
    notes = [f"No set {of}: none of its {n} entries is one token." for of, n in document["empty_sets"].items()]
    skipped = Counter({reason: 0 for reasons in document["skipped"].values() for reason in reasons})
    for reasons in document["skipped"].values():
        skipped.update({reason: len(ids) for reason, ids in reasons.items()})
    notes += [f"Skipped: {number:,} prompts ({reason})." for reason, number in skipped.items()]
    notes += ["Made with --paper: the reference's quirks are kept."] if document["paper"] else []
    lead = "What every layer would say, if it were the last, while the model translates code by example."
    parts += [Notes(notes)] if notes else []
    return Section(f"lens-{name}", _titled("Logit lens", name, "translation"), lead, parts)


def _agreement(document: Mapping[str, Any], name: str) -> Section:
    header = ("corpus", "what is read", "positions", "mean over layers", "in the last", "50 % from layer", "90 % from")
    rows = [
        [row_head(corpus), word(variant), count(of["positions"][0]), real(_mean(of["agreement"][variant][0]), ".3f"),
         real(of["agreement"][variant][0][-1], ".3f"), real(of["first_50"][variant][0], ",d"),
         real(of["first_90"][variant][0], ",d")]
        for corpus, of in document["corpora"].items()
        for variant in document["variants"]
    ]  # fmt: skip
    parts: list[Part] = [
        draw_inline(draw_agreement, document, f"agreement-{name}",
                    "Agreement by layer over whole documents; dotted, with the token that comes next"),
        Table("Agreement over whole documents", header, rows),
    ]  # fmt: skip
    layers = [str(layer) for layer in range(document["layers"])]
    contexts = [context["label"] for context in document["contexts"]]
    for corpus, of in document["corpora"].items():
        for variant in document["variants"]:
            share_CL = np.array(of["agreement"][variant], np.float64).reshape(len(contexts), len(layers))
            caption = f"{corpus}, {variant}: agreement by context (rows) and layer (columns)"
            parts.append(share_matrix(caption, "context", contexts, layers, share_CL))
    notes = [f"Left out, beyond the model's context: {context}." for context in document["left_out"]]
    lead = "At how many positions the first token that a layer would say is the one that the whole model says."
    parts += [Notes(notes)] if notes else []
    return Section(f"lens-{name}", _titled("Layer agreement", name, "agreement"), lead, parts)


def _mean(values: list[float | None]) -> float:
    return float(np.mean(np.array(values, np.float64)))


def _set_cells(document: Mapping[str, Any], name: str) -> list[Cell]:
    about, of = document["sets"][name], document["all"]["sets"][name]
    cells = [count(about["tokens"]), real(about["uniform"])]
    mass_L = np.array(of["mass"], np.float64)
    control = of["control"]
    if not np.isfinite(mass_L).all():
        return [*cells, *[Cell("–", None)] * 6]
    layer = int(mass_L.argmax())
    mean_sd = None if control["draws"] is None else float(np.array(control["draws"]).mean(axis=1).std(ddof=1))
    rank = of["mean_rank"]
    return [
        *cells,
        real(float(mass_L.mean())),
        real(_mean(control["mass"]), half=mean_sd),
        Cell("–", None) if rank is None else Cell(f"{rank} of {document['draws'] + 1}", rank),
        real(float(mass_L[layer])),
        count(layer),
        real(control["mass"][layer], half=None if control["mass_sd"] is None else control["mass_sd"][layer]),
    ]


def _titled(title: str, name: str, usual: str) -> str:
    return title if name == usual else f"{title}: {name}"


def _peak(by_layer: list[float | None]) -> list[Cell]:
    score_L = np.array(by_layer, np.float64)
    if not len(score_L) or not np.isfinite(score_L).all():
        return [Cell("–", None)] * 3
    best = int(score_L.argmax())
    return [real(float(score_L.mean()), ".3f"), real(float(score_L[best]), ".3f"), count(best)]


def _pairs(caption: str, document: Mapping[str, Any], key: str) -> Matrix:
    languages = document["languages"]
    share_CC = np.array([[document[key][pivot][name] for name in languages] for pivot in languages], np.float64)
    texts = [[f"{100 * share:.0f} %" if math.isfinite(share) else "–" for share in row] for row in share_CC.tolist()]
    return square_matrix(caption, "pivot", languages, share_CC, texts)
