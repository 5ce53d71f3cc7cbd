"""The section of a report about concepts: from the document of `neurotally concepts`, which a store doesn't hold."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.render.html import (
    Matrix,
    Notes,
    Part,
    Section,
    Table,
    count,
    real,
    row_head,
    square_matrix,
    word,
)
from neurotally.analysis.result import model_key
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

_KEYS = ("by_corpus", "by_layer", "strongest", "overlap", "specific", "concepts", "min_matches")


def read_concepts_document(path: Path, store_path: Path) -> Mapping[str, Any]:
    """What `concepts --out` wrote for this store; InputError where it is something else, or of another model."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON: {error}") from error
    if not isinstance(document, dict) or any(key not in document for key in _KEYS):
        raise InputError(f"{path} isn't a document of `neurotally concepts --out`")
    ours = model_key(store.store_attributes(store_path).get("model"))
    if document.get("model") != ours:
        raise InputError(f"{path} is of {document.get('model')!r}, the store of {ours!r}; give this store's concepts")
    return document


def concepts(document: Mapping[str, Any]) -> Section:
    """The keys of each concept: how many, where, and which concepts share them."""
    at_least = f"at least {document['min_matches']} of {document['triggers']}"
    header = ("concept", "corpus", "base rate", f"{at_least} match", "of null keys", "test passed", "keys")
    rows = [
        [row_head(concept), word(corpus), real(found["chance"], ".2%"), count(found["at_least"]),
         real(found["null_share"], ".2%"), real(found["passing"], ",d"), count(found["keys"])]
        for concept, by_corpus in document["by_corpus"].items()
        for corpus, found in by_corpus.items()
    ]  # fmt: skip
    expressions = [[row_head(name), word(pattern)] for name, pattern in document["concepts"].items()]
    strongest = [
        [row_head(concept), word(one["corpus"]), count(one["layer"]), count(one["neuron"]), count(one["matches"]),
         count(one["contexts"]), real(one["p"], ".2g")]
        for concept, entries in document["strongest"].items()
        for one in entries
    ]  # fmt: skip
    columns = ("concept", "corpus", "layer", "neuron", "matches", "contexts", "p")
    parts: list[Part] = [
        Table("Keys of each concept", header, rows, is_searchable=len(rows) > 20),
        _by_layer(document),
        _overlap(document),
        Table("Keys with the most matches", columns, strongest, is_folded=True, is_searchable=True),
        Table("Regular expressions", ("concept", "regular expression"), expressions, is_folded=True),
        Notes(_notes(document)),
    ]
    lead = "A key belongs to a concept if the lines around many of its triggers match the concept's expression."
    return Section("concepts", "Concepts", lead, parts)


def _by_layer(document: Mapping[str, Any]) -> Matrix:
    names = list(document["by_layer"])
    layers = [str(layer) for layer in range(document["layers"])]
    count_SL = np.array([document["by_layer"][name] for name in names]).reshape(len(names), len(layers))
    shades = (count_SL / max(1, count_SL.max(initial=0))).round(3).tolist()
    texts = [[f"{number:,}" for number in row] for row in count_SL.tolist()]
    return Matrix("Keys by layer, over all corpora", "concept", names, layers, texts, shades)


def _overlap(document: Mapping[str, Any]) -> Matrix:
    names = list(document["specific"])
    jaccard_SS = np.array(document["overlap"]["jaccard"], dtype=np.float64).reshape(len(names), len(names))
    texts = [
        [f"{common:,}" if row == column or not math.isfinite(share) else f"{share:.2f} · {common:,}"
         for column, (common, share) in enumerate(zip(*of, strict=True))]
        for row, of in enumerate(zip(document["overlap"]["common"], jaccard_SS.tolist(), strict=True))
    ]  # fmt: skip
    return square_matrix(
        "Jaccard index · keys in common; on the diagonal all keys", "concept", names, jaccard_SS, texts
    )


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = [f"{len(document['polysemantic']):,} keys serve two or more concepts."] if document["polysemantic"] else []
    if document["null_keys"]:
        tested = f"Tested against {document['null_keys']:,} null keys at {document['alpha']:g}, corrected."
        needed = [number for number in (document.get("needed") or {}).values() if number is not None]
        if needed:
            tested += (
                f" With so few, at least {max(needed):,} keys must be beyond every null key together, for any to pass: "
                "that none does is no finding."
            )
        return [*notes, tested]
    return [*notes, "Not tested: the concepts were found without null keys."]
