"""The commands about keys as memories: triggers, patterns, concepts. They read stores and texts and run no model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from re import Pattern
from typing import TYPE_CHECKING, Any

import click

from neurotally.jobs.commands.options import (
    ARCHIVE,
    COUNT,
    FIGURE,
    JSON_FLAG,
    ONLY_CORPUS,
    OUT,
    PATH,
    STORE,
    Share,
    TextOptions,
    as_one,
    text_options,
)
from neurotally.jobs.commands.output import draw, show
from neurotally.profiler.errors import InputError

if TYPE_CHECKING:
    from neurotally.analysis.keys.patterns import CorpusPatterns
    from neurotally.jobs.key_texts import TextRequest
    from neurotally.profiler.texts import CorpusTexts

SAMPLED_PLACES = 20_000
"""Random positions of each corpus for what chance gives: a rate of 1 % is then known to 0.07 %."""

_WINDOW = click.option(
    "--window",
    type=COUNT,
    default=5,
    show_default=True,
    metavar="LINES",
    help="The lines around a trigger, its own in the middle.",
)


@dataclass(frozen=True)
class TestOptions:
    """What a key's triggers are compared with, and how."""

    nulls: tuple[Path, ...]
    window: int
    inside: bool
    alpha: float
    by_layer: bool
    seed: int


_test_options = as_one(
    "test",
    TestOptions,
    click.option(
        "--null",
        "nulls",
        type=PATH,
        multiple=True,
        metavar="STORE",
        help="A profile of the same corpora made with --random-init; may be repeated.",
    ),
    _WINDOW,
    click.option("--inside", is_flag=True, help="The trigger token itself must lie in the concept's match."),
    click.option(
        "--alpha",
        type=Share(),
        default=0.05,
        show_default=True,
        help="The share of false ones among the keys that pass.",
    ),
    click.option("--by-layer", is_flag=True, help="Test a key against its own layer's null keys alone."),
    click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of random positions."),
)


