"""The pass behind `neurotally lens`: the logit lens over few-shot translation prompts of a parallel corpus.

    STORE/lens/NAME/   attrs: pairs, sets, empty_sets, draws, vocabulary, paper, skipped; and
                       `jobs.reducers.Parts`'s
      by prompt (prompt), in the order of the pairs and, in each, of the ids
        prompt_id, prompt_source, prompt_target   string, and uint16 numbers of languages
        prompt_status                             uint8: 0 counted, 1 longer than the context, 2 no target token
        prompt_tokens, prompt_positions           uint32: tokens of the prompt, positions that were read
        prompt_gold_probability, prompt_gold_rank, prompt_gold_top, prompt_gold_probability_top, prompt_gold_rank_top
            float32 (prompt, layer): means over positions; _top counts the first 10 tokens alone, and gold_top is the
            share of positions whose gold token is among them
        prompt_mass, prompt_mass_top, prompt_rank_top, prompt_hit    float32 (prompt, layer, set): likewise; hit: the
            share of positions with a token of the set among the first 10
        control_mass, control_mass_top, control_rank_top, control_hit    the same of each set's random control: the mean
            over its draws; NaN where it has none
      by position (position), in the order of the prompts
        position_prompt, gold_index, gold_id, input_id    uint32: the prompt; which of its tokens is predicted; its id;
            the token before it
        top_id, top_probability   uint32, float32 (position, layer, rank)
        gold_probability, gold_rank   float32, uint32 (position, layer)
        mass   float32 (position, layer, set): over the full softmax
      by pair (pair)
        draw_mass          float64 (pair, layer, set, draw): of each draw, mean over positions, then over snippets
        draw_mass_pooled   the same over all positions alike
      language, set, token    string: names; what each token of the vocabulary spells
      member_set, member_token    uint16, uint32 (member): the tokens of each set
      draw_token                  uint32 (draw, member): those of its draws; 2^32-1 where it has none

Layers are counted from 0, after the first block.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.layers.lens import find_prompt
from neurotally.jobs.plan import CorpusPlan
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers import KeptParts, Part, Parts, Plan
from neurotally.jobs.run import Pass, Where, model_identity, run_pass
from neurotally.profiler import store
from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.corpus.parallel import ParallelTexts
from neurotally.profiler.corpus.prompts import PromptTokens, build_prompt, read_few_shot, tokenise_prompts
from neurotally.profiler.corpus.texts import load_tokenizer
from neurotally.profiler.corpus.token_sets import TokenSet, TokenSets, find_token_sets
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import LoadedModel, ModelFacts
from neurotally.profiler.passes.lens import TOP, Lens
from neurotally.profiler.passes.lens_reading import DrawColumns, DrawSums, Readings, SetColumns, read_layers
from neurotally.profiler.passes.memory import halving
from neurotally.profiler.passes.worker import TOKEN_BUDGET

COUNTED, TOO_LONG, NO_TARGET = range(3)
STATUS = ("counted", "longer than the context", "no target token")
_OF_SNIPPETS, _OF_POSITIONS = "_draws_of_snippets", "_draws_of_positions"
"""float64 [L, S, D] in a task's part: each draw's mass, summed over the means of snippets, and over positions."""
_VOCABULARY = "_vocabulary"
_NONE = 2**32 - 1
_PROMPT_LAYER, _PROMPT_SET = ("prompt", "layer"), ("prompt", "layer", "set")
_GOLD_MEANS = ("gold_probability", "gold_rank", "gold_top", "gold_probability_top", "gold_rank_top")
_SET_MEANS = ("mass", "mass_top", "rank_top", "hit")
_BY_DRAW = ("pair", "layer", "set", "draw")
SCHEMA: Mapping[str, store.ArraySpec] = {
    **dict.fromkeys(("prompt_source", "prompt_target"), store.ArraySpec("uint16", ("prompt",), 2**16 - 1)),
    **dict.fromkeys(("prompt_tokens", "prompt_positions"), store.ArraySpec("uint32", ("prompt",), _NONE)),
    "prompt_id": store.ArraySpec("string", ("prompt",), ""),
    "prompt_status": store.ArraySpec("uint8", ("prompt",), 255),
    **{f"prompt_{name}": store.ArraySpec("float32", _PROMPT_LAYER, np.nan) for name in _GOLD_MEANS},
    **{f"prompt_{name}": store.ArraySpec("float32", _PROMPT_SET, np.nan) for name in _SET_MEANS},
    **{f"control_{name}": store.ArraySpec("float32", _PROMPT_SET, np.nan) for name in _SET_MEANS},
    **dict.fromkeys(
        ("position_prompt", "gold_index", "gold_id", "input_id"), store.ArraySpec("uint32", ("position",), _NONE)
    ),
    "top_id": store.ArraySpec("uint32", ("position", "layer", "rank"), _NONE),
    "top_probability": store.ArraySpec("float32", ("position", "layer", "rank"), np.nan),
    "gold_probability": store.ArraySpec("float32", ("position", "layer"), np.nan),
    "gold_rank": store.ArraySpec("uint32", ("position", "layer"), _NONE),
    "mass": store.ArraySpec("float32", ("position", "layer", "set"), np.nan),
    **{name: store.ArraySpec("string", (name,), "") for name in ("language", "set", "token")},
    "member_set": store.ArraySpec("uint16", ("member",), 2**16 - 1),
    "member_token": store.ArraySpec("uint32", ("member",), _NONE),
    **dict.fromkeys(("draw_mass", "draw_mass_pooled"), store.ArraySpec("float64", _BY_DRAW, np.nan)),
    "draw_token": store.ArraySpec("uint32", ("draw", "member"), _NONE),
}


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
            _VOCABULARY: np.array([self._lens.vocabulary]),
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
        tables = zip(*(vars(one).values() for one in (none, *readings)), strict=True)
        return Readings(*(np.concatenate(table)[order_N] for table in tables))

    def _draw_means(self, draws: DrawSums, positions_P: np.ndarray) -> dict[str, np.ndarray]:
        """The mean over draws by prompt, and sums over the task's prompts by draw; NaN for sets without draws."""
        has_draws_S = np.array([len(draws_Dm) > 0 for draws_Dm in self._config.draw_ids], bool)
        leading = draws.sum_PL4R.shape[:-1]
        sum_PL4SD = np.full((*leading, len(has_draws_S), self._config.draws), np.nan)
        sum_PL4SD[..., has_draws_S, :] = draws.sum_PL4R.reshape(*leading, -1, self._config.draws)
        read_P, mean_PL4SD = positions_P > 0, _mean(sum_PL4SD, positions_P)
        control_PL4S = mean_PL4SD.mean(axis=-1).astype(np.float32)
        return {
            **{f"control_{name}": control_PL4S[:, :, at] for at, name in enumerate(_SET_MEANS)},
            _OF_SNIPPETS: mean_PL4SD[read_P, :, 0].sum(axis=0),
            _OF_POSITIONS: sum_PL4SD[read_P, :, 0].sum(axis=0),
        }


