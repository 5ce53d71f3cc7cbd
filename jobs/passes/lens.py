"""The pass behind `neurotally lens`: the logit lens over few-shot translation prompts of a parallel corpus.

    STORE/lens/NAME/   attrs: pairs, sets, empty_sets, draws, vocabulary, paper, skipped; and
                       `jobs.reducers.parts.Parts`'s
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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.layers.lens import find_prompt
from neurotally.jobs.corpora import ListedCorpus
from neurotally.jobs.passes.lens_worker import (
    COUNTED,
    DRAWS_OF_POSITIONS,
    DRAWS_OF_SNIPPETS,
    GOLD_MEANS,
    SET_MEANS,
    STATUS,
    VOCABULARY,
    LensConfig,
    LensWorker,
    PromptTask,
    mean_of,
)
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers.parts import KeptParts, Parts
from neurotally.jobs.reducers.reducer import Plan
from neurotally.jobs.run import Pass, Setup, model_identity, run_pass
from neurotally.profiler import store
from neurotally.profiler.corpus.parallel import ParallelTexts
from neurotally.profiler.corpus.prompts import read_few_shot
from neurotally.profiler.corpus.texts import load_tokenizer
from neurotally.profiler.corpus.token_sets import TokenSet, TokenSets, find_token_sets
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import ModelFacts
from neurotally.profiler.passes.worker import TOKEN_BUDGET

_NONE = 2**32 - 1
_PROMPT_LAYER, _PROMPT_SET = ("prompt", "layer"), ("prompt", "layer", "set")
_BY_DRAW = ("pair", "layer", "set", "draw")
SCHEMA: Mapping[str, store.ArraySpec] = {
    **dict.fromkeys(("prompt_source", "prompt_target"), store.ArraySpec("uint16", ("prompt",), 2**16 - 1)),
    **dict.fromkeys(("prompt_tokens", "prompt_positions"), store.ArraySpec("uint32", ("prompt",), _NONE)),
    "prompt_id": store.ArraySpec("string", ("prompt",), ""),
    "prompt_status": store.ArraySpec("uint8", ("prompt",), 255),
    **{f"prompt_{name}": store.ArraySpec("float32", _PROMPT_LAYER, np.nan) for name in GOLD_MEANS},
    **{f"prompt_{name}": store.ArraySpec("float32", _PROMPT_SET, np.nan) for name in SET_MEANS},
    **{f"control_{name}": store.ArraySpec("float32", _PROMPT_SET, np.nan) for name in SET_MEANS},
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


def read_translation(
    setup: Setup, group: str, parallel: ParallelTexts, few_shot: Path, pairs: str, words: Mapping[str, Sequence[str]],
    english: Sequence[str] | None, draws: int, seed: int, paper: bool, prompt: str | None, task_prompts: int,
) -> None:  # fmt: skip
    """Bring the store to hold the group; InputError, before anything is run, where it won't have `prompt`."""
    chosen = directed_pairs(pairs, parallel.languages)
    if prompt is not None:
        names = ["-".join(pair) for pair in chosen for _ in parallel.ids]
        find_prompt(prompt, names, [*parallel.ids] * len(chosen), group)
    shots = _few_shot_lines(few_shot, chosen)

    def make_pass(facts: ModelFacts, _: Sequence[ListedCorpus]) -> Pass:
        tokenizer = load_tokenizer(setup.store, setup.model.spec, setup.model.trust_remote_code)
        texts = [parallel.texts[language][id_] for language in shots for id_ in parallel.ids]
        token_sets = find_token_sets(tokenizer, words, english, texts, draws, seed)
        _warn_of_sets(token_sets, setup.progress)
        token_budget = TOKEN_BUDGET[facts.device_type]
        config = LensConfig(
            few_shot=shots,
            set_ids=tuple(token_set.ids for token_set in token_sets.sets),
            draw_ids=tuple(token_set.draws_Dm for token_set in token_sets.sets),
            draws=token_sets.draws,
            paper=paper,
            token_budget=token_budget,
        )
        identity = {
            **model_identity(facts),
            "parallel": parallel.sha256,
            "pairs": ["-".join(pair) for pair in chosen],
            "ids": len(parallel.ids),
            "few_shot": shots,
            "paper": paper,
            "sets": token_sets.names,
            "draws": draws,
            "seed": seed,
            "tokens_of_sets": token_sets.sha256,
            "token_budget": token_budget,
        }
        assemble = partial(_assemble, parallel.ids, chosen, token_sets, paper, facts.max_row_tokens)
        keep = partial(Parts, assemble=assemble, schema=SCHEMA)
        plan = Plan(group, list(_tasks(parallel, chosen, task_prompts)), identity, keep, "task")
        return Pass(partial(LensWorker, config=config), [plan])

    run_pass(setup, make_pass)


