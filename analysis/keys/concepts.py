"""Concepts: the keys whose triggers match a named regular expression, more than null keys do.

A key belongs to a concept if, over some corpus, at least `min_matches` of its triggers have the concept in the lines
around, identical contexts counted once, and, where there are null keys, if that count passes the test against them
(`null_test`), corrected over all keys of all corpora looked at. A key of two or more concepts is *polysemantic*.

The document is a mask file (`analysis.masking.masks`): `specific` holds the keys of each concept. It also names the
documents whose triggers chose the keys, `trigger_documents` by SHA-256 and `trigger_names`, and where these are
windows of lines their files too, `trigger_files`: text to measure masks on must be other text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np

from neurotally.analysis.keys.null_test import corrected, needed
from neurotally.analysis.keys.patterns import KeyCounts, fewest_contexts, key_p
from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.keys.tested import UNTESTED, NullTest, patterns_by_corpus
from neurotally.analysis.keys.texts import ANYWHERE, Texts
from neurotally.analysis.keys.trigger_lists import TriggerLists, read_triggers
from neurotally.analysis.masking.mask_sets import file_digests
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.overlap import pairwise_common, pairwise_jaccard
from neurotally.analysis.progress import BARS, Progress
from neurotally.analysis.result import (
    Cell,
    Chart,
    Column,
    Kind,
    Panel,
    Result,
    Series,
    Table,
    finite,
    model_key,
    model_name,
)
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError
from neurotally.profiler.windows import file_of

CONCEPTS_SCHEMA = 1
_STRONGEST = 10
_LISTED_MISSING = 5
_KEYS = ("by_corpus", "by_layer", "strongest", "overlap", "specific", "concepts", "min_matches")


def study(
    store: Path,
    regex: Annotated[Path, Option("[concepts] NAME = 'regular expression' lines.", "FILE.toml")],
    min_matches: Annotated[int | None, Option("So many of a key's K triggers; default: K / 4.", "N", min=1)] = None,
    corpus: OnlyCorpora = (),
    test: Annotated[NullTest, Group()] = UNTESTED,
    texts: Annotated[Texts, Group()] = ANYWHERE,
    progress: Progress = BARS,
) -> Result:
    """The keys of each concept: those whose triggers match its regular expression, more than null keys' do.

    The JSON document is a mask file; it also names the documents that chose the keys.

    Example:
      neurotally concepts llama.store --regex concepts.toml --null random.store --out concepts.json

    >>> file = store.path.parent / "concepts.toml"
    >>> _ = file.write_text("[concepts]\\nreturn = 'return'")
    >>> store.concepts(file, min_matches=1).frame()["concept"].unique().tolist()
    ['return']
    """
    expressions = read_concepts(Path(regex))
    by_corpus = [
        CorpusConcepts(
            triggers=read_triggers(store, of.corpus),
            counts=result.counts,
            chance=result.chance,
            null=result.null,
            missing=result.missing,
            names=of.names if of.window_lines is None else [file_of(name) for name in of.names],
            sha256_D32=of.sha256_D32,
            document_lines=of.window_lines,
        )
        for of, result in patterns_by_corpus(store, expressions, corpus, test, texts, progress, kinds=False)
    ]
    at_least = min_matches or max(1, by_corpus[0].triggers.value_LFK.shape[-1] // 4)
    found = [find_concept(name, by_corpus, at_least, test.alpha, test.by_layer) for name in expressions]
    settings = {**test.settings(store), "min_matches": at_least}
    sources = {name: expression.pattern for name, expression in expressions.items()}
    return concepts_result(concepts_document(by_corpus, found, sources, settings))


def read_concepts_document(path: Path, store_path: Path) -> dict[str, Any]:
    """What `concepts --out` wrote for this store; InputError where it is something else, or of another model."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} can't be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} isn't JSON: {error}") from error
    if not isinstance(document, dict) or any(key not in document for key in _KEYS):
        raise InputError(f"{path} isn't a document of `neurotally concepts --out`")
    ours = model_key(stores.store_attributes(store_path).get("model"))
    if document.get("model") != ours:
        raise InputError(f"{path} is of {document.get('model')!r}, the store of {ours!r}; give this store's concepts")
    return document