@click.command(short_help="The places that trigger a key")
@STORE
@click.argument("layer", type=click.IntRange(min=0))
@click.argument("neuron", type=click.IntRange(min=0))
@ONLY_CORPUS
@click.option("--top", type=COUNT, metavar="N", help="The N largest of each corpus; default: all in the store.")
@_WINDOW
@text_options
@OUT
@JSON_FLAG
def triggers(store: Path, layer: int, neuron: int, corpus: tuple[str, ...], top: int | None, window: int,
             texts: TextOptions, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """What triggers one key: the places where its coefficient is largest, with file and line.

    Texts come from the store (profile --keep-texts), from --corpora or --corpus-source, or from where they were; each
    is verified by its hash.

    \b
    Example:
      neurotally triggers llama.store 17 4242 --corpus python --top 5
    """
    from neurotally.analysis.keys.trigger_lists import corpora_with_triggers, read_triggers
    from neurotally.jobs.progress import Progress
    from neurotally.jobs.trigger_entries import trigger_entries

    request = texts.request(store)
    tokenizer, entries, progress = None, [], Progress()
    names = corpora_with_triggers(store, corpus)
    for name in progress.over(names, "triggers", "corpus", len(names)):
        lists = read_triggers(store, name)
        num_layers, num_neurons, _ = lists.used_LFK.shape
        if layer >= num_layers or neuron >= num_neurons:
            raise InputError(f"no neuron {neuron} in layer {layer}: {store} has {num_layers} layers of {num_neurons} "
                             "neurons, counted from 0")  # fmt: skip
        tokenizer = tokenizer or request.tokenizer()
        of_neuron = trigger_entries(lists, request.texts(name), [(layer, neuron)], top, tokenizer, progress, window)
        entries += of_neuron[name, layer, neuron]
    if entries and all(entry["text"] is None for entry in entries):
        first = entries[0]
        raise InputError(f"none of {len(entries)} texts found: {first['document']} of {first['corpus']!r}: "
                         f"{first['reason']}; --corpora DIR says where they are")  # fmt: skip
    show(entries, _triggers_text(entries, layer, neuron), as_json, out)


@click.command(short_help="What keys' triggers have in common, by layer")
@STORE
@click.option("--regex", type=PATH, metavar="FILE.toml", help="[concepts] NAME = 'regular expression' lines.")
@ONLY_CORPUS
@_test_options
@text_options
@click.option("--archive", type=ARCHIVE, metavar="FILE.npz", help="Counts and p-values of all keys.")
@FIGURE
@OUT
@JSON_FLAG
def patterns(store: Path, regex: Path | None, corpus: tuple[str, ...], test: TestOptions, texts: TextOptions,
             archive: Path | None, figure: Path | None, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """What the triggers of every key have in common, layer by layer, beside what chance gives.

    The same last token, two or three; keywords, names, literals, comments, operators; your regular expressions.

    \b
    Example:
      neurotally patterns llama.store --null random.store --figure patterns.png
    """
    from neurotally.analysis.figures.patterns import draw_patterns
    from neurotally.analysis.keys.patterns_report import patterns_document, patterns_table, save_key_patterns
    from neurotally.analysis.keys.places import read_concepts

    concepts = {} if regex is None else read_concepts(regex)
    found = [result for _, result in _patterns(texts.request(store), concepts, corpus, test)]
    sources = {name: expression.pattern for name, expression in concepts.items()}
    document = patterns_document(found, sources, _settings(store, test))
    if archive is not None:
        save_key_patterns(found, archive)
    draw(figure, draw_patterns, document)
    show(document, patterns_table(document), as_json, out)


@click.command(short_help="The keys of named regular expressions")
@STORE
@click.option("--regex", type=PATH, metavar="FILE.toml", required=True,
              help="[concepts] NAME = 'regular expression' lines.")  # fmt: skip
@click.option("--min-matches", type=COUNT, metavar="N", help="So many of a key's K triggers; default: K / 4.")
@ONLY_CORPUS
@_test_options
@text_options
@FIGURE
@OUT
@JSON_FLAG
def concepts(store: Path, regex: Path, min_matches: int | None, corpus: tuple[str, ...], test: TestOptions,
             texts: TextOptions, figure: Path | None, out: Path | None, as_json: bool) -> None:  # fmt: skip
    """The keys of each concept: those whose triggers match its regular expression, more than null keys' do.

    The JSON document is a mask file; it also names the documents that chose the keys.

    \b
    Example:
      neurotally concepts llama.store --regex concepts.toml --null random.store --out concepts.json
    """
    from neurotally.analysis.figures.patterns import draw_concepts
    from neurotally.analysis.keys.concepts import CorpusConcepts, concepts_document, concepts_table, find_concept
    from neurotally.analysis.keys.places import read_concepts
    from neurotally.analysis.keys.trigger_lists import read_triggers
    from neurotally.profiler.windows import file_of

    expressions = read_concepts(regex)
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
        for of, result in _patterns(texts.request(store), expressions, corpus, test, kinds=False)
    ]
    at_least = min_matches or max(1, by_corpus[0].triggers.value_LFK.shape[-1] // 4)
    found = [find_concept(name, by_corpus, at_least, test.alpha, test.by_layer) for name in expressions]
    settings = {**_settings(store, test), "min_matches": at_least}
    sources = {name: expression.pattern for name, expression in expressions.items()}
    document = concepts_document(by_corpus, found, sources, settings)
    draw(figure, draw_concepts, document)
    show(document, concepts_table(document), as_json, out)


def _patterns(
    request: "TextRequest", concepts: Mapping[str, Pattern[str]], wanted: tuple[str, ...], test: TestOptions,
    kinds: bool = True,
) -> "Iterator[tuple[CorpusTexts, CorpusPatterns]]":  # fmt: skip
    """The patterns of every corpus, one after the other: only one corpus's places are held at a time."""
    import numpy as np

    from neurotally.analysis.keys.patterns import corpus_patterns
    from neurotally.analysis.keys.places import PlaceReader, find_lexer
    from neurotally.analysis.keys.trigger_lists import corpora_with_triggers, read_triggers
    from neurotally.jobs.key_texts import read_nulls, read_places, sample_places
    from neurotally.jobs.progress import Progress

    tokenizer, progress = None, Progress()
    corpora = corpora_with_triggers(request.store, wanted)
    for name in progress.over(corpora, "keys", "corpus", len(corpora)):
        lists, null_lists = read_triggers(request.store, name), read_nulls(request.store, test.nulls, name)
        tokenizer = tokenizer or request.tokenizer()
        texts = request.texts(name)
        sampled = sample_places(texts, SAMPLED_PLACES, test.seed)
        every = [one.places() for one in (lists, *null_lists)] + [sampled]
        document_P, position_P = np.unique(np.concatenate([np.stack(pair) for pair in every], axis=1), axis=1)
        lexer = find_lexer(name, texts.names) if kinds else None
        places = read_places(
            texts, tokenizer, PlaceReader(lexer, concepts, test.window, test.inside), document_P, position_P, progress
        )
        if not places.found_P.any():
            first, reason = next(iter(places.missing.items()))
            raise InputError(
                f"none of the texts of {name!r} found: {first}: {reason}; --corpora DIR says where they are"
            )
        at = places.index(*sampled)
        label = None if lexer is None else lexer.name
        yield (
            texts,
            corpus_patterns(lists, places, at[at >= 0], null_lists, label, test.alpha, test.seed, test.by_layer),
        )


def _settings(store: Path, test: TestOptions) -> dict[str, Any]:
    from neurotally.jobs.key_texts import model_name
    from neurotally.profiler.store import store_attributes

    return {
        "model": model_name(store),
        "null": [model_name(null) for null in test.nulls],
        "alpha": test.alpha,
        "by_layer_tests": test.by_layer,
        "window_lines": test.window,
        "inside": test.inside,
        "triggers": (store_attributes(store)["config"] or {}).get("triggers"),
    }


def _triggers_text(entries: list[dict[str, Any]], layer: int, neuron: int) -> str:
    if not entries:
        return f"layer {layer}, neuron {neuron}: no triggers; its coefficient is never above 0"
    blocks = []
    for entry in entries:
        head = f"{entry['corpus']}  {entry['coefficient']:.4g}  {entry['document']}"
        if entry["text"] is None:
            blocks.append(f"{head}  token {entry['position']}: no text: {entry['reason']}")
            continue
        start, end = entry["text_start"], entry["text_start"] + len(entry["token"])
        token = entry["token"].replace("\n", "⏎\n")
        marked = f"{entry['text'][:start]}«{token}»{entry['text'][end:]}"
        lines = "\n".join(f"    {line}" for line in marked.removesuffix("\n").split("\n"))
        blocks.append(f"{head}:{entry['line']}:{entry['column']}\n{lines}")
    return "\n\n".join(blocks)


KEY_COMMANDS = (triggers, patterns, concepts)