def read_translation(
    where: Where, group: str, of: ParallelTexts, few_shot: Path, pairs: str, words: Mapping[str, Sequence[str]],
    english: Sequence[str] | None, draws: int, seed: int, paper: bool, prompt: str | None, task_prompts: int,
) -> None:  # fmt: skip
    """Bring the store to hold the group; InputError, before anything is run, where it won't have `prompt`."""
    chosen = directed_pairs(pairs, of.languages)
    if prompt is not None:
        names = ["-".join(pair) for pair in chosen for _ in of.ids]
        find_prompt(prompt, names, [*of.ids] * len(chosen), group)
    shots = _few_shot_lines(few_shot, chosen)

    def make_pass(facts: ModelFacts, _: Sequence[CorpusPlan]) -> Pass:
        tokenizer = load_tokenizer(where.store, where.model.spec, where.model.trust_remote_code)
        texts = [of.texts[language][id_] for language in shots for id_ in of.ids]
        token_sets = find_token_sets(tokenizer, words, english, texts, draws, seed)
        _warn_of_sets(token_sets, where.progress)
        token_budget = TOKEN_BUDGET[facts.device_type]
        set_ids, draw_ids = tuple(one.ids for one in token_sets.sets), tuple(one.draws_Dm for one in token_sets.sets)
        config = LensConfig(shots, set_ids, draw_ids, token_sets.draws, paper, token_budget)
        identity = {
            **model_identity(facts),
            "parallel": of.sha256,
            "pairs": ["-".join(pair) for pair in chosen],
            "ids": len(of.ids),
            "few_shot": shots,
            "paper": paper,
            "sets": token_sets.names,
            "draws": draws,
            "seed": seed,
            "tokens_of_sets": token_sets.sha256,
            "token_budget": token_budget,
        }
        assemble = partial(_assemble, of.ids, chosen, token_sets, paper, facts.max_row_tokens)
        keep = partial(Parts, assemble=assemble, schema=SCHEMA)
        plan = Plan(group, list(_tasks(of, chosen, task_prompts)), identity, keep, "task")
        return Pass(partial(LensWorker, config=config), [plan])

    run_pass(where, make_pass)


