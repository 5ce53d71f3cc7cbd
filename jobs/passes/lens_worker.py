"""What a worker does in the lens pass: read every layer at the positions of some translation prompts.

A pure function of (config, task): the arrays by position and the means by prompt that `lens` describes, and of each
random draw of a set its mass, summed over the task.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurotally.jobs.reducers.parts import Part
from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.corpus.prompts import PromptTokens, build_prompt, tokenise_prompts
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.passes.lens import TOP, Lens
from neurotally.profiler.passes.lens_reading import DrawColumns, DrawSums, Readings, SetColumns, read_layers
from neurotally.profiler.passes.memory import halving

COUNTED, TOO_LONG, NO_TARGET = range(3)
STATUS = ("counted", "longer than the context", "no target token")
DRAWS_OF_SNIPPETS, DRAWS_OF_POSITIONS = "_draws_of_snippets", "_draws_of_positions"
"""float64 [L, S, D] in a task's part: each draw's mass, summed over the means of snippets, and over positions."""
VOCABULARY = "_vocabulary"
"""int64 [1] in a task's part: logits per position."""
GOLD_MEANS = ("gold_probability", "gold_rank", "gold_top", "gold_probability_top", "gold_rank_top")
SET_MEANS = ("mass", "mass_top", "rank_top", "hit")


@dataclass(frozen=True)
class PromptTask:
    """Some snippets of one directed pair."""

    source: str
    target: str
    first: int
    """Number of its first snippet in the pair."""
    snippets: tuple[str, ...]
    translations: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.source}\0{self.target}\0{self.first}"

    @property
    def size(self) -> int:
        """Prompts."""
        return len(self.snippets)

    def __str__(self) -> str:
        return f"prompts {self.first} to {self.first + len(self.snippets) - 1} of {self.source}-{self.target}"


@dataclass(frozen=True)
class LensConfig:
    """What decides the result of a task, beside the model."""

    few_shot: Mapping[str, Sequence[str]]
    """Lines by language."""
    set_ids: tuple[np.ndarray, ...]
    """The sets' tokens."""
    draw_ids: tuple[np.ndarray, ...]
    """Those of their draws: [D, m] each, or [0, m]."""
    draws: int
    """D."""
    paper: bool
    token_budget: int
    """Cells of a batch."""


