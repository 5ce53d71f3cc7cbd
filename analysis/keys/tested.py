"""The triggers of every key of a store, read in their texts and counted, beside chance and null keys.

One corpus after the other, so that only one corpus's places are held at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import Annotated, Any, NamedTuple

import numpy as np

from neurotally.analysis.keys.patterns import CorpusPatterns, corpus_patterns
from neurotally.analysis.keys.places import WINDOW_LINES, PlaceReader, find_lexer, place_codes
from neurotally.analysis.keys.texts import Texts, read_nulls, read_places, sample_places
from neurotally.analysis.keys.trigger_lists import TriggerLists, corpora_with_triggers, read_triggers
from neurotally.analysis.options import Option, WindowLines
from neurotally.analysis.progress import Progress
from neurotally.analysis.result import model_key
from neurotally.profiler.buckets import location
from neurotally.profiler.corpus.texts import CorpusTexts
from neurotally.profiler.networks import is_neuron, networks_of
from neurotally.profiler.store import store_attributes

SAMPLED_PLACES = 20_000
"""Random positions of each corpus for what chance gives: a rate of 1 % is then known to 0.07 %."""
_LISTED_MISSING = 5


@dataclass(frozen=True)
class NullTest:
    """What a key's triggers are compared with, and how."""

    nulls: Annotated[
        tuple[Path, ...],
        Option("A profile of the same corpora made with --random-init; may be repeated.", "STORE", names=("--null",)),
    ] = ()
    window: WindowLines = WINDOW_LINES
    inside: Annotated[bool, Option("The trigger token itself must lie in the concept's match.")] = False
    alpha: Annotated[float, Option("The share of false ones among the keys that pass.", share=True)] = 0.05
    by_layer: Annotated[bool, Option("Test a key against its own layer's null keys alone.")] = False
    seed: Annotated[int, Option("Of random positions.", min=0)] = 0

    def settings(self, path: Path) -> dict[str, Any]:
        """What a document says of it, and of the store."""
        model = store_attributes(path).get("model") or {}
        is_neuron_LF = is_neuron(networks_of(model), model["num_layers"], model["num_neurons"])
        return {
            "model": model_key(model),
            "all_keys": int(is_neuron_LF.sum()),
            "null": [model_key(store_attributes(location(null)).get("model")) for null in self.nulls],
            "alpha": self.alpha,
            "by_layer_tests": self.by_layer,
            "window_lines": self.window,
            "inside": self.inside,
            "triggers": (store_attributes(path)["config"] or {}).get("triggers"),
        }


def missing_text_notes(corpus: str, missing: Mapping[str, str]) -> list[str]:
    """The first documents without a text, and how many more there are."""
    notes = [f"{corpus}: left out: {document} ({reason})" for document, reason in missing.items()]
    if len(notes) > _LISTED_MISSING:
        more = f"{corpus}: left out: {len(notes) - _LISTED_MISSING:,} more, named in the JSON document"
        notes = [*notes[:_LISTED_MISSING], more]
    return notes


UNTESTED = NullTest()
"""Without null keys."""


class CorpusKeys(NamedTuple):
    """The keys of one corpus."""

    triggers: TriggerLists
    texts: CorpusTexts
    patterns: CorpusPatterns


def patterns_by_corpus(
    path: Path, concepts: Mapping[str, Pattern[str]], wanted: Sequence[str], test: NullTest, texts: Texts,
    progress: Progress, kinds: bool = True,
) -> Iterator[CorpusKeys]:  # fmt: skip
    """Every corpus, or those wanted; without `kinds` nothing is lexed."""
    tokenizer, nulls = None, [location(null) for null in test.nulls]
    corpora = corpora_with_triggers(path, wanted)
    for name in progress.over(corpora, "keys", "corpus", len(corpora)):
        lists, null_lists = read_triggers(path, name), read_nulls(path, nulls, name)
        tokenizer = tokenizer or texts.tokenizer(path)
        of_corpus = texts.of(path, name)
        sampled = sample_places(of_corpus, SAMPLED_PLACES, test.seed)
        codes = [place_codes(*sampled), *(one.place_codes() for one in (lists, *null_lists))]
        code_P = np.unique(np.concatenate(codes))
        lexer = find_lexer(name, of_corpus.names) if kinds else None
        reader = PlaceReader(lexer, concepts, test.window, test.inside)
        places = read_places(of_corpus, tokenizer, reader, code_P, progress)
        at = places.index(*sampled)
        label = None if lexer is None else lexer.name
        patterns = corpus_patterns(lists, places, at[at >= 0], null_lists, label, test.alpha, test.seed, test.by_layer)
        yield CorpusKeys(lists, of_corpus, patterns)