def _warn_of_sets(sets: TokenSets, progress: Progress) -> None:
    for name, entries in sets.empty.items():
        progress.note(f"warning: no set {name!r}: none of its {entries} entries is one token of this tokenizer")
    for one in sets.sets:
        if not len(one.draws_Dm):
            progress.note(f"warning: no random sets for {one.name!r}: its {len(one.ids):,} tokens leave too few")


def directed_pairs(text: str, languages: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that `all`, or a list such as `Python-Java,C-C++`, names; an InputError where it isn't clear."""
    every = [(source, target) for source in languages for target in languages if source != target]
    if text == "all":
        if not every:
            raise InputError(f"--pairs all: the parallel corpus has one language, {languages[0]!r}; expected two")
        return every
    by_name = {f"{source}-{target}": (source, target) for source, target in every}
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names if name not in by_name]:
        raise InputError(f"--pairs: {unknown[0]!r} is no SOURCE-TARGET of {', '.join(languages)}")
    if not names:
        raise InputError("--pairs: expected `all` or SOURCE-TARGET,...")
    return [by_name[name] for name in names]


def _few_shot_lines(folder: Path, pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    lines = {language: read_few_shot(folder, language) for language in sorted(set(chain.from_iterable(pairs)))}
    for source, target in pairs:
        if len(lines[source]) != len(lines[target]):
            raise InputError(
                f"few-shot lines: {source!r} has {len(lines[source])}, {target!r} {len(lines[target])}; expected pairs"
            )
    return lines


def _tasks(of: ParallelTexts, pairs: Sequence[tuple[str, str]], task_prompts: int) -> Iterator[PromptTask]:
    for source, target in pairs:
        for first in range(0, len(of.ids), task_prompts):
            some = of.ids[first : first + task_prompts]
            yield PromptTask(source, target, first, tuple(of.texts[source][id_] for id_ in some),
                             tuple(of.texts[target][id_] for id_ in some))  # fmt: skip


def _assemble(
    ids: Sequence[str], pairs: Sequence[tuple[str, str]], sets: TokenSets, paper: bool, max_tokens: int,
    parts: KeptParts,
) -> tuple[dict[str, np.ndarray | store.Blocks], dict[str, Any]]:  # fmt: skip
    """The group's arrays and attributes."""
    status_P, tokens_P, positions_P = (
        parts.joined(name) for name in ("prompt_status", "prompt_tokens", "prompt_positions")
    )
    if not (status_P == COUNTED).any():
        raise InputError(
            f"no prompt can be read: {_reasons(status_P)}; the shortest has {tokens_P.min()} tokens, the model's "
            f"context {max_tokens}"
        )
    lengths = {"prompt": len(status_P), "position": int(positions_P.sum())}
    languages = sorted(set(chain.from_iterable(pairs)))
    of_parts = [name for name in SCHEMA if name in parts.names]
    arrays = {name: parts.blocks(name, lengths[SCHEMA[name].dimensions[0]]) for name in of_parts} | {
        "prompt_id": np.array([*ids] * len(pairs), object),
        "prompt_source": np.repeat(np.array([languages.index(source) for source, _ in pairs], np.uint16), len(ids)),
        "prompt_target": np.repeat(np.array([languages.index(target) for _, target in pairs], np.uint16), len(ids)),
        "position_prompt": np.repeat(np.arange(len(ids) * len(pairs), dtype=np.uint32), positions_P),
        "language": np.array(languages, object),
        "set": np.array(sets.names, object),
        "token": np.array(sets.spelling, object),
        "member_set": np.repeat(np.arange(len(sets.sets), dtype=np.uint16), [len(one.ids) for one in sets.sets]),
        "member_token": np.concatenate([np.empty(0, np.uint32), *(one.ids for one in sets.sets)]),
        "draw_token": _draw_tokens(sets),
        **_draws_of_pairs(parts, positions_P.reshape(len(pairs), -1)),
    }
    return arrays, {
        "pairs": [list(pair) for pair in pairs],
        "sets": {one.name: _described(one) for one in sets.sets},
        "empty_sets": dict(sets.empty),
        "draws": sets.draws,
        "vocabulary": int(parts.joined(_VOCABULARY)[0]),
        "paper": paper,
        "skipped": _skipped(status_P, ids, pairs),
    }


def _described(one: TokenSet) -> dict[str, Any]:
    """What a set's attributes say; shares are null where there is no text, or no draw."""
    shares = {"share": one.share, "drawn_share": one.drawn_share}
    return {
        "entries": one.entries,
        "single": one.single,
        "tokens": len(one.ids),
        **{name: share if math.isfinite(share) else None for name, share in shares.items()},
    }


def _draw_tokens(sets: TokenSets) -> np.ndarray:
    """uint32 [D, members of all sets]."""
    none = np.full((sets.draws, 0), _NONE, np.uint32)
    by_set = [
        one.draws_Dm.astype(np.uint32) if len(one.draws_Dm) else np.full((sets.draws, len(one.ids)), _NONE, np.uint32)
        for one in sets.sets
    ]
    return np.concatenate([none, *by_set], axis=1)


def _draws_of_pairs(parts: KeptParts, positions_AI: np.ndarray) -> dict[str, np.ndarray]:
    """draw_mass and draw_mass_pooled from the sums of the tasks, those of a pair one after the other; A pairs."""
    num_pairs, by_pair = len(positions_AI), len(parts) // len(positions_AI)
    found = {}
    for name, of, count_A in (
        ("draw_mass", _OF_SNIPPETS, (positions_AI > 0).sum(axis=1)),
        ("draw_mass_pooled", _OF_POSITIONS, positions_AI.sum(axis=1, dtype=np.int64)),
    ):
        sums = parts.each(of)
        sum_ALSD = np.stack([np.stack(list(islice(sums, by_pair))).sum(axis=0) for _ in range(num_pairs)])
        found[name] = _mean(sum_ALSD, count_A)
    return found


def _skipped(status_P: np.ndarray, ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """{pair: {reason: [ids]}} of the prompts that weren't read."""
    skipped: dict[str, dict[str, list[str]]] = {}
    for at in np.flatnonzero(status_P != COUNTED).tolist():
        pair, id_ = divmod(at, len(ids))
        skipped.setdefault("-".join(pairs[pair]), {}).setdefault(STATUS[status_P[at]], []).append(ids[id_])
    return skipped


def _reasons(status_P: np.ndarray) -> str:
    return ", ".join(f"{int((status_P == code).sum())} {STATUS[code]}" for code in np.unique(status_P).tolist())


def _means(read: Readings, prompt_N: np.ndarray, num_prompts: int) -> dict[str, np.ndarray]:
    is_top_NL = read.gold_rank_NL <= TOP
    by_gold = (
        read.gold_probability_NL, read.gold_rank_NL, is_top_NL, np.where(is_top_NL, read.gold_probability_NL, 0),
        np.where(is_top_NL, read.gold_rank_NL, TOP + 1),
    )  # fmt: skip
    by_set = (read.mass_NLS, read.mass_top_NLS, read.rank_top_NLS, read.rank_top_NLS <= TOP)
    values = dict(zip((*_GOLD_MEANS, *_SET_MEANS), (*by_gold, *by_set), strict=True))
    return {f"prompt_{name}": _means_by(of, prompt_N, num_prompts) for name, of in values.items()}


def _means_by(values: np.ndarray, prompt_N: np.ndarray, num_prompts: int) -> np.ndarray:
    """float32: the mean over each prompt's positions, summed in float64; NaN where there is none."""
    is_of_PN = np.arange(num_prompts)[:, None] == prompt_N
    flat_NX = values.reshape(len(values), math.prod(values.shape[1:]))
    sums = (is_of_PN.astype(np.float64) @ flat_NX).reshape(num_prompts, *values.shape[1:])
    return _mean(sums, np.bincount(prompt_N, minlength=num_prompts)).astype(np.float32)


def _mean(sums: np.ndarray, count_P: np.ndarray) -> np.ndarray:
    """float64 [P, ...]: the sums by how many they are of; NaN where there is none."""
    count = count_P.reshape(-1, *[1] * (sums.ndim - 1))
    mean: np.ndarray = np.divide(sums, count, out=np.full_like(sums, np.nan), where=count > 0)
    return mean
