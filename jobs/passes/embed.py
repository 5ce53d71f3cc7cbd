"""The pass behind `neurotally embed`: the embeddings of a parallel corpus, each distinct text embedded once.

    STORE/embeddings/NAME/   attrs: languages, bos, left_out, missing; identity as in `jobs.passes.run`
      weighted   float32 (layer, text, dimension)   layer 0: the token embeddings; the last one: after the final norm
      last       float32 (layer, text, dimension)
      text       uint32  (language, id)             number of the text that a language has for an id
      hash       uint8   (text, 32)                 SHA-256 of its UTF-8 bytes
      tokens     uint32  (text)                     that the model read, BOS and the like among them
      special    uint32  (text)                     how many of them are special
      id         string  (id)

Two equal texts have one number, so that their embeddings are equal to the bit. A text that is longer than the model's
context, or of which no token counts, takes its id out of all languages; `left_out` names it.
"""

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.jobs.passes.run import PassRequest, PassResult, Plan, run_pass
from neurotally.jobs.progress import Progress
from neurotally.jobs.worker import TOKEN_BUDGET
from neurotally.profiler import store
from neurotally.profiler.batches import TokenRows, lay_out
from neurotally.profiler.embedding import BOS_RULES, Embeddings, embed_rows
from neurotally.profiler.errors import InputError
from neurotally.profiler.memory import halving
from neurotally.profiler.model import LoadedModel, ModelFacts
from neurotally.profiler.parallel import ParallelTexts

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
_TASK_TEXTS = 64
"""At 8B size a text's embeddings are 1 MB."""
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
        """What tells it from the pass's other tasks."""
        return str(self.first)

    def __str__(self) -> str:
        return f"texts {self.first} to {self.first + len(self.texts) - 1} ({self.texts[0][:40]!r} …)"


@dataclass(frozen=True)
class EmbedJob:
    """The config of the pass."""

    bos: str
    """One of BOS_RULES."""
    token_budget: int
    """Cells of a rectangle."""

    def bind(self, model: LoadedModel) -> "Embedder":
        """The pass on a loaded model."""
        return Embedder(model, self)


@dataclass(frozen=True)
class PreparedTexts:
    """A task's texts, tokenised. n texts; `rows` holds those that can be embedded, numbered from 0."""

    task: TextTask
    rows: TokenRows
    fits_n: np.ndarray
    tokens_n: np.ndarray
    special_n: np.ndarray


class Embedder:
    """The pass on a loaded model: pure functions of (config, task)."""

    def __init__(self, model: LoadedModel, job: EmbedJob):
        self._model = model
        self._job = job

    def prepare(self, task: TextTask) -> PreparedTexts:
        """Tokenise."""
        ids: list[list[int]] = self._model.tokenizer(
            list(task.texts), add_special_tokens=self._job.bos != "none",
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )["input_ids"]  # fmt: skip
        special_ids = self._model.special_ids
        special_n = np.array([sum(token in special_ids for token in row) for row in ids], np.uint32)
        counted_n = np.array([len(row) - self._uncounted(row) for row in ids])
        tokens_n = np.array([len(row) for row in ids], np.uint32)
        longest = self._model.facts.max_row_tokens
        fits_n = (tokens_n <= longest) & (counted_n > 0)
        fitting = [row for row, fits in zip(ids, fits_n, strict=True) if fits]
        rows = lay_out(list(enumerate(fitting)), special_ids, "documents", longest)
        return PreparedTexts(task, rows, fits_n, tokens_n, special_n)

    def compute(self, prepared: PreparedTexts, hint: np.ndarray | None = None) -> PassResult:
        """Run the model over a task's texts; those that can't be embedded have NaN."""
        start = time.perf_counter()
        embeddings, restarts = self._embeddings(prepared.rows)
        arrays = {
            "weighted": _spread(embeddings.weighted_NLD, prepared.fits_n),
            "last": _spread(embeddings.last_NLD, prepared.fits_n),
            "fits": prepared.fits_n,
            "tokens": prepared.tokens_n,
            "special": prepared.special_n,
        }
        tokens, seconds = len(prepared.rows.ids_N), time.perf_counter() - start
        return PassResult(prepared.task.key, arrays, tokens, seconds, restarts)

    def _uncounted(self, ids: Sequence[int]) -> int:
        return int(self._job.bos != "counted" and bool(ids) and ids[0] in self._model.special_ids)

    def _embeddings(self, rows: TokenRows) -> tuple[Embeddings, int]:
        """Out of memory begins the task again with half the token budget, a row at least."""
        counted = self._job.bos == "counted"
        return halving(
            self._job.token_budget,
            lambda budget: embed_rows(self._model, rows, counted, budget, self._model.facts.attention_budget),
            "a single text doesn't fit in memory",
        )


