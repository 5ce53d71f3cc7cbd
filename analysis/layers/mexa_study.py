"""What `mexa` says: how well the languages of a parallel corpus are aligned, layer by layer, with errors over ids.

By pivot, then language: `scores` [by layer], `mean_over_layers`, `max_over_layers`, `identical`; over the ids whose two
texts differ `scores_of_different` [by layer], `mean_over_layers_of_different`; `pair_errors` has the standard errors of
both means over layers (`all`, `different`). By pivot, the mean over languages [by layer]:

    paper_mean                  the pivot's own score (1 but for duplicates) among them, `english` left out as both
                                pivot and language: the figure of arXiv 2506.01074
    with_self, without_self     over all languages, English too, the pivot among them or not
    without_self_of_different   likewise without the pivot, over the ids whose two texts differ

`not_in_means` are left out of each. `errors` has the standard error of each mean [by layer], `errors_over_layers` that
of its mean over layers. `cosines` has by pivot the mean cosine [by layer] with the languages of `without_self`, of
`parallel` texts that differ and of `other` ids' texts.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.layer_runs import interval
from neurotally.analysis.layers.mexa import (
    Pooling,
    TextEmbeddings,
    cosines,
    mean_errors,
    mexa,
    pair_errors,
    read_embeddings,
)
from neurotally.analysis.options import GroupName, Option
from neurotally.analysis.overlap import safe_divide
from neurotally.analysis.parts import Chart, Column, Grid, Panel, Series, Table, Value, matrix
from neurotally.analysis.result import Result, by_name, finite, model_name
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError

Document = Mapping[str, Any]

FIGURES = {
    "matrix": "Draw pivots by languages.",
    "pivots": "Draw each pivot's scores with every language.",
    "cosines": "Draw the cosines of parallel texts beside those of others.",
}
_ENGLISH = ("english", "eng", "eng_latn", "en")
"""What the language of comments may be called, in lower case."""
_MEANS = {
    "paper_mean": "paper's mean", "with_self": "with self", "without_self": "without",
    "without_self_of_different": "different",
}  # fmt: skip
_LARGEST = ("paper_mean", "without_self")
_MOST_PAIRS = 28
"""Of 8 languages; more are shown in full only."""


def study(
    store: Path,
    name: GroupName = "parallel",
    embedding: Annotated[Pooling, Option("The position-weighted mean, or the last token.")] = "weighted",
    leave_out: Annotated[
        tuple[str, ...],
        Option("Not in the means over languages; may be repeated. (The paper's mean has no English in any case.)",
               "LANGUAGE"),
    ] = (),
) -> Result:  # fmt: skip
    """How well the model aligns the languages of a parallel corpus, layer by layer (MEXA, arXiv 2410.05873).

    The share of ids whose two texts are closer to each other than to any other id's; reads what `embed` left.

    Example:
      neurotally mexa llama.store --figure mexa.png

    >>> sorted(store.mexa().frame("pivots")["pivot"])
    ['C', 'Java', 'Python']
    """
    return mexa_result(read_embeddings(store, name, embedding), leave_out, name)


def sections(store: Path) -> list[dict[str, Any]]:
    """One for every embedded parallel corpus."""
    return [{"name": name} for name in stores.committed(store, "embeddings")]


def mexa_result(embeddings: TextEmbeddings, leave_out: Sequence[str] = (), name: str = "parallel") -> Result:
    """Means by pivot, pairs that differ beside all, and what is byte-identical."""
    document = mexa_document(embeddings, leave_out)
    lead = (
        f"MEXA of {model_name(embeddings.model)}: the share of {document['ids']:,} ids whose texts in two languages "
        f"are nearer to each other than to any other id's ({document['embedding']} embeddings, BOS: {document['bos']})"
    )
    heading = "Alignment of languages (MEXA)"
    return Result(
        "mexa", document, lead, [_pivot_table(document), *_pair_tables(document)], _charts(document), _notes(document),
        title=heading if name == "parallel" else f"{heading}: {name}", anchor=f"embeddings-{name}",
    )  # fmt: skip


def mexa_document(embeddings: TextEmbeddings, not_in_means: Sequence[str] = ()) -> dict[str, Any]:
    """All that was found. `not_in_means`: languages left out of the means over languages."""
    languages = embeddings.languages
    if unknown := [name for name in not_in_means if name not in languages]:
        raise InputError(f"no language {unknown[0]!r} among {list(languages)}")
    text_Cn = embeddings.text_Cn
    aligned_LCCn = mexa(embeddings.vector_LND, text_Cn)
    different_CCn = text_Cn[:, None] != text_Cn
    every_CCn = np.ones_like(different_CCn)
    score_LCC = aligned_LCCn.mean(axis=3)
    different_LCC = safe_divide((aligned_LCCn & different_CCn).sum(axis=3), different_CCn.sum(axis=2))
    english = [name for name in languages if name.lower() in _ENGLISH]
    in_mean_C = np.array([name not in not_in_means for name in languages])
    all_CC = np.broadcast_to(in_mean_C, (len(languages), len(languages)))
    others_CC = in_mean_C & ~np.eye(len(languages), dtype=bool)
    in_paper_CC = all_CC & np.array([name not in english for name in languages])
    means = {
        "paper_mean": (score_LCC, in_paper_CC, every_CCn),
        "with_self": (score_LCC, all_CC, every_CCn),
        "without_self": (score_LCC, others_CC, every_CCn),
        "without_self_of_different": (different_LCC, others_CC, different_CCn),
    }
    mean_CCn = aligned_LCCn.mean(axis=0)
    parallel_LCC, other_LCC = cosines(embeddings.vector_LND, text_Cn)
    errors_LC = {key: mean_errors(aligned_LCCn, counted, member_CC) for key, (_, member_CC, counted) in means.items()}
    errors_C = {key: mean_errors(mean_CCn[None], counted, member_CC) for key, (_, member_CC, counted) in means.items()}
    document: dict[str, Any] = finite({
        "schema": 1,
        "model": embeddings.model,
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
        "identical": _by_pair(languages, (~different_CCn).mean(axis=2)),
        "not_in_means": list(not_in_means),
        "english": english,
        **{key: _means(languages, of_LCC, member_CC) for key, (of_LCC, member_CC, _) in means.items()},
        "errors": {key: by_name(languages, error_LC) for key, error_LC in errors_LC.items()},
        "errors_over_layers": {key: by_name(languages, error_1C[0]) for key, error_1C in errors_C.items()},
        "pair_errors": {
            "all": _by_pair(languages, pair_errors(mean_CCn, every_CCn)),
            "different": _by_pair(languages, pair_errors(mean_CCn, different_CCn)),
        },
        "cosines": {
            "parallel": _means(languages, parallel_LCC, others_CC), "other": _means(languages, other_LCC, others_CC),
        },
    })  # fmt: skip
    for of in (document["paper_mean"], document["errors"]["paper_mean"], document["errors_over_layers"]["paper_mean"]):
        for name in english:
            del of[name]
    return document


def _pivot_table(document: Document) -> Table:
    """Pivots by falling mean without the pivot itself; the layer is that of the largest such mean."""
    without, errors = document["without_self"], document["errors_over_layers"]
    columns = [
        Column("pivot"), *(Column(name, "share", 1) for name in _MEANS.values()),
        *(Column(f"largest, {_MEANS[key]}", "share", 1) for key in _LARGEST), Column("at layer", "count"),
    ]  # fmt: skip
    rows = [
        [pivot, *(Value(_mean(document[key].get(pivot)), errors[key].get(pivot)) for key in _MEANS),
         *(max(document[key].get(pivot) or [None], key=lambda share: share or 0) for key in _LARGEST),
         None if None in without[pivot] else int(np.argmax(without[pivot]))]
        for pivot in sorted(without, key=lambda pivot: -np.nan_to_num(_mean(without[pivot])))
    ]  # fmt: skip
    return Table("pivots", f"By pivot: means over languages and {document['layers']} layers", columns, rows)


def _pair_tables(document: Document) -> list[Table]:
    """Every pair once, beside what is left of it where texts differ; in full as matrices."""
    languages, errors = document["languages"], document["pair_errors"]
    rows = [
        [f"{pivot}-{other}", Value(document["mean_over_layers"][pivot][other], errors["all"][pivot][other]),
         Value(document["mean_over_layers_of_different"][pivot][other], errors["different"][pivot][other]),
         document["identical"][pivot][other]]
        for pivot, other in combinations(languages, 2)
    ]  # fmt: skip
    columns = [Column("pair"), Column("all ids", "share", 1), Column("texts that differ", "share", 1),
               Column("identical", "share")]  # fmt: skip
    matrices = {
        "mean_over_layers": "Share of ids aligned, mean over layers; rows: pivots",
        "mean_over_layers_of_different": "The same over the ids whose two texts differ",
        "identical": "Share of ids whose two texts are byte-identical",
    }
    return [
        Table("pairs", "By pair: share of ids aligned, mean over layers", columns, rows, len(rows) > _MOST_PAIRS),
        *(
            matrix(key, title, "pivot", languages, [[*document[key][pivot].values()] for pivot in languages],
                   Column("", "share"))
            for key, title in matrices.items()
        ),
    ]  # fmt: skip


def _charts(document: Document) -> list[Chart]:
    languages, layers = document["languages"], document["layers"]
    of = f"{document['embedding']} embeddings of {document['ids']:,} ids (BOS: {document['bos']})"
    x_label = f"layer: 0 the token embeddings, {layers - 1} after the final norm"
    y_label, title = "share of ids that are aligned", f"MEXA, {of}"
    no_english = ", no English" if document["english"] else ""
    means = [
        Panel(name, [_line(language, document[key], document["errors"][key]) for language in document[key]], note,
              top=1.02)
        for key, (name, note) in {
            "paper_mean": ("paper's mean", f"with itself{no_english}"),
            "without_self": ("mean over all others", ""),
            "without_self_of_different": ("mean over others", "texts that differ"),
        }.items()
    ]  # fmt: skip
    pivots = [
        Panel(f"pivot {pivot}", [
            *(_line(language, document["scores"][pivot]) for language in languages if language != pivot),
            Series("the pivot itself", document["scores"][pivot][pivot], tone="grey"),
        ], top=1.02)
        for pivot in languages
    ]  # fmt: skip
    found = document["cosines"]
    lines = [_line(language, found["parallel"]) for language in languages]
    lines += [
        Series("with texts of other ids", found["other"][language], corpus=language, is_dashed=True)
        for language in languages
    ]
    grids = [
        Grid(name, languages, languages, [[*document[key][pivot].values()] for pivot in languages],
             row_label="pivot", column_label="language", scale="share of ids", high=1, digits=2)
        for key, name in {
            "mean_over_layers": f"aligned, mean over {layers} layers",
            "mean_over_layers_of_different": "of ids whose texts differ",
            "identical": "byte-identical",
        }.items()
    ]  # fmt: skip
    return [
        Chart("mexa", title, means, y_label, x_label, num_columns=3,
              caption="Share of ids aligned by layer, with standard errors"),
        Chart("matrix", title, grids, num_columns=3, is_on_request=True),
        Chart("pivots", title, pivots, y_label, x_label, is_on_request=True),
        Chart("cosines", f"Cosines, {of}", [Panel("", lines)], "mean cosine with the other languages", x_label,
              caption="Mean cosine of parallel texts that differ (solid) and of texts of other ids (dashed)"),
    ]  # fmt: skip


def _line(language: str, of: Mapping[str, Any], errors: Mapping[str, Any] | None = None) -> Series:
    """A language's values by layer, within one standard error if given."""
    low, high = interval(of[language], None if errors is None else errors[language])
    return Series(language, of[language], corpus=language, low=low, high=high)


