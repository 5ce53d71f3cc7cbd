"""The triggers of some neurons, with their texts: each corpus's documents are read and tokenised once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.keys.places import WINDOW_LINES, find_line
from neurotally.analysis.keys.texts import Texts
from neurotally.analysis.keys.trigger_lists import TriggerLists, read_triggers
from neurotally.analysis.progress import Progress
from neurotally.profiler.errors import InputError
from neurotally.profiler.texts import CorpusTexts, Text, TokenText, read_tokens

Place = tuple[str, int, int]
"""(corpus, layer, neuron)."""
Entry = dict[str, Any]
"""A trigger as `neurotally triggers --json` gives it: corpus, document, line, column, position, token, coefficient,
text, text_line (its first line's number), text_start (where the token begins in it), reason (why there is no text)."""


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