@dataclass(frozen=True)
class _Assembly:
    """Puts the parts of a pass together. N distinct texts."""

    parallel: ParallelTexts
    distinct: Sequence[str]
    bos: str
    max_tokens: int

    def __call__(self, parts: list[dict[str, np.ndarray]]) -> tuple[store.Arrays, dict[str, Any]]:
        """The group's arrays and attributes; takes the parts' large arrays out of them, to need no second copy."""
        fits_N, tokens_N, special_N = (
            np.concatenate([part[name] for part in parts]) for name in ("fits", "tokens", "special")
        )
        number = {text: number for number, text in enumerate(self.distinct)}
        texts = self.parallel.texts
        number_CI = np.array([[number[text] for text in by_id.values()] for by_id in texts.values()])
        left_out = self._left_out(number_CI, fits_N, tokens_N)
        keep_I = fits_N[number_CI].all(axis=0)
        if not keep_I.any():
            first = left_out[0]
            raise InputError(
                f"no id is left: none has a text in every language that can be embedded; {first['id']!r} of "
                f"{first['language']!r}: {first['reason']}"
            )
        used, text_CI = np.unique(number_CI[:, keep_I], return_inverse=True)
        arrays: store.Arrays = {
            "weighted": _by_layer(parts, "weighted", used),
            "last": _by_layer(parts, "last", used),
            "text": text_CI.reshape(len(texts), -1).astype(np.uint32),
            "hash": np.frombuffer(
                b"".join(hashlib.sha256(self.distinct[number].encode()).digest() for number in used), np.uint8
            ).reshape(-1, 32),
            "tokens": tokens_N[used],
            "special": special_N[used],
            "id": np.array(self.parallel.ids, dtype=object)[keep_I],
        }
        described = {
            "languages": list(self.parallel.languages),
            "bos": self.bos,
            "left_out": left_out,
            "missing": list(self.parallel.left_out),
        }
        return arrays, described

    def _left_out(self, number_CI: np.ndarray, fits_N: np.ndarray, tokens_N: np.ndarray) -> list[dict[str, str]]:
        """Each id left out, once, with the first language whose text is at fault."""
        found = []
        for i in np.flatnonzero(~fits_N[number_CI].all(axis=0)):
            c = int(np.argmin(fits_N[number_CI[:, i]]))
            tokens = int(tokens_N[number_CI[c, i]])
            too_long = f"{tokens:,} tokens, more than the model's context of {self.max_tokens:,}"
            reason = too_long if tokens > self.max_tokens else "no token that counts"
            found.append({"id": self.parallel.ids[i], "language": self.parallel.languages[c], "reason": reason})
        return found


def embed(request: PassRequest, parallel: ParallelTexts, bos: str, progress: Progress) -> dict[str, Any]:
    """Bring `request.store` to hold the embeddings of a parallel corpus as `request.group`; its attributes.

    `bos`: one of BOS_RULES. Raises as `run_pass`, and InputError where no id is left.
    """
    assert bos in BOS_RULES, bos
    distinct = list(dict.fromkeys(text for by_id in parallel.texts.values() for text in by_id.values()))

    def make_plan(facts: ModelFacts, _: Path) -> Plan:
        budget = min(TOKEN_BUDGET[facts.device_type], _POOLED_BYTES // (8 * facts.width))
        return Plan(
            job=EmbedJob(bos, budget),
            tasks=_cut(distinct),
            identity={
                "bos": bos,
                "languages": list(parallel.languages),
                "ids": len(parallel.ids),
                "texts": parallel.sha256,
                "token_budget": budget,
            },
            assemble=_Assembly(parallel, distinct, bos, facts.max_row_tokens),
            schema=SCHEMA,
            what="batch",
        )

    return run_pass(request, make_plan, progress)


def _cut(texts: Sequence[str]) -> list[TextTask]:
    """Consecutive texts in tasks of some size, the same whoever runs them."""
    tasks: list[TextTask] = []
    first = characters = 0
    for number, text in enumerate(texts):
        if number > first and (number - first == _TASK_TEXTS or characters + len(text) > _TASK_CHARACTERS):
            tasks.append(TextTask(first, tuple(texts[first:number])))
            first, characters = number, 0
        characters += len(text)
    return [*tasks, TextTask(first, tuple(texts[first:]))]


def _spread(values_NLD: np.ndarray, fits_n: np.ndarray) -> np.ndarray:
    """The rows in their places among all texts, NaN in the others."""
    spread_nLD = np.full((len(fits_n), *values_NLD.shape[1:]), np.nan, np.float32)
    spread_nLD[fits_n] = values_NLD
    return spread_nLD


def _by_layer(parts: list[dict[str, np.ndarray]], name: str, used: np.ndarray) -> np.ndarray:
    """float32 [L, texts used, D] of the parts' [n, L, D], which are taken out of them."""
    _, num_layers, width = parts[0][name].shape
    by_layer_LND = np.empty((num_layers, len(used), width), np.float32)
    end = first = 0
    for part in parts:
        values_nLD = part.pop(name)
        here = used[(used >= first) & (used < first + len(values_nLD))] - first
        by_layer_LND[:, end : end + len(here)] = values_nLD[here].transpose(1, 0, 2)
        first, end = first + len(values_nLD), end + len(here)
    return by_layer_LND
