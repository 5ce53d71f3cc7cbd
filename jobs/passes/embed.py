"""The pass behind `neurotally embed`: the embeddings of a parallel corpus, each distinct text embedded once.

    STORE/embeddings/NAME/   attrs: languages, bos, left_out, missing; and `jobs.reducers.parts.Parts`'s
      weighted   float32 (layer, text, dimension)   layer 0: the token embeddings; the last one: after the final norm
      last       float32 (layer, text, dimension)
      text       uint32  (language, id)             number of the text that a language has for an id
      hash       uint8   (text, 32)                 SHA-256 of its UTF-8 bytes
      tokens     uint32  (text)                     that the model read, BOS and the like among them
      special    uint32  (text)                     how many of them are special
      id         string  (id)

Two equal texts have one number, so that their embeddings are bitwise identical. A text that is longer than the model's
context, or of which no token counts, takes its id out of all languages; `left_out` names it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from neurotally.jobs.corpora import ListedCorpus
from neurotally.jobs.reducers.parts import KeptParts, Part, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.run import Pass, Setup, model_identity, run_pass
from neurotally.profiler import store
from neurotally.profiler.corpus.batches import TokenRows, lay_out
from neurotally.profiler.corpus.parallel import ParallelTexts
from neurotally.profiler.corpus.tokenise import tokenise
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import LoadedModel, ModelFacts
from neurotally.profiler.passes.embedding import BOS_RULES, embed_rows
from neurotally.profiler.passes.memory import halving
from neurotally.profiler.passes.worker import TOKEN_BUDGET

_NONE = 2**32 - 1
SCHEMA: Mapping[str, store.ArraySpec] = {
    "weighted": store.ArraySpec("float32", ("layer", "text", "dimension"), np.nan),
    "last": store.ArraySpec("float32", ("layer", "text", "dimension"), np.nan),
    "text": store.ArraySpec("uint32", ("language", "id"), _NONE),
    "hash": store.ArraySpec("uint8", ("text", "sha256"), 0),
    "tokens": store.ArraySpec("uint32", ("text",), _NONE),
    "special": store.ArraySpec("uint32", ("text",), _NONE),
    "id": store.ArraySpec("string", ("id",), ""),
}
_TASK_CHARACTERS = 2**16
_POOLED_BYTES = 2**28
"""What the float64 copy of a layer's states may take."""


@dataclass(frozen=True)
class TextTask:
    """Some distinct texts, in order."""

    first: int
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        return str(self.first)

    @property
    def size(self) -> int:
        """Characters."""
        return sum(map(len, self.texts))

    def __str__(self) -> str:
        return f"texts {self.first} to {self.first + len(self.texts) - 1} ({self.texts[0][:40]!r} …)"


class Tokenised(NamedTuple):
    """A task's n texts; `rows` holds those that can be embedded, numbered from 0."""

    rows: TokenRows
    fits_n: np.ndarray
    tokens_n: np.ndarray
    special_n: np.ndarray


class Embedder:
    """The pass on a loaded model. `bos`: one of BOS_RULES; `token_budget`: cells of a batch."""

    def __init__(self, model: LoadedModel, bos: str, token_budget: int):
        self._model = model
        self._bos = bos
        self._token_budget = token_budget

    def prepare(self, task: TextTask) -> Tokenised:
        """Tokenise a task's texts and lay out those that can be embedded."""
        found = tokenise(self._model.tokenizer, task.texts, with_special=self._bos != "none")
        ids = [tokens.ids_T for tokens in found]
        special_ids = self._model.special_ids
        special_n = np.array([sum(token in special_ids for token in row) for row in ids], np.uint32)
        skips_bos_n = np.array([self._bos != "counted" and bool(row) and row[0] in special_ids for row in ids])
        tokens_n = np.array([len(row) for row in ids], np.uint32)
        longest = self._model.facts.max_row_tokens
        fits_n = (tokens_n <= longest) & (tokens_n > skips_bos_n)
        fitting = [row for row, fits in zip(ids, fits_n, strict=True) if fits]
        rows = lay_out(list(enumerate(fitting)), special_ids, "documents", longest)
        return Tokenised(rows, fits_n, tokens_n, special_n)

    def compute(self, task: TextTask, prepared: Tokenised) -> Part:
        """Run the model over a task's texts; those that can't be embedded have NaN."""
        counted = self._bos == "counted"
        embeddings, restarts = halving(
            self._token_budget,
            lambda budget: embed_rows(self._model, prepared.rows, counted, budget),
            "a single text doesn't fit in memory",
        )
        arrays = {
            "weighted": _spread(embeddings.weighted_NLD, prepared.fits_n),
            "last": _spread(embeddings.last_NLD, prepared.fits_n),
            "fits": prepared.fits_n,
            "tokens": prepared.tokens_n,
            "special": prepared.special_n,
        }
        return Part(arrays, len(prepared.rows.ids_N), restarts)