class LensWorker:
    """The pass on a loaded model."""

    def __init__(self, model: LoadedModel, config: LensConfig):
        self._model = model
        self._config = config
        self._lens = Lens(model)
        self._columns = SetColumns(config.set_ids, self._lens.vocabulary)
        self._draw_columns = DrawColumns(config.draw_ids, self._lens.vocabulary)

    def prepare(self, task: PromptTask) -> list[PromptTokens]:
        """Build and tokenise the prompts."""
        source_lines, target_lines = (self._config.few_shot[language] for language in (task.source, task.target))
        prompts = [
            build_prompt(task.source, task.target, source_lines, target_lines, snippet, translation)
            for snippet, translation in zip(task.snippets, task.translations, strict=True)
        ]
        return tokenise_prompts(self._model.tokenizer, prompts, self._model.special_ids, self._config.paper)

    def compute(self, task: PromptTask, prompts: list[PromptTokens]) -> Part:
        """Run the model over a task's prompts; those that can't be read have no positions."""
        status = np.array([self._status(prompt) for prompt in prompts], np.uint8)
        read, restarts = halving(
            self._config.token_budget, lambda budget: self._read(prompts, status == COUNTED, budget)
        )
        arrays: dict[str, np.ndarray] = {
            "prompt_status": status,
            "prompt_tokens": np.array([len(prompt.ids) for prompt in prompts], np.uint32),
            VOCABULARY: np.array([self._lens.vocabulary]),
            **read,
        }
        return Part(arrays, sum(len(row.ids) for prompt in prompts for row in prompt.rows), restarts)

    def _status(self, prompt: PromptTokens) -> int:
        if not prompt.rows:
            return NO_TARGET
        return TOO_LONG if prompt.longest_row > self._model.facts.max_row_tokens else COUNTED

    def _read(self, prompts: list[PromptTokens], counted_n: np.ndarray, budget: int) -> dict[str, np.ndarray]:
        """The arrays by position, and the means by prompt."""
        rows = [(number, row) for number, prompt in enumerate(prompts) if counted_n[number] for row in prompt.rows]
        laid_out = lay_out(
            [(number, row.ids) for number, (_, row) in enumerate(rows)], self._model.special_ids, "documents",
            self._model.facts.max_row_tokens,
        )  # fmt: skip
        prompt_T = np.array([number for number, _ in rows], np.int64)[laid_out.document_N]
        # By token of the rows: which token of the prompt is predicted there; -1: none.
        gold_T = np.full(len(prompt_T), -1, np.int64)
        for (_, row), (start, _) in zip(rows, laid_out.bounds_R2, strict=True):
            gold_T[start + np.array(row.positions)] = row.gold
        tokens, readings = [], []
        draws = DrawSums(self._draw_columns, len(prompts), self._model.facts.num_layers)
        for found in self._lens.batches(laid_out, gold_T >= 0, budget):
            gold_n = np.array([prompts[prompt_T[token]].ids[gold_T[token]] for token in found.token_n], np.int64)
            vectors = self._lens.vectors(found.ids_BT, found.at_BT)
            prompt_n = prompt_T[found.token_n]
            readings.append(read_layers(self._lens, vectors, gold_n, self._columns, draws, prompt_n))
            tokens.append(found.token_n)
        token_N = np.concatenate([np.empty(0, np.int64), *tokens])
        order_N = np.lexsort((gold_T[token_N], prompt_T[token_N]))
        token_N = token_N[order_N]
        prompt_N, index_N = prompt_T[token_N], gold_T[token_N]
        read = self._joined(readings, order_N)
        gold_id = [prompts[number].ids[index] for number, index in zip(prompt_N, index_N, strict=True)]
        return {
            "prompt_positions": np.bincount(prompt_N, minlength=len(prompts)).astype(np.uint32),
            "gold_index": index_N.astype(np.uint32),
            "gold_id": np.array(gold_id, np.uint32),
            "input_id": laid_out.ids_N[token_N].astype(np.uint32),
            "top_id": read.top_id_NLK,
            "top_probability": read.top_probability_NLK,
            "gold_probability": read.gold_probability_NL,
            "gold_rank": read.gold_rank_NL,
            "mass": read.mass_NLS,
            **_means(read, prompt_N, len(prompts)),
            **self._draw_means(draws, np.bincount(prompt_N, minlength=len(prompts))),
        }

    def _joined(self, readings: Sequence[Readings], order_N: np.ndarray) -> Readings:
        by_layer = (0, self._model.facts.num_layers)
        by_rank, by_set = (*by_layer, min(TOP, self._lens.vocabulary)), (*by_layer, len(self._config.set_ids))
        none = Readings(
            np.empty(by_rank, np.uint32), np.empty(by_rank, np.float32), np.empty(by_layer, np.float32),
            np.empty(by_layer, np.uint32), np.empty(by_set, np.float32), np.empty(by_set, np.float32),
            np.empty(by_set, np.uint8),
        )  # fmt: skip
        tables = zip(*(vars(reading).values() for reading in (none, *readings)), strict=True)
        return Readings(*(np.concatenate(table)[order_N] for table in tables))

    def _draw_means(self, draws: DrawSums, positions_P: np.ndarray) -> dict[str, np.ndarray]:
        """The mean over draws by prompt, and sums over the task's prompts by draw; NaN for sets without draws."""
        has_draws_S = np.array([len(draws_Dm) > 0 for draws_Dm in self._config.draw_ids], bool)
        leading = draws.sum_PL4R.shape[:-1]
        sum_PL4SD = np.full((*leading, len(has_draws_S), self._config.draws), np.nan)
        sum_PL4SD[..., has_draws_S, :] = draws.sum_PL4R.reshape(*leading, -1, self._config.draws)
        read_P, mean_PL4SD = positions_P > 0, mean_of(sum_PL4SD, positions_P)
        control_PL4S = mean_PL4SD.mean(axis=-1).astype(np.float32)
        return {
            **{f"control_{name}": control_PL4S[:, :, at] for at, name in enumerate(SET_MEANS)},
            DRAWS_OF_SNIPPETS: mean_PL4SD[read_P, :, 0].sum(axis=0),
            DRAWS_OF_POSITIONS: sum_PL4SD[read_P, :, 0].sum(axis=0),
        }


def _means(read: Readings, prompt_N: np.ndarray, num_prompts: int) -> dict[str, np.ndarray]:
    is_top_NL = read.gold_rank_NL <= TOP
    by_gold = (
        read.gold_probability_NL, read.gold_rank_NL, is_top_NL, np.where(is_top_NL, read.gold_probability_NL, 0),
        np.where(is_top_NL, read.gold_rank_NL, TOP + 1),
    )  # fmt: skip
    by_set = (read.mass_NLS, read.mass_top_NLS, read.rank_top_NLS, read.rank_top_NLS <= TOP)
    values = dict(zip((*GOLD_MEANS, *SET_MEANS), (*by_gold, *by_set), strict=True))
    return {f"prompt_{name}": _means_by(values_N, prompt_N, num_prompts) for name, values_N in values.items()}


def _means_by(values: np.ndarray, prompt_N: np.ndarray, num_prompts: int) -> np.ndarray:
    """float32: the mean over each prompt's positions, summed in float64; NaN where there is none."""
    is_of_PN = np.arange(num_prompts)[:, None] == prompt_N
    flat_NX = values.reshape(len(values), math.prod(values.shape[1:]))
    sums = (is_of_PN.astype(np.float64) @ flat_NX).reshape(num_prompts, *values.shape[1:])
    return mean_of(sums, np.bincount(prompt_N, minlength=num_prompts)).astype(np.float32)


def mean_of(sums: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """float64 [P, ...]: the sums by how many they are of; NaN where there is none."""
    count = count_P.reshape(-1, *[1] * (sums.ndim - 1))
    mean: np.ndarray = np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0)
    return mean
