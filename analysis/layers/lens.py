"""The logit lens of a store, put together by pair, by source, by target, over all: the document of `neurotally lens`.

    {"schema": 1, "model": {"id", "fingerprint"}, "paper", "layers", "draws", "matched": true,
     "sets": {name: {"entries", "single", "tokens", "uniform", "share", "drawn_share"}},
     "empty_sets": {name: entries}, "skipped": {pair: {reason: [ids]}},
     "pairs" | "unordered" | "sources" | "targets": {name: MEANS}, "all": MEANS, "pooled": MEANS}

    MEANS: {"snippets", "positions", "gold_probability", "gold_rank", "gold_top10", "gold_probability_top10",
            "gold_rank_top10": [by layer],
            "sets": {name: {"mass", "mass_top10", "rank_top10", "hit": [by layer],
                            "mass_rank": [by layer] | null, "mean_rank": n | null,
                            "control": {the same four, "mass_sd": [by layer] | null, "draws": [[by layer]] | null}}}}

Means are over the positions of a snippet, then over snippets, then over pairs; `pooled` is over all positions alike.
gold_top10 is the share of positions whose gold token is in the top 10; _top10 and mass_top10 count those alone,
with rank 11 where there is none; hit is the share of positions with a token of the set in the top 10. Layers are
counted from 0, after the first block.

Control: random sets of as many tokens, about as frequent in the parallel texts (`share` and `drawn_share`: of the
texts' tokens, how many are in the set, and in a random one) and no keywords: the mean over `draws` of them, the
standard deviation of their masses over draws, and in `all` and `pooled` the mass of each (else null). `uniform`, m / V,
is what m random tokens of V would have, frequent or not.

mass_rank is the place of the set's mass among its own and its draws', 1 the largest, D + 1 the smallest. Were the set
one more draw, every place would be as likely: rank / (D + 1) is the p-value of "more probable than random tokens",
and (D + 2 - rank) / (D + 1) of "less". Means over layers have a rank of their own (`mean_rank`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.result import finite, model_key
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

_GOLD = {
    "gold_probability": "gold_probability", "gold_rank": "gold_rank", "gold_top10": "gold_top",
    "gold_probability_top10": "gold_probability_top", "gold_rank_top10": "gold_rank_top",
}  # fmt: skip
"""Names in the document, and in the store."""
_SET = {"mass": "mass", "mass_top10": "mass_top", "rank_top10": "rank_top", "hit": "hit"}


@dataclass(frozen=True)
class LensResult:
    """A lens as the store holds it. P prompts."""

    arrays: store.Arrays
    attributes: Mapping[str, Any]
    model: Mapping[str, Any]
    """The store's `model` attribute."""


@dataclass(frozen=True)
class PromptLens:
    """The lens of one prompt. n positions, L layers."""

    pair: str
    id: str
    input_n: list[str]
    """The token before each predicted one."""
    gold_n: list[str]
    top_nL: list[list[str]]
    """The top-1 prediction of each layer."""
    probability_nL: np.ndarray


def read_lens(path: Path, name: str) -> LensResult:
    """A lens of a store; an InputError where it has none of the name."""
    names = ["language", "set", "prompt_source", "prompt_target", "prompt_positions"]
    names += [f"prompt_{of}" for of in (*_GOLD.values(), *_SET.values())]
    names += [*(f"control_{of}" for of in _SET.values()), "draw_mass", "draw_mass_pooled"]
    group = f"lens/{name}"
    arrays = store.read_group(path, group, names)
    return LensResult(arrays, store.group_attributes(path, group), store.store_attributes(path)["model"])


def read_prompt(path: Path, name: str, which: str) -> PromptLens:
    """One prompt's lens. `which`: its number, from 0, or SOURCE-TARGET/ID."""
    group = f"lens/{name}"
    names = ["language", "token", "prompt_id", "prompt_source", "prompt_target", "prompt_positions"]
    arrays = store.read_group(path, group, names)
    ids = arrays["prompt_id"].tolist()
    pairs = ["-".join(pair) for pair in _pairs(arrays)]
    number = find_prompt(which, pairs, ids, group)
    end = int(arrays["prompt_positions"][: number + 1].sum())
    start = end - int(arrays["prompt_positions"][number])
    if start == end:
        raise InputError(f"--prompt {which}: {pairs[number]}/{ids[number]} was skipped")
    wanted = ["input_id", "gold_id", "top_id", "top_probability"]
    of = {key: values[start:end] for key, values in store.read_group(path, group, wanted).items()}
    spelling = arrays["token"]
    return PromptLens(
        pair=pairs[number],
        id=ids[number],
        input_n=spelling[of["input_id"]].tolist(),
        gold_n=spelling[of["gold_id"]].tolist(),
        top_nL=spelling[of["top_id"][:, :, 0]].tolist(),
        probability_nL=of["top_probability"][:, :, 0],
    )


def _pairs(arrays: store.Arrays) -> list[tuple[str, str]]:
    """The (source, target) of each prompt."""
    sources, targets = (arrays["language"][arrays[f"prompt_{of}"]].tolist() for of in ("source", "target"))
    return list(zip(sources, targets, strict=True))