def concepts_result(document: dict[str, Any]) -> Result:
    """The keys of each concept: how many, where, and which concepts share them."""
    tables = [
        _keys_table(document),
        _layers_table(document),
        *_overlap_tables(document),
        _strongest_table(document),
        Table("expressions", "Regular expressions", [Column("concept"), Column("regular expression")],
              [list(pair) for pair in document["concepts"].items()], is_long=True),
    ]  # fmt: skip
    found = [f"{concept} {len(neurons):,}" for concept, neurons in document["specific"].items()]
    return Result(
        "concepts", document, f"Keys of {model_name(document['model'])} whose triggers match a concept", tables,
        [_chart(document)], _notes(document), findings=[f"Keys over all corpora: {', '.join(found)}."],
        title="Concepts",
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class CorpusConcepts:
    """What the concepts are chosen from, of one corpus."""

    triggers: TriggerLists
    counts: KeyCounts
    chance: KeyCounts
    null: KeyCounts | None
    missing: Mapping[str, str]
    names: Sequence[str]
    """Of all documents; of their files where documents are windows of lines."""
    sha256_D32: np.ndarray
    document_lines: int | None
    """How many lines a document has at most; None: documents are whole files."""


@dataclass(frozen=True, eq=False)
class ConceptKeys:
    """The keys of one concept. C corpora."""

    name: str
    matches_CLF: np.ndarray
    """int32: matching triggers, identical contexts once."""
    at_least_CLF: np.ndarray
    """bool: at least `min_matches` of them."""
    p_CLF: np.ndarray | None
    """float64, corrected over the keys of all corpora in which the concept occurs; None without null keys."""
    passes_CLF: np.ndarray | None
    """bool: p is at most alpha."""
    chosen_CLF: np.ndarray
    """bool: at least so many, and the test passed where there is one."""
    null_share_C: np.ndarray
    """float64: share of null keys with at least `min_matches`; NaN without null keys."""
    needed: int | None
    """So many keys must have the smallest p there is, for any to pass; None without null keys."""

    @property
    def neurons(self) -> np.ndarray:
        """int64 [n, 2] of (layer, neuron), ascending: chosen over some corpus."""
        return np.argwhere(self.chosen_CLF.any(axis=0))


def find_concept(
    name: str, corpora: Sequence[CorpusConcepts], min_matches: int, alpha: float, by_layer: bool = False
) -> ConceptKeys:
    """The keys of a concept that all of `corpora` were searched for."""
    only = [_one(corpus.counts, _column(corpus.counts, name)) for corpus in corpora]
    nulls = [None if c.null is None else _one(c.null, _column(c.null, name)) for c in corpora]
    matches_CLF = np.stack([counts.count_S[0] for counts in only])
    at_least_CLF = matches_CLF >= min_matches
    p_CLF, num_needed = None, None
    if nulls[0] is not None:
        p_CLF = np.ones(matches_CLF.shape)
        few = fewest_contexts(corpora[0].triggers.value_LFK.shape[-1])
        for number, (counts, null) in enumerate(zip(only, nulls, strict=True)):
            assert null is not None
            p_CLF[number] = key_p(counts, null, few, by_layer)[0]
        occurs_C = np.array([_occurs(corpus, name) for corpus in corpora])
        p_CLF[occurs_C] = corrected(p_CLF[occurs_C])
        num_null = min((_num_tested(null, few, by_layer) for null in nulls if null is not None), default=0)
        num_needed = needed(int(p_CLF[occurs_C].size), num_null, alpha)
    passes_CLF = None if p_CLF is None else p_CLF <= alpha
    return ConceptKeys(
        name=name,
        matches_CLF=matches_CLF,
        at_least_CLF=at_least_CLF,
        p_CLF=p_CLF,
        passes_CLF=passes_CLF,
        chosen_CLF=at_least_CLF if passes_CLF is None else at_least_CLF & passes_CLF,
        null_share_C=np.array([np.nan if n is None else (n.count_S[0] >= min_matches).mean() for n in nulls]),
        needed=num_needed,
    )


def _num_tested(null: KeyCounts, min_contexts: int, by_layer: bool) -> int:
    """The null keys that a key is tested against, the fewest of any layer where each has its own."""
    enough_LM = null.distinct >= min_contexts
    return int(enough_LM.sum(axis=1).min() if by_layer else enough_LM.sum())


def polysemantic(concepts: Sequence[ConceptKeys]) -> list[tuple[int, int, list[str]]]:
    """(layer, neuron, names of its concepts) of every key that has two or more."""
    serves_SLF = np.stack([concept.chosen_CLF.any(axis=0) for concept in concepts])
    return [
        (layer, neuron, [concepts[at].name for at in np.flatnonzero(serves_SLF[:, layer, neuron]).tolist()])
        for layer, neuron in np.argwhere(serves_SLF.sum(axis=0) >= 2).tolist()
    ]


def concepts_document(
    corpora: Sequence[CorpusConcepts],
    concepts: Sequence[ConceptKeys],
    patterns: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The document of `concepts --json` and `--out`.

    `settings`: model, null, min_matches, alpha, by_layer_tests, window_lines, inside.
    """
    names = [corpus.triggers.corpus for corpus in corpora]
    _, num_layers, num_neurons = concepts[0].matches_CLF.shape
    common_SS = pairwise_common({concept.name: concept.neurons for concept in concepts})
    chosen_CLF = np.any([concept.chosen_CLF for concept in concepts], axis=0)
    documents = {
        name: _documents(corpus, chosen_LF) for name, corpus, chosen_LF in zip(names, corpora, chosen_CLF, strict=True)
    }
    num_null = 0 if corpora[0].null is None else corpora[0].null.distinct.size
    document: dict[str, Any] = finite(
        {
            "schema": CONCEPTS_SCHEMA,
            **settings,
            "corpora": names,
            "concepts": dict(patterns),
            "layers": num_layers,
            "neurons": num_neurons,
            "triggers": corpora[0].triggers.value_LFK.shape[-1],
            "null_keys": num_null,
            "needed": {concept.name: concept.needed for concept in concepts},
            "specific": {concept.name: concept.neurons.tolist() for concept in concepts},
            "by_layer": {one.name: one.chosen_CLF.any(axis=0).sum(axis=1).tolist() for one in concepts},
            "by_corpus": {one.name: _by_corpus(one, corpora) for one in concepts},
            "strongest": {concept.name: _strongest(concept, corpora) for concept in concepts},
            "overlap": {"common": common_SS.tolist(), "jaccard": pairwise_jaccard(common_SS).tolist()},
            "polysemantic": [list(entry) for entry in polysemantic(concepts)],
            "trigger_documents": {
                name: sorted({bytes(corpus.sha256_D32[number]).hex() for number in documents[name]})
                for name, corpus in zip(names, corpora, strict=True)
            },
            "trigger_names": {
                name: sorted({corpus.names[number] for number in documents[name]})
                for name, corpus in zip(names, corpora, strict=True)
            },
            "document_lines": corpora[0].document_lines,
            "trigger_files": {
                name: _files(corpus, documents[name])
                for name, corpus in zip(names, corpora, strict=True)
                if corpus.document_lines is not None
            },
            "missing": {
                name: dict(corpus.missing) for name, corpus in zip(names, corpora, strict=True) if corpus.missing
            },
        }
    )
    return document


def _keys_table(document: Mapping[str, Any]) -> Table:
    at_least = f"at least {document['min_matches']} of {document['triggers']} match"
    columns = [Column("concept"), Column("corpus"), Column("base rate", "share", 2), Column(at_least, "count"),
               Column("of null keys", "share", 2), Column("test passed", "count"), Column("keys", "count")]  # fmt: skip
    rows: list[list[Cell]] = [
        [concept, corpus, *(found[key] for key in ("chance", "at_least", "null_share", "passing", "keys"))]
        for concept, by_corpus in document["by_corpus"].items()
        for corpus, found in by_corpus.items()
    ]
    return Table("keys", "Keys of each concept", columns, rows)


def _layers_table(document: Mapping[str, Any]) -> Table:
    columns = [Column("concept"), *(Column(str(layer), "count") for layer in range(document["layers"]))]
    rows: list[list[Cell]] = [[name, *by_layer] for name, by_layer in document["by_layer"].items()]
    return Table("layers", "Keys by layer, over all corpora", columns, rows, is_long=True, look="shares")


def _overlap_tables(document: Mapping[str, Any]) -> list[Table]:
    names = list(document["specific"])
    made = []
    for key, title, kind, digits in (
        ("jaccard", "Overlap of every two concepts: the Jaccard index of their keys", "number", 2),
        ("common", "Keys in common; on the diagonal all of a concept", "count", None),
    ):
        rows: list[list[Cell]] = [[name, *values] for name, values in zip(names, document["overlap"][key], strict=True)]
        for row, values in enumerate(rows if key == "jaccard" else []):
            values[row + 1] = None  # of itself
        columns = [Column("concept"), *(Column(name, cast(Kind, kind), digits) for name in names)]
        made.append(Table(key, title, columns, rows, is_long=True, look="shares"))
    return made


def _strongest_table(document: Mapping[str, Any]) -> Table:
    columns = [Column("concept"), Column("corpus"), *(Column(name, "count") for name in (
        "layer", "neuron", "matches", "contexts")), Column("p", "number", 3)]  # fmt: skip
    rows: list[list[Cell]] = [
        [concept, *(one[column.name] for column in columns[1:])]
        for concept, entries in document["strongest"].items()
        for one in entries
    ]
    return Table("strongest", "Keys with the most matches", columns, rows, is_long=True)


def _chart(document: Mapping[str, Any]) -> Chart:
    """One panel a concept: how many of its keys lie in each layer."""
    tested = "more than null keys" if document["null_keys"] else "not tested against null keys"
    label = f"at least {document['min_matches']} of {document['triggers']} triggers match, {tested}"
    panels = [
        Panel(name, [Series(label, by_layer, mark="filled")], f"{sum(by_layer):,} keys",
              empty="" if any(by_layer) else "no key passes")
        for name, by_layer in document["by_layer"].items()
    ]  # fmt: skip
    return Chart("concepts", "Where each concept's keys sit", panels, "layer, from the input to the output",
                 "keys in the layer", y="count", share_y=False)  # fmt: skip


def _notes(document: Mapping[str, Any]) -> list[str]:
    triggers, alpha = document["triggers"], document["alpha"]
    notes = [f"{len(document['polysemantic']):,} keys serve two or more concepts"] if document["polysemantic"] else []
    notes += [f"base rate: of random positions; keys: at least {document['min_matches']} of {triggers} triggers match"]
    if document["null_keys"]:
        notes.append(
            f"and the test against {document['null_keys']:,} null keys passes at {alpha:g}, corrected over all keys; "
            f"with so few, only {_needed(document.get('needed') or {})} or more keys can pass together"
        )
    else:
        notes.append("not tested: give --null STORE, a profile of the same corpora made with --random-init")
    for corpus, documents in document.get("missing", {}).items():
        some = list(documents.items())[:_LISTED_MISSING]
        notes += [f"{corpus}: {name} is left out: {reason}" for name, reason in some]
        if len(documents) > _LISTED_MISSING:
            notes.append(
                f"{corpus}: {len(documents) - _LISTED_MISSING:,} more are left out, named in the JSON document"
            )
    return notes


def _needed(by_concept: Mapping[str, int]) -> str:
    """The number, by concept where it differs."""
    if len(set(by_concept.values())) == 1:
        return f"{next(iter(by_concept.values())):,}"
    return ", ".join(f"{number:,} ({name})" for name, number in by_concept.items())


def _by_corpus(concept: ConceptKeys, corpora: Sequence[CorpusConcepts]) -> dict[str, Any]:
    found = {}
    for number, corpus in enumerate(corpora):
        chance = _one(corpus.chance, _column(corpus.chance, concept.name)).share(0, 1)
        found[corpus.triggers.corpus] = {
            "chance": float(np.nanmean(chance)) if np.isfinite(chance).any() else None,
            "at_least": int(concept.at_least_CLF[number].sum()),
            "null_share": float(concept.null_share_C[number]),
            "passing": None if concept.passes_CLF is None else int(concept.passes_CLF[number].sum()),
            "keys": int(concept.chosen_CLF[number].sum()),
            "most": int(concept.matches_CLF[number].max(initial=0)),
        }
    return found


def _strongest(concept: ConceptKeys, corpora: Sequence[CorpusConcepts]) -> list[dict[str, Any]]:
    """The keys with the most matches."""
    order = np.argsort(-concept.matches_CLF, axis=None, kind="stable")[:_STRONGEST]
    entries = []
    for at in zip(*np.unravel_index(order, concept.matches_CLF.shape), strict=True):
        number, layer, neuron = (int(index) for index in at)
        entries.append({
            "corpus": corpora[number].triggers.corpus, "layer": layer, "neuron": neuron,
            "matches": int(concept.matches_CLF[at]), "contexts": int(corpora[number].counts.distinct[layer, neuron]),
            "p": None if concept.p_CLF is None else float(concept.p_CLF[at]),
        })  # fmt: skip
    return [entry for entry in entries if entry["matches"]]


def _occurs(corpus: CorpusConcepts, name: str) -> bool:
    """Whether the concept was found at any place looked at; where it wasn't there is nothing to test."""
    every = [corpus.counts, corpus.chance] + ([] if corpus.null is None else [corpus.null])
    return any(bool(counts.count_S[_column(counts, name)].any()) for counts in every)


def _documents(corpus: CorpusConcepts, chosen_LF: np.ndarray) -> list[int]:
    """The documents in the trigger lists of the chosen keys."""
    used = corpus.triggers.used_LFK & chosen_LF[:, :, None]
    numbers: list[int] = np.unique(corpus.triggers.document_LFK[used]).tolist()
    return numbers


def _files(corpus: CorpusConcepts, documents: Sequence[int]) -> list[str]:
    """The digests of the files that these windows are of."""
    digests = file_digests(corpus.names, corpus.sha256_D32)
    return sorted({digests[corpus.names[number]].hex() for number in documents})


def _column(counts: KeyCounts, name: str) -> int:
    return next(
        at
        for at, statistic in enumerate(counts.statistics)
        if statistic.family == "concepts" and statistic.name == name
    )


def _one(counts: KeyCounts, statistic: int) -> KeyCounts:
    """The counts of one statistic alone."""
    return KeyCounts((counts.statistics[statistic],), counts.distinct, counts.count_S[statistic : statistic + 1])
