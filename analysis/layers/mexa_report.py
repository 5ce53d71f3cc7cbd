"""MEXA as a JSON document and as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import number, numbers
from neurotally.analysis.languages.counts import model_key
from neurotally.analysis.layers.mexa import Alignment, TextEmbeddings
from neurotally.analysis.text_table import decimals, percent, text_table
from neurotally.profiler.errors import InputError

Document = Mapping[str, Any]


def mexa_document(embeddings: TextEmbeddings, found: Alignment, not_in_means: Sequence[str] = ()) -> dict[str, Any]:
    """All that was found. `not_in_means`: languages left out of the means over languages, as English is in the paper.

    By pivot, then language: `scores` and `scores_of_different` [by layer], `mean_over_layers`, `max_over_layers`,
    `identical`. By pivot: `with_self` and `without_self` [by layer], the mean over languages, the pivot among them or
    not.
    """
    languages = embeddings.languages
    if unknown := [name for name in not_in_means if name not in languages]:
        raise InputError(f"no language {unknown[0]!r} among {list(languages)}")
    score_LCC = found.score_LCC
    in_mean_C = np.array([name not in not_in_means for name in languages])
    others_CC = in_mean_C & ~np.eye(len(languages), dtype=bool)
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
        "scores_of_different": _by_pair(languages, found.score_of_different_LCC),
        "mean_over_layers": _by_pair(languages, score_LCC.mean(axis=0)),
        "max_over_layers": _by_pair(languages, score_LCC.max(axis=0)),
        "identical": _by_pair(languages, found.identical_CCn.mean(axis=2)),
        "not_in_means": list(not_in_means),
        "with_self": _means(languages, score_LCC, np.broadcast_to(in_mean_C, others_CC.shape)),
        "without_self": _means(languages, score_LCC, others_CC),
    }


def mexa_table(document: Document) -> str:
    """What stands in the document, shortly: means over layers by pair, and by pivot."""
    languages = document["languages"]
    header = ["pivot", *languages]
    means = [
        [pivot, *(percent(document["mean_over_layers"][pivot][name]) for name in languages)] for pivot in languages
    ]
    same = [[pivot, *(percent(document["identical"][pivot][name]) for name in languages)] for pivot in languages]
    return "\n\n".join(
        [
            f"MEXA of {document['ids']} ids, {document['embedding']} embeddings (BOS: {document['bos']}), mean over "
            f"{document['layers']} layers:\n{text_table(header, means)}",
            f"pairs of the same text byte for byte, whose cosine is 1 in any model:\n{text_table(header, same)}",
            f"by pivot, mean over {_of(document)}:\n{_pivot_table(document)}",
            *_left_out(document),
        ]
    )


def _pivot_table(document: Document) -> str:
    """Pivots by falling mean; the layer is that of the largest mean without the pivot itself."""
    rows = []
    for pivot, without_L in document["without_self"].items():
        scores = [np.array(by_layer, np.float64) for by_layer in (document["with_self"][pivot], without_L)]
        cells = [decimals(score, 3) for score in [of_L.mean() for of_L in scores] + [of_L.max() for of_L in scores]]
        layer = str(int(scores[1].argmax())) if np.isfinite(scores[1]).all() else "-"
        rows.append((scores[1].mean(), [pivot, *cells, layer]))
    header = ["pivot", "mean, with self", "without", "max, with self", "without", "at layer"]
    return text_table(header, [row for _, row in sorted(rows, key=lambda entry: -np.nan_to_num(entry[0]))])


def _left_out(document: Document) -> list[str]:
    lines = []
    if document["left_out"]:
        first = document["left_out"][0]
        lines.append(f"{len(document['left_out'])} ids left out, the first {first['id']!r}: {first['reason']}")
    if document["missing"]:
        lines.append(f"{len(document['missing'])} ids not in every language, the first {document['missing'][0]!r}")
    return lines


def _of(document: Document) -> str:
    without = f" but {', '.join(document['not_in_means'])}" if document["not_in_means"] else ""
    return f"the languages{without}"


def _by_pair(languages: Sequence[str], value_CC: np.ndarray) -> dict[str, dict[str, Any]]:
    """[C, C] or [L, C, C] as {pivot: {language: value or values by layer}}."""

    def entry(pivot: int, other: int) -> Any:
        value = value_CC[..., pivot, other]
        return numbers(value) if value.ndim else number(float(value))

    return {pivot: {other: entry(p, q) for q, other in enumerate(languages)} for p, pivot in enumerate(languages)}


def _means(languages: Sequence[str], score_LCC: np.ndarray, member_CC: np.ndarray) -> dict[str, list[float | None]]:
    """{pivot: by layer}: the mean over the languages that are members in the pivot's row; None without any."""
    with np.errstate(invalid="ignore"):
        mean_LC = (score_LCC * member_CC).sum(axis=2) / member_CC.sum(axis=1)
    return {pivot: numbers(mean_LC[:, p]) for p, pivot in enumerate(languages)}