def _assemble(
    parallel: ParallelTexts, distinct: Sequence[str], bos: str, max_tokens: int, parts: KeptParts
) -> tuple[dict[str, np.ndarray | store.Blocks], dict[str, Any]]:
    """The group's arrays and attributes. N distinct texts."""
    fits_N, tokens_N, special_N = (parts.joined(name) for name in ("fits", "tokens", "special"))
    number = {text: number for number, text in enumerate(distinct)}
    texts = parallel.texts
    number_CI = np.array([[number[text] for text in by_id.values()] for by_id in texts.values()])
    left_out = _left_out(parallel, max_tokens, number_CI, fits_N, tokens_N)
    keep_I = fits_N[number_CI].all(axis=0)
    if not keep_I.any():
        first = left_out[0]
        raise InputError(
            f"no id is left: none has a text in every language that can be embedded; {first['id']!r} of "
            f"{first['language']!r}: {first['reason']}"
        )
    used, text_CI = np.unique(number_CI[:, keep_I], return_inverse=True)
    sha256 = [hashlib.sha256(distinct[number].encode()).digest() for number in used]
    arrays = {
        "weighted": _by_layer(parts, "weighted", used),
        "last": _by_layer(parts, "last", used),
        "text": text_CI.reshape(len(texts), -1).astype(np.uint32),
        "hash": np.frombuffer(b"".join(sha256), np.uint8).reshape(-1, 32),
        "tokens": tokens_N[used],
        "special": special_N[used],
        "id": np.array(parallel.ids, dtype=object)[keep_I],
    }
    return arrays, {
        "languages": list(parallel.languages),
        "bos": bos,
        "left_out": left_out,
        "missing": list(parallel.left_out),
    }


def _left_out(
    parallel: ParallelTexts, max_tokens: int, number_CI: np.ndarray, fits_N: np.ndarray, tokens_N: np.ndarray
) -> list[dict[str, str]]:
    """Each id left out, once, with the first language whose text is at fault."""
    found = []
    for i in np.flatnonzero(~fits_N[number_CI].all(axis=0)):
        c = int(np.argmin(fits_N[number_CI[:, i]]))
        tokens = int(tokens_N[number_CI[c, i]])
        too_long = f"{tokens:,} tokens, more than the model's context of {max_tokens:,}"
        reason = too_long if tokens > max_tokens else "no token that counts"
        found.append({"id": parallel.ids[i], "language": parallel.languages[c], "reason": reason})
    return found


def embed_parallel(setup: Setup, group: str, texts: ParallelTexts, bos: str, task_texts: int) -> None:
    """Bring the store to hold the group; InputError where no id is left."""
    assert bos in BOS_RULES, bos
    distinct = list(dict.fromkeys(text for by_id in texts.texts.values() for text in by_id.values()))

    def make_pass(facts: ModelFacts, _: Sequence[ListedCorpus]) -> Pass:
        token_budget = min(TOKEN_BUDGET[facts.device_type], _POOLED_BYTES // (8 * facts.width))
        identity = {
            **model_identity(facts),
            "bos": bos,
            "languages": list(texts.languages),
            "ids": len(texts.ids),
            "texts": texts.sha256,
            "token_budget": token_budget,
        }
        assemble = partial(_assemble, texts, distinct, bos, facts.max_row_tokens)
        keep = partial(Parts, assemble=assemble, schema=SCHEMA)
        plan = Plan(group, _cut(distinct, task_texts), identity, keep, "batch")
        return Pass(partial(Embedder, bos=bos, token_budget=token_budget), [plan])

    run_pass(setup, make_pass)


def _cut(texts: Sequence[str], task_texts: int) -> list[TextTask]:
    """Consecutive texts in tasks of some size, the same whoever runs them."""
    tasks: list[TextTask] = []
    first = characters = 0
    for number, text in enumerate(texts):
        if number > first and (number - first == task_texts or characters + len(text) > _TASK_CHARACTERS):
            tasks.append(TextTask(first, tuple(texts[first:number])))
            first, characters = number, 0
        characters += len(text)
    return [*tasks, TextTask(first, tuple(texts[first:]))]


def _spread(values_NLD: np.ndarray, fits_n: np.ndarray) -> np.ndarray:
    """The rows in their places among all texts, NaN in the others."""
    spread_nLD = np.full((len(fits_n), *values_NLD.shape[1:]), np.nan, np.float32)
    spread_nLD[fits_n] = values_NLD
    return spread_nLD


def _by_layer(parts: KeptParts, name: str, used: np.ndarray) -> store.Blocks:
    """float32 [L, texts used, D] of the parts' [n, L, D]."""
    _, num_layers, width = next(parts.each(name)).shape

    def blocks() -> Iterator[np.ndarray]:
        first = 0
        for values_nLD in parts.each(name):
            here = used[(used >= first) & (used < first + len(values_nLD))] - first
            yield values_nLD[here].transpose(1, 0, 2)
            first += len(values_nLD)

    return store.Blocks((num_layers, len(used), width), 1, blocks())