def _warn_of_sets(sets: TokenSets, progress: Progress) -> None:
    for name, entries in sets.empty.items():
        progress.note(f"warning: no set {name!r}: none of its {entries} entries is one token of this tokenizer")
    for token_set in sets.sets:
        if not len(token_set.draws_Dm):
            members = len(token_set.ids)
            progress.note(f"warning: no random sets for {token_set.name!r}: its {members:,} tokens leave too few")


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


def _tasks(parallel: ParallelTexts, pairs: Sequence[tuple[str, str]], task_prompts: int) -> Iterator[PromptTask]:
    for source, target in pairs:
        for first in range(0, len(parallel.ids), task_prompts):
            some = parallel.ids[first : first + task_prompts]
            yield PromptTask(source, target, first, tuple(parallel.texts[source][id_] for id_ in some),
                             tuple(parallel.texts[target][id_] for id_ in some))  # fmt: skip


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
    ids_by_set = [token_set.ids for token_set in sets.sets]
    of_parts = [name for name in SCHEMA if name in parts.names]
    arrays = {name: parts.blocks(name, lengths[SCHEMA[name].dimensions[0]]) for name in of_parts} | {
        "prompt_id": np.array([*ids] * len(pairs), object),
        "prompt_source": np.repeat(np.array([languages.index(source) for source, _ in pairs], np.uint16), len(ids)),
        "prompt_target": np.repeat(np.array([languages.index(target) for _, target in pairs], np.uint16), len(ids)),
        "position_prompt": np.repeat(np.arange(len(ids) * len(pairs), dtype=np.uint32), positions_P),
        "language": np.array(languages, object),
        "set": np.array(sets.names, object),
        "token": np.array(sets.spelling, object),
        "member_set": np.repeat(np.arange(len(ids_by_set), dtype=np.uint16), list(map(len, ids_by_set))),
        "member_token": np.concatenate([np.empty(0, np.uint32), *ids_by_set]),
        "draw_token": _draw_tokens(sets),
        **_draws_of_pairs(parts, positions_P.reshape(len(pairs), -1)),
    }
    return arrays, {
        "pairs": [list(pair) for pair in pairs],
        "sets": {token_set.name: _described(token_set) for token_set in sets.sets},
        "empty_sets": dict(sets.empty),
        "draws": sets.draws,
        "vocabulary": int(parts.joined(VOCABULARY)[0]),
        "paper": paper,
        "skipped": _skipped(status_P, ids, pairs),
    }


def _described(token_set: TokenSet) -> dict[str, Any]:
    """What a set's attributes say; shares are null where there is no text, or no draw."""
    shares = {"share": token_set.share, "drawn_share": token_set.drawn_share}
    return {
        "entries": token_set.entries,
        "single": token_set.single,
        "tokens": len(token_set.ids),
        **{name: share if math.isfinite(share) else None for name, share in shares.items()},
    }


def _draw_tokens(sets: TokenSets) -> np.ndarray:
    """uint32 [D, members of all sets]."""
    by_set = [np.empty((sets.draws, 0), np.int64)]
    for token_set in sets.sets:
        not_drawn_Dm = np.full((sets.draws, len(token_set.ids)), _NONE)
        by_set.append(token_set.draws_Dm if len(token_set.draws_Dm) else not_drawn_Dm)
    return np.concatenate(by_set, axis=1).astype(np.uint32)


def _draws_of_pairs(parts: KeptParts, positions_AI: np.ndarray) -> dict[str, np.ndarray]:
    """draw_mass and draw_mass_pooled from the sums of the tasks, those of a pair one after the other; A pairs."""
    num_pairs, by_pair = len(positions_AI), len(parts) // len(positions_AI)
    found = {}
    for name, sums_name, count_A in (
        ("draw_mass", DRAWS_OF_SNIPPETS, (positions_AI > 0).sum(axis=1)),
        ("draw_mass_pooled", DRAWS_OF_POSITIONS, positions_AI.sum(axis=1, dtype=np.int64)),
    ):
        sums = parts.each(sums_name)
        sum_ALSD = np.stack([np.stack(list(islice(sums, by_pair))).sum(axis=0) for _ in range(num_pairs)])
        found[name] = mean_of(sum_ALSD, count_A)
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