def lens_document(result: LensResult) -> dict[str, Any]:
    """The document of `lens --json` and `--out`."""
    pair_P = _pairs(result.arrays)
    attributes = result.attributes
    document: dict[str, Any] = finite({
        "schema": 1,
        "model": model_key(result.model),
        "paper": attributes["paper"],
        "layers": result.arrays["prompt_gold_rank"].shape[1],
        "draws": attributes["draws"],
        "matched": True,
        "sets": {name: {**of, "uniform": of["tokens"] / attributes["vocabulary"]}
                 for name, of in attributes["sets"].items()},
        "empty_sets": attributes["empty_sets"],
        "skipped": attributes["skipped"],
        "pairs": _by(result, ["-".join(pair) for pair in pair_P]),
        "unordered": _by(result, ["-".join(sorted(pair)) for pair in pair_P]),
        "sources": _by(result, [source for source, _ in pair_P]),
        "targets": _by(result, [target for _, target in pair_P]),
        "all": _means(result, np.ones(len(pair_P), bool), keep_draws=True),
        "pooled": _means(result, np.ones(len(pair_P), bool), keep_draws=True, is_pooled=True),
    })  # fmt: skip
    return document


def _by(result: LensResult, name_P: Sequence[str]) -> dict[str, Any]:
    """The means of all prompts of each name."""
    named_P = np.array(name_P)
    return {name: _means(result, named_P == name) for name in dict.fromkeys(name_P)}


def _means(result: LensResult, in_P: np.ndarray, keep_draws: bool = False, is_pooled: bool = False) -> dict[str, Any]:
    """Over these prompts; `is_pooled`: over all positions alike."""
    arrays = result.arrays
    counted_P = in_P & (arrays["prompt_positions"] > 0)
    weight_P = _weights(result, counted_P, is_pooled)

    def by_layer(name: str) -> np.ndarray:
        values = arrays[name]
        if not counted_P.any():
            return np.full(values.shape[1:], np.nan)
        mean: np.ndarray = np.tensordot(weight_P[counted_P], values[counted_P].astype(np.float64), axes=1)
        return mean

    sets: dict[str, Any] = {}
    found = {key: by_layer(f"prompt_{name}") for key, name in _SET.items()}
    drawn = {key: by_layer(f"control_{name}") for key, name in _SET.items()}
    for number, set_name in enumerate(arrays["set"].tolist()):
        sets[set_name] = {key: found_LS[:, number].tolist() for key, found_LS in found.items()}
        control = {key: control_LS[:, number].tolist() for key, control_LS in drawn.items()}
        sets[set_name] |= {"mass_rank": None, "mean_rank": None, "control": {**control, "mass_sd": None, "draws": None}}
    if counted_P.any():
        draw_LSD = _weighted_draws(result, "draw_mass_pooled" if is_pooled else "draw_mass", weight_P)
        for number, of in enumerate(sets.values()):
            _add_ranks(of, found["mass"][:, number], draw_LSD[:, number], keep_draws)
    return {
        "snippets": int(counted_P.sum()),
        "positions": int(arrays["prompt_positions"][counted_P].sum()),
        **{key: by_layer(f"prompt_{name}").tolist() for key, name in _GOLD.items()},
        "sets": sets,
    }


def _weighted_draws(result: LensResult, name: str, weight_P: np.ndarray) -> np.ndarray:
    """float64 [L, S, D]: the draws' masses; a pair counts as much as its prompts do together."""
    weight_A = np.bincount(_pair_numbers(result), weight_P, minlength=len(result.attributes["pairs"]))
    counts_A = weight_A > 0
    mean: np.ndarray = np.tensordot(weight_A[counts_A], result.arrays[name][counts_A], axes=1)
    return mean


def _add_ranks(of: dict[str, Any], mass_L: np.ndarray, draw_LD: np.ndarray, keep_draws: bool) -> None:
    """A set's rank among its draws, and their spread; nothing where it has no draws."""
    if not np.isfinite(draw_LD).all():
        return
    of["mass_rank"] = [rank(mass, draw_D) for mass, draw_D in zip(mass_L, draw_LD, strict=True)]
    of["mean_rank"] = rank(float(mass_L.mean()), draw_LD.mean(axis=0))
    of["control"]["mass_sd"] = draw_LD.std(axis=1, ddof=1).tolist()
    if keep_draws:
        of["control"]["draws"] = draw_LD.T.tolist()


def rank(mass: float, draw_D: np.ndarray) -> int:
    """The place of a mass among its own and its draws', 1 the largest."""
    return 1 + int((draw_D >= mass).sum())


def _weights(result: LensResult, counted_P: np.ndarray, is_pooled: bool) -> np.ndarray:
    """float64 [P]: what each prompt counts in a mean: snippets of a pair alike, then pairs; pooled, all positions."""
    if is_pooled:
        positions_P = np.where(counted_P, result.arrays["prompt_positions"], 0)
        pooled_P: np.ndarray = positions_P / max(1, positions_P.sum())
        return pooled_P
    pair_P = _pair_numbers(result)
    count_A = np.bincount(pair_P[counted_P], minlength=len(result.attributes["pairs"]))
    weight_P = np.zeros(len(counted_P))
    weight_P[counted_P] = 1 / count_A[pair_P[counted_P]] / max(1, np.count_nonzero(count_A))
    return weight_P


def _pair_numbers(result: LensResult) -> np.ndarray:
    """int64 [P]: the place of each prompt's pair among the store's A pairs."""
    number = {tuple(pair): place for place, pair in enumerate(result.attributes["pairs"])}
    return np.array([number[pair] for pair in _pairs(result.arrays)], np.int64)


def find_prompt(which: str, pairs: Sequence[str], ids: Sequence[str], group: str) -> int:
    """The number of a prompt, given by it or as SOURCE-TARGET/ID; `pairs` and `ids` are of each prompt of `group`."""
    if which.isdecimal() and int(which) < len(ids):
        return int(which)
    names = [f"{pair}/{id_}" for pair, id_ in zip(pairs, ids, strict=True)]
    if which not in names:
        raise InputError(f"--prompt {which}: {group} has prompts 0 to {len(ids) - 1}, {names[0]} to {names[-1]}")
    return names.index(which)
