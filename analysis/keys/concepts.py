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
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.keys.null_test import corrected, needed
from neurotally.analysis.keys.patterns import Statistic, known_means, strongest
from neurotally.analysis.keys.places import read_concepts
from neurotally.analysis.keys.tested import UNTESTED, CorpusKeys, NullTest, missing_text_notes, patterns_by_corpus
from neurotally.analysis.keys.texts import ANYWHERE, Texts
from neurotally.analysis.masking.masks import file_digests
from neurotally.analysis.options import Group, OnlyCorpora, Option
from neurotally.analysis.overlap import pairwise_common, pairwise_jaccard, without_diagonal
from neurotally.analysis.parts import Chart, Column, Panel, Series, Table, matrix
from neurotally.analysis.progress import BARS, Progress
from neurotally.analysis.result import Result, finite, model_key, model_name
from neurotally.profiler import store as stores
from neurotally.profiler.buckets import on_disk
from neurotally.profiler.corpus.windows import file_of
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import parsed_file

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
    expressions = read_concepts(on_disk(regex))
    corpora = list(patterns_by_corpus(store, expressions, corpus, test, texts, progress, kinds=False))
    at_least = min_matches or max(1, corpora[0].triggers.value_LFK.shape[-1] // 4)
    found = [find_concept(name, corpora, at_least) for name in expressions]
    settings = {**test.settings(store), "min_matches": at_least}
    sources = {name: expression.pattern for name, expression in expressions.items()}
    return concepts_result(concepts_document(corpora, found, sources, settings))


def read_concepts_document(path: Path, store_path: Path) -> dict[str, Any]:
    """What `concepts --out` wrote for this store; InputError where it is something else, or of another model."""
    document = parsed_file(path, json.loads, "JSON")
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
class ConceptKeys:
    """The keys of one concept. C corpora."""

    name: str
    matches_CLF: np.ndarray
    """int32: matching triggers, identical contexts once."""
    p_CLF: np.ndarray | None
    """float64, corrected over the keys of all corpora in which the concept occurs; None without null keys."""
    chosen_CLF: np.ndarray
    """bool: at least `min_matches` of them, and the test passed where there is one."""
    needed: int | None
    """So many keys must have the smallest p there is, for any to pass; None without null keys."""

    @property
    def neurons(self) -> np.ndarray:
        """int64 [n, 2] of (layer, neuron), ascending: chosen over some corpus."""
        return np.argwhere(self.chosen_CLF.any(axis=0))


def find_concept(name: str, corpora: Sequence[CorpusKeys], min_matches: int) -> ConceptKeys:
    """The keys of a concept that all of `corpora` were searched for."""
    patterns = [corpus.patterns for corpus in corpora]
    at = patterns[0].counts.statistics.index(Statistic("concepts", name))
    matches_CLF = np.stack([of.counts.count_S[at] for of in patterns])
    chosen_CLF = matches_CLF >= min_matches
    if patterns[0].null is None:
        return ConceptKeys(name, matches_CLF, None, chosen_CLF, None)
    p_CLF = np.stack([of.raw_SLF[at] for of in patterns if of.raw_SLF is not None])
    # Where it was found at no place looked at there is nothing to test.
    occurs_C = np.array([
        any(counts.count_S[at].any() for counts in (of.counts, of.chance, of.null) if counts is not None)
        for of in patterns
    ])  # fmt: skip
    p_CLF[occurs_C] = corrected(p_CLF[occurs_C])
    alpha, num_null = patterns[0].alpha, min(int(of.num_tested_L1.min()) for of in patterns)
    chosen_CLF &= p_CLF <= alpha
    return ConceptKeys(name, matches_CLF, p_CLF, chosen_CLF, needed(int(p_CLF[occurs_C].size), num_null, alpha))


def polysemantic(concepts: Sequence[ConceptKeys]) -> list[tuple[int, int, list[str]]]:
    """(layer, neuron, names of its concepts) of every key that has two or more."""
    serves_SLF = np.stack([concept.chosen_CLF.any(axis=0) for concept in concepts])
    return [
        (layer, neuron, [concepts[at].name for at in np.flatnonzero(serves_SLF[:, layer, neuron]).tolist()])
        for layer, neuron in np.argwhere(serves_SLF.sum(axis=0) >= 2).tolist()
    ]


def concepts_document(
    corpora: Sequence[CorpusKeys],
    concepts: Sequence[ConceptKeys],
    patterns: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The document of `concepts --json` and `--out`.

    `settings`: model, null, min_matches, alpha, by_layer_tests, window_lines, inside.
    """
    first, names = corpora[0], [corpus.triggers.corpus for corpus in corpora]
    num_layers, num_neurons, num_triggers = first.triggers.value_LFK.shape
    common_SS = pairwise_common({concept.name: concept.neurons for concept in concepts})
    chosen_CLF = np.any([concept.chosen_CLF for concept in concepts], axis=0)
    chose = {name: _documents(*of_corpus) for name, *of_corpus in zip(names, corpora, chosen_CLF, strict=True)}
    document: dict[str, Any] = finite({
        "schema": 1,
        **settings,
        "corpora": names,
        "concepts": dict(patterns),
        "layers": num_layers,
        "neurons": num_neurons,
        "triggers": num_triggers,
        "null_keys": 0 if first.patterns.null is None else first.patterns.null.distinct.size,
        "needed": {concept.name: concept.needed for concept in concepts},
        "specific": {concept.name: concept.neurons.tolist() for concept in concepts},
        "by_layer": {one.name: one.chosen_CLF.any(axis=0).sum(axis=1).tolist() for one in concepts},
        "by_corpus": {one.name: _by_corpus(one, corpora, settings["min_matches"]) for one in concepts},
        "strongest": {concept.name: _strongest(concept, corpora) for concept in concepts},
        "overlap": {"common": common_SS.tolist(), "jaccard": pairwise_jaccard(common_SS).tolist()},
        "polysemantic": [list(entry) for entry in polysemantic(concepts)],
        "trigger_documents": {name: of["documents"] for name, of in chose.items()},
        "trigger_names": {name: of["names"] for name, of in chose.items()},
        "document_lines": first.texts.window_lines,
        "trigger_files": {name: of["files"] for name, of in chose.items() if "files" in of},
        "missing": {of.patterns.corpus: dict(of.patterns.missing) for of in corpora if of.patterns.missing},
    })  # fmt: skip
    return document


def _keys_table(document: Mapping[str, Any]) -> Table:
    at_least = f"at least {document['min_matches']} of {document['triggers']} match"
    columns = [Column("concept"), Column("corpus"), Column("base rate", "share", 2), Column(at_least, "count"),
               Column("of null keys", "share", 2), Column("test passed", "count"), Column("keys", "count")]  # fmt: skip
    rows = [
        [concept, corpus, *(found[key] for key in ("chance", "at_least", "null_share", "passing", "keys"))]
        for concept, by_corpus in document["by_corpus"].items()
        for corpus, found in by_corpus.items()
    ]
    return Table("keys", "Keys of each concept", columns, rows)


def _layers_table(document: Mapping[str, Any]) -> Table:
    columns = [Column("concept"), *(Column(str(layer), "count") for layer in range(document["layers"]))]
    rows = [[name, *by_layer] for name, by_layer in document["by_layer"].items()]
    return Table("layers", "Keys by layer, over all corpora", columns, rows, is_long=True, look="shares")


def _overlap_tables(document: Mapping[str, Any]) -> list[Table]:
    names, overlap = list(document["specific"]), document["overlap"]
    return [
        matrix("jaccard", "Overlap of every two concepts: the Jaccard index of their keys", "concept", names,
               without_diagonal(overlap["jaccard"]), Column("", "number", 2)),
        matrix("common", "Keys in common; on the diagonal all of a concept", "concept", names, overlap["common"],
               Column("", "count")),
    ]  # fmt: skip


def _strongest_table(document: Mapping[str, Any]) -> Table:
    columns = [Column("concept"), Column("corpus"), *(Column(name, "count") for name in (
        "layer", "neuron", "matches", "contexts")), Column("p", "number", 3)]  # fmt: skip
    rows = [
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
    return Chart("concepts", "Where each concept's keys sit", panels,
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
        notes += missing_text_notes(corpus, documents)
    return notes


def _needed(by_concept: Mapping[str, int]) -> str:
    """The number, by concept where it differs."""
    if len(set(by_concept.values())) == 1:
        return f"{next(iter(by_concept.values())):,}"
    return ", ".join(f"{number:,} ({name})" for name, number in by_concept.items())


def _by_corpus(concept: ConceptKeys, corpora: Sequence[CorpusKeys], min_matches: int) -> dict[str, Any]:
    """How many keys a concept has over each corpus, and how many it would have by chance."""
    found = {}
    for number, of in enumerate(corpus.patterns for corpus in corpora):
        matches_LF, at = concept.matches_CLF[number], of.counts.statistics.index(Statistic("concepts", concept.name))
        found[of.corpus] = {
            "chance": float(known_means(of.chance.share(at, 1))),
            "at_least": int((matches_LF >= min_matches).sum()),
            "null_share": None if of.null is None else float((of.null.count_S[at] >= min_matches).mean()),
            "passing": None if concept.p_CLF is None else int((concept.p_CLF[number] <= of.alpha).sum()),
            "keys": int(concept.chosen_CLF[number].sum()),
            "most": int(matches_LF.max(initial=0)),
        }
    return found


def _strongest(concept: ConceptKeys, corpora: Sequence[CorpusKeys]) -> list[dict[str, Any]]:
    """The keys with the most matches."""
    return [
        {"corpus": corpora[at[0]].triggers.corpus, "layer": at[1], "neuron": at[2],
         "matches": int(concept.matches_CLF[at]), "contexts": int(corpora[at[0]].patterns.counts.distinct[at[1:]]),
         "p": None if concept.p_CLF is None else float(concept.p_CLF[at])}
        for at in strongest(concept.matches_CLF)
    ]  # fmt: skip


def _documents(corpus: CorpusKeys, chosen_LF: np.ndarray) -> dict[str, list[str]]:
    """The documents in the trigger lists of the chosen keys: their hashes, and names; of windows also `files`."""
    triggers, texts = corpus.triggers, corpus.texts
    is_window = texts.window_lines is not None
    numbers = np.unique(triggers.document_LFK[triggers.used_LFK & chosen_LF[:, :, None]]).tolist()
    name_D = [file_of(name) for name in texts.names] if is_window else texts.names
    found = {
        "documents": sorted({bytes(texts.sha256_D32[number]).hex() for number in numbers}),
        "names": sorted({name_D[number] for number in numbers}),
    }
    if is_window:
        digests = file_digests(name_D, texts.sha256_D32)
        found["files"] = sorted({digests[name].hex() for name in found["names"]})
    return found
