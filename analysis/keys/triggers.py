"""What `triggers` says: the places where one neuron's coefficient is largest.

    [{"corpus", "document", "line", "column", "position", "token", "coefficient", "text", "text_line", "text_start",
      "reason"}, ...]

`text_line` is the number of the text's first line, `text_start` where the token begins in the text, `reason` why there
is none. Each corpus's documents are read and tokenised once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from neurotally.analysis.keys.places import WINDOW_LINES, find_line
from neurotally.analysis.keys.texts import ANYWHERE, Texts
from neurotally.analysis.keys.trigger_lists import TriggerLists, corpora_with_triggers, read_triggers
from neurotally.analysis.options import Group, OnlyCorpora, Option, WindowLines
from neurotally.analysis.parts import Cell, Column, Example, Table
from neurotally.analysis.progress import BARS, Progress
from neurotally.analysis.result import Result
from neurotally.profiler import store as stores
from neurotally.profiler.corpus.texts import CorpusTexts, Text, TokenText, read_tokens
from neurotally.profiler.errors import InputError
from neurotally.profiler.networks import layer_widths, networks_of

Place = tuple[str, int, int]
"""(corpus, layer, neuron)."""
Entry = dict[str, Any]
"""A trigger as in the document."""


def study(
    store: Path,
    layer: Annotated[int, Option("The layer, counted from 0.", min=0, is_argument=True)],
    neuron: Annotated[int, Option("The neuron in it, counted from 0.", min=0, is_argument=True)],
    corpus: OnlyCorpora = (),
    top: Annotated[int | None, Option("The N largest of each corpus; default: all in the store.", "N", min=1)] = None,
    window: WindowLines = WINDOW_LINES,
    texts: Annotated[Texts, Group()] = ANYWHERE,
    progress: Progress = BARS,
) -> Result:
    """What triggers one key: the places where its coefficient is largest, with file and line.

    Texts come from the store (profile --keep-texts), from --corpora or --corpus-source, or from where they were; each
    is verified by its hash.

    Example:
      neurotally triggers llama.store 17 4242 --corpus python --top 5

    >>> result = store.triggers(1, 5, top=2)
    >>> result.frame()["coefficient"].is_monotonic_decreasing or len(store.corpora) > 1
    True
    """
    tokenizer, entries = None, []
    names = corpora_with_triggers(store, corpus)
    for name in progress.over(names, "triggers", "corpus", len(names)):
        lists = read_triggers(store, name)
        num_layers, num_neurons, _ = lists.used_LFK.shape
        if layer >= num_layers or neuron >= num_neurons:
            raise InputError(f"no neuron {neuron} in layer {layer}: {store} has {num_layers} layers of {num_neurons} "
                             "neurons, counted from 0")  # fmt: skip
        networks = networks_of(stores.store_attributes(store).get("model"))
        if neuron >= (width := layer_widths(networks, num_layers, num_neurons)[layer]):
            raise InputError(f"no neuron {neuron} in layer {layer}: that layer of {store} has {width}, counted from 0")
        tokenizer = tokenizer or texts.tokenizer(store)
        of_neuron = trigger_entries(lists, texts.of(store, name), [(layer, neuron)], top, tokenizer, progress, window)
        entries += of_neuron[name, layer, neuron]
    if entries and all(entry["text"] is None for entry in entries):
        first = entries[0]
        raise InputError(f"none of {len(entries)} texts found: {first['document']} of {first['corpus']!r}: "
                         f"{first['reason']}; --corpora DIR says where they are")  # fmt: skip
    columns = [Column("corpus"), Column("coefficient", "number"), Column("document"), Column("line", "count"),
               Column("column", "count"), Column("position", "count"), Column("token")]  # fmt: skip
    rows: list[list[Cell]] = [[entry[column.name] for column in columns] for entry in entries]
    table = Table("triggers", "The triggers, largest first in every corpus", columns, rows, is_long=True)
    lead = f"layer {layer}, neuron {neuron}: "
    lead += f"{len(entries)} triggers" if entries else "no triggers; its coefficient is never above 0"
    return Result("triggers", entries, lead, [table], examples=[example(entry) for entry in entries])


def example(entry: Entry) -> Example:
    """A trigger with the text around it."""
    place = f"{entry['corpus']}  {entry['coefficient']:.4g}  {entry['document']}"
    if entry["text"] is None:
        return Example(f"{place}  token {entry['position']}", reason=entry["reason"])
    start, end = entry["text_start"], entry["text_start"] + len(entry["token"])
    text = entry["text"]
    return Example(f"{place}:{entry['line']}:{entry['column']}", text[:start], entry["token"], text[end:])


def gather_triggers(
    path: Path, where: Texts, neurons: Mapping[str, Sequence[tuple[int, int]]], top: int, progress: Progress
) -> tuple[dict[Place, list[Entry]], str]:
    """The `top` largest triggers of each corpus's (layer, neuron), best first, each with its text or a reason.

    Also, in one line, why there are none at all, or none with a text; "" if there are.
    """
    found: dict[Place, list[Entry]] = {}
    try:
        tokenizer, no_tokenizer = where.tokenizer(path), ""
    except InputError as error:
        tokenizer, no_tokenizer = None, str(error)
    for name, of_corpus in progress.over(neurons.items(), "triggers", "corpus", len(neurons)):
        if not of_corpus:
            continue
        try:
            lists, texts = read_triggers(path, name), where.of(path, name)
        except InputError as error:
            return {}, str(error)
        found |= trigger_entries(lists, texts, of_corpus, top, tokenizer, progress, reason=no_tokenizer)
    entries = [entry for of_neuron in found.values() for entry in of_neuron]
    if not entries or any(entry["text"] is not None for entry in entries):
        return found, ""
    return found, f"No text was found, only where the triggers are: {no_tokenizer or entries[0]['reason']}"


def trigger_entries(
    lists: TriggerLists,
    texts: CorpusTexts,
    neurons: Sequence[tuple[int, int]],
    top: int | None,
    tokenizer: Any,
    progress: Progress,
    lines: int = WINDOW_LINES,
    reason: str = "",
) -> dict[Place, list[Entry]]:
    """The triggers of one corpus's (layer, neuron), best first, each in the middle of so many lines.

    `top`: the largest so many; None: all. `reason`: why there are no texts, where there is no tokenizer (None).
    """
    entries: dict[int, list[Entry]] = {}
    found: dict[Place, list[Entry]] = {}
    for layer, neuron in neurons:
        of_neuron = found[lists.corpus, layer, neuron] = []
        for at in np.flatnonzero(lists.used_LFK[layer, neuron])[:top].tolist():
            number = int(lists.document_LFK[layer, neuron, at])
            entry: Entry = {
                "corpus": lists.corpus, "document": texts.names[number], "line": None, "column": None,
                "position": int(lists.position_LFK[layer, neuron, at]), "token": None,
                "coefficient": float(lists.value_LFK[layer, neuron, at]), "text": None, "text_line": None,
                "text_start": None, "reason": reason,
            }  # fmt: skip
            of_neuron.append(entry)
            entries.setdefault(number, []).append(entry)
    if tokenizer is not None:
        read = read_tokens(texts, sorted(entries), tokenizer)
        for document in progress.over(read, texts.corpus, "document", len(entries)):
            for entry in entries[document.number]:
                entry |= _reason_or_text(document, entry["position"], lines)
    return found


def _reason_or_text(document: TokenText | Text, position: int, lines: int) -> Entry:
    if isinstance(document, Text):
        return {"reason": document.reason}
    start, end = document.span_T2[position].tolist()
    return {**find_line(document.text, start, end, lines, document.first_line), "reason": None}
