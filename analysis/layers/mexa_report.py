"""MEXA as a JSON document and as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number, numbers
from neurotally.analysis.layers.mexa import Alignment, TextEmbeddings
from neurotally.analysis.result import model_key
from neurotally.analysis.text_table import decimals, percent, text_table
from neurotally.profiler.errors import InputError

Document = Mapping[str, Any]

_ENGLISH = ("english", "eng", "eng_latn", "en")
"""What the language of comments may be called, in lower case."""


def mexa_document(embeddings: TextEmbeddings, found: Alignment, not_in_means: Sequence[str] = ()) -> dict[str, Any]:
    """All that was found. `not_in_means`: languages left out of the means over languages.

    By pivot, then language: `scores` [by layer], `mean_over_layers`, `max_over_layers`, `identical`; over the ids whose
    two texts differ `scores_of_different` [by layer], `mean_over_layers_of_different`. By pivot, the mean over
    languages [by layer]:

        paper_mean                  the pivot's own score (1 but for duplicates) among them, `english` left out as both
                                    pivot and language: the figure of arXiv 2506.01074
        with_self, without_self     over all languages, English too, the pivot among them or not
        without_self_of_different   likewise without the pivot, over the ids whose two texts differ

    `not_in_means` are left out of each.
    """
    languages = embeddings.languages
    if unknown := [name for name in not_in_means if name not in languages]:
        raise InputError(f"no language {unknown[0]!r} among {list(languages)}")
    score_LCC, different_LCC = found.score_LCC, found.score_of_different_LCC
    english = [name for name in languages if name.lower() in _ENGLISH]
    in_mean_C = np.array([name not in not_in_means for name in languages])
    others_CC = in_mean_C & ~np.eye(len(languages), dtype=bool)
    in_paper_C = in_mean_C & np.array([name not in english for name in languages])
    of_paper = _means(languages, score_LCC, np.broadcast_to(in_paper_C, others_CC.shape))
    return {
        "schema": 1,
        "model": model_key(embeddings.model),
        "embedding": embeddings.pooling,
        "bos": embeddings.attributes["bos"],
        "languages": list(languages),
        "ids": len(embeddings.ids),
        "layers": len(score_LCC),
        "left_out": embeddings.attributes["left_out"],
        "missing": embeddings.attributes["missing"],
        "scores": _by_pair(languages, score_LCC),
        "scores_of_different": _by_pair(languages, different_LCC),
        "mean_over_layers": _by_pair(languages, score_LCC.mean(axis=0)),
        "mean_over_layers_of_different": _by_pair(languages, different_LCC.mean(axis=0)),
        "max_over_layers": _by_pair(languages, score_LCC.max(axis=0)),
        "identical": _by_pair(languages, found.identical_CCn.mean(axis=2)),
        "not_in_means": list(not_in_means),
        "english": english,
        "paper_mean": {name: by_layer for name, by_layer in of_paper.items() if name not in english},
        "with_self": _means(languages, score_LCC, np.broadcast_to(in_mean_C, others_CC.shape)),
        "without_self": _means(languages, score_LCC, others_CC),
        "without_self_of_different": _means(languages, different_LCC, others_CC),
    }


def mexa_table(document: Document) -> str:
    """What stands in the document, shortly: means over layers by pair, and by pivot."""
    languages = document["languages"]
    header = ["pivot", *languages]

    def by_pair(key: str) -> str:
        rows = [[pivot, *(percent(document[key][pivot][name]) for name in languages)] for pivot in languages]
        return text_table(header, rows)

    return "\n\n".join(
        [
            f"MEXA of {document['ids']} ids, {document['embedding']} embeddings (BOS: {document['bos']}), mean over "
            f"{document['layers']} layers:\n{by_pair('mean_over_layers')}",
            f"pairs of the same text byte for byte, whose cosine is 1 in any model:\n{by_pair('identical')}",
            f"MEXA over the ids whose two texts differ:\n{by_pair('mean_over_layers_of_different')}",
            f"by pivot:\n{_pivot_table(document)}\n{means_note(document)}",
            *_left_out(document),
        ]
    )


def means_note(document: Document) -> str:
    """Which mean is which."""
    english = ", ".join(document["english"])
    without = f", and without English ({english})" if english else "; no language is called English here"
    also = f"; left out of each: {', '.join(document['not_in_means'])}" if document["not_in_means"] else ""
    return (
        f"paper: mean over the languages with the pivot itself{without}; with self, without: over all languages, the "
        f"pivot among them or not; different: without the pivot, over the ids whose two texts differ{also}"
    )


def _pivot_table(document: Document) -> str:
    """Pivots by falling mean without the pivot itself; the layer is that of the largest such mean."""
    rows = []
    for pivot, without_L in document["without_self"].items():
        paper_L, with_L, different_L = (
            np.array(document[key].get(pivot, [np.nan]), np.float64)
            for key in ("paper_mean", "with_self", "without_self_of_different")
        )
        of_L = np.array(without_L, np.float64)
        cells = [decimals(score.mean(), 3) for score in (paper_L, with_L, of_L, different_L)]
        cells += [decimals(score.max(), 3) for score in (paper_L, of_L)]
        layer = str(int(of_L.argmax())) if np.isfinite(of_L).all() else "-"
        rows.append((of_L.mean(), [pivot, *cells, layer]))
    header = ["pivot", "mean: paper", "with self", "without", "different", "max: paper", "without", "at layer"]
    return text_table(header, [row for _, row in sorted(rows, key=lambda entry: -np.nan_to_num(entry[0]))])


def _left_out(document: Document) -> list[str]:
    lines = []
    if document["left_out"]:
        first = document["left_out"][0]
        lines.append(f"{len(document['left_out'])} ids left out, the first {first['id']!r}: {first['reason']}")
    if document["missing"]:
        lines.append(f"{len(document['missing'])} ids not in every language, the first {document['missing'][0]!r}")
    return lines


def _by_pair(languages: Sequence[str], value_CC: np.ndarray) -> dict[str, dict[str, Any]]:
    """[C, C] or [L, C, C] as {pivot: {language: value or values by layer}}."""

    def entry(pivot: int, other: int) -> Any:
        value = value_CC[..., pivot, other]
        return numbers(value) if value.ndim else number(float(value))

    return {pivot: {other: entry(p, q) for q, other in enumerate(languages)} for p, pivot in enumerate(languages)}


def _means(languages: Sequence[str], score_LCC: np.ndarray, member_CC: np.ndarray) -> dict[str, list[float | None]]:
    """{pivot: by layer}: the mean over the languages that are members in the pivot's row; None without any.

    Pairs without a score (no texts that differ) are left out.
    """
    counts_LCC = member_CC & np.isfinite(score_LCC)
    with np.errstate(invalid="ignore"):
        mean_LC = np.where(counts_LCC, score_LCC, 0).sum(axis=2) / counts_LCC.sum(axis=2)
    return {pivot: numbers(mean_LC[:, p]) for p, pivot in enumerate(languages)}