def _notes(document: Document) -> list[str]:
    """Which mean is which, and what was left out."""
    english = ", ".join(document["english"])
    without = f", and without English ({english})" if english else "; no language is called English here"
    also = f"; left out of each: {', '.join(document['not_in_means'])}" if document["not_in_means"] else ""
    return [
        f"paper's mean: over the languages with the pivot itself{without}; with self, without: over all languages, the "
        f"pivot among them or not; different: without the pivot, over the ids whose two texts differ{also}",
        "texts that are the same byte for byte are aligned in any model; errors are standard errors over ids, with "
        "what each id is compared with held fixed",
        *missing_id_notes(document),
    ]


def missing_id_notes(document: Document) -> list[str]:
    """Ids that `embed` left out, and those that some language lacks."""
    lines = []
    if document["left_out"]:
        first = document["left_out"][0]
        lines.append(f"{len(document['left_out'])} ids left out, the first {first['id']!r} of {first['language']!r}: "
                     f"{first['reason']}")  # fmt: skip
    if document["missing"]:
        lines.append(f"{len(document['missing'])} ids not in every language, the first {document['missing'][0]!r}")
    return lines


def _mean(values: Sequence[float | None] | None) -> float:
    return float(np.mean(np.array(values, np.float64))) if values else np.nan


def _by_pair(languages: Sequence[str], value_CC: np.ndarray) -> dict[str, dict[str, Any]]:
    """[C, C] or [L, C, C] as {pivot: {language: value or values by layer}}."""
    return {
        pivot: {other: value_CC[..., p, q].tolist() for q, other in enumerate(languages)}
        for p, pivot in enumerate(languages)
    }


def _means(languages: Sequence[str], score_LCC: np.ndarray, member_CC: np.ndarray) -> dict[str, list[float]]:
    """{pivot: by layer}: the mean over the languages that are members in the pivot's row; NaN without any.

    Pairs without a score (no texts that differ) are left out.
    """
    counts_LCC = member_CC & np.isfinite(score_LCC)
    return by_name(languages, safe_divide(np.where(counts_LCC, score_LCC, 0).sum(axis=2), counts_LCC.sum(axis=2)))
