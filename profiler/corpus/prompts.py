"""Few-shot translation prompts (arXiv 2506.01074), and the places in them where the target is predicted.

    Python: message = "" - Java: String message = "";        a line for each few-shot pair, then
    Python: n = 50 ... - Java: public static void main ...   the pair of snippets, both stripped

The target is in the prompt (teacher forcing), so one forward gives every position. Target tokens are found by
character offsets: those that end beyond the target's first character. The token before predicts the first of them,
and the last target token is predicted too.

With `paper` the reference's ways are kept where they differ. Each prediction is made from a prefix that was decoded
and encoded again: its BOS doubles, and tokenizers that clean up spaces change it (`x != y` becomes `x!= y`). The target
begins at the last place where its language's name stands, which may be inside the snippet; counts of tokens leave BOS
out, so the last target token is not predicted. Prefixes that are the beginning of a longer one share its forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.profiler.corpus.tokenise import TokenIds, tokenise
from neurotally.profiler.errors import InputError, first_line


@dataclass(frozen=True)
class Prompt:
    """A prompt and where the target begins in it."""

    text: str
    target_start: int
    """The character."""
    target_language: str


@dataclass(frozen=True)
class PromptRow:
    """A row of tokens and the positions in it that are read."""

    ids: list[int]
    positions: list[int]
    gold: list[int]
    """Which token of the prompt each of them predicts."""


@dataclass(frozen=True)
class PromptTokens:
    """A tokenised prompt."""

    ids: list[int]
    rows: list[PromptRow]
    """Empty if there is no target token."""

    @property
    def longest_row(self) -> int:
        """Tokens."""
        return max((len(row.ids) for row in self.rows), default=0)


def read_few_shot(folder: Path, language: str) -> list[str]:
    """The lines of FOLDER/LANGUAGE_fewshot.txt (the name in lower case), stripped."""
    path = folder / f"{language.lower()}_fewshot.txt"
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"few-shot lines of {language!r}: can't read {path}: {first_line(error)}") from error
    if not lines:
        raise InputError(f"few-shot lines of {language!r}: {path} is empty")
    return lines


def build_prompt(
    source: str, target: str, source_lines: Sequence[str], target_lines: Sequence[str], snippet: str, translation: str
) -> Prompt:
    """The prompt of one pair of snippets after the few-shot pairs; `source` and `target` are the languages' names."""
    shots = [f"{source}: {one} - {target}: {other}" for one, other in zip(source_lines, target_lines, strict=True)]
    asked = "\n".join([*shots, f"{source}: {snippet.strip()} - {target}: "])
    return Prompt((asked + translation.strip()).strip(), len(asked), target)


def tokenise_prompts(
    tokenizer: Any, prompts: Sequence[Prompt], special_ids: frozenset[int], paper: bool
) -> list[PromptTokens]:
    """The prompts' tokens and positions; `tokenizer` is a fast one."""
    if paper:
        return [_paper_rows(tokenizer, prompt) for prompt in prompts]
    found = tokenise(tokenizer, [prompt.text for prompt in prompts], with_spans=True)
    return [_clean_row(prompt, tokens, special_ids) for prompt, tokens in zip(prompts, found, strict=True)]


def _clean_row(prompt: Prompt, tokens: TokenIds, special_ids: frozenset[int]) -> PromptTokens:
    ids, span_T2 = tokens
    end = len(ids)
    while end and ids[end - 1] in special_ids:  # an EOS that the tokenizer adds
        end -= 1
    beyond = np.flatnonzero(span_T2[:end, 1] > prompt.target_start)
    if not len(beyond) or not beyond[0]:
        return PromptTokens(ids, [])
    gold = list(range(int(beyond[0]), end))
    return PromptTokens(ids, [PromptRow(ids[:end], [index - 1 for index in gold], gold)])


def _paper_rows(tokenizer: Any, prompt: Prompt) -> PromptTokens:
    name = prompt.target_language
    last_index = prompt.text.rfind(name) + len(f"{name}:") + 1
    first = len(tokenizer.tokenize(prompt.text[:last_index]))
    end = len(tokenizer.tokenize(prompt.text))
    ids: list[int] = tokenizer(prompt.text, verbose=False)["input_ids"]
    gold = list(range(first, min(end, len(ids))))
    if not gold:
        return PromptTokens(ids, [])
    texts = [_decode(tokenizer, ids[:index]) for index in gold]
    prefixes: list[list[int]] = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
    rows: list[PromptRow] = []
    for index, prefix in sorted(zip(gold, prefixes, strict=True), key=lambda pair: -len(pair[1])):
        row = next((row for row in rows if row.ids[: len(prefix)] == prefix), None)
        if row is None:
            rows.append(row := PromptRow(prefix, [], []))
        row.positions.append(len(prefix) - 1)
        row.gold.append(index)
    return PromptTokens(ids, rows)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    """As the reference's release decoded; later ones leave out the clean-up for BPE."""
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return tokenizer.clean_up_tokenization(text) if tokenizer.clean_up_tokenization_spaces else text
