"""The logit lens of a store, put together: by pair, by source, by target, over all. What `neurotally lens` says.

    {"schema": 1, "model": {"id", "fingerprint"}, "paper", "layers", "sets": {name: {"entries", "single", "tokens"}},
     "empty_sets": {name: entries}, "skipped": {pair: {reason: [ids]}},
     "pairs" | "unordered" | "sources" | "targets": {name: MEANS}, "all": MEANS, "pooled": MEANS}

    MEANS: {"snippets", "positions", "gold_probability", "gold_rank", "gold_top10", "gold_probability_top10",
            "gold_rank_top10": [by layer],
            "sets": {name: {"mass", "mass_top10", "rank_top10", "hit": [by layer], "control": the same four}}}

Means are over the positions of a snippet, then over snippets, then over pairs; `pooled` is over all positions alike.
gold_top10 is the share of positions whose gold token is among the first 10; _top10 and mass_top10 count those alone,
with rank 11 where there is none; hit is the share of positions with a token of the set among the first 10. Control:
as many random tokens. Layers are counted from 0, after the first block.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.json_numbers import numbers
from neurotally.analysis.languages.counts import model_key
from neurotally.analysis.text_table import layer_runs, text_table
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

LENS_SCHEMA = 1
_GOLD = {
    "gold_probability": "gold_probability", "gold_rank": "gold_rank", "gold_top10": "gold_top",
    "gold_probability_top10": "gold_probability_top", "gold_rank_top10": "gold_rank_top",
}  # fmt: skip
"""Names in the document, and in the store."""
_SET = {"mass": "mass", "mass_top10": "mass_top", "rank_top10": "rank_top", "hit": "hit"}
_LISTED_PAIRS = 12

Weights = np.ndarray
"""[P]: what each prompt counts in a mean; they add up to 1."""


@dataclass(frozen=True)
class LensResult:
    """A lens as the store holds it. P prompts."""

    arrays: store.Arrays
    attributes: Mapping[str, Any]
    model: Mapping[str, Any]
    """The store's `model` attribute."""

    @property
    def pair_P(self) -> list[tuple[str, str]]:
        """The pair of each prompt."""
        languages = self.arrays["language"].tolist()
        return [
            (languages[source], languages[target])
            for source, target in zip(self.arrays["prompt_source"], self.arrays["prompt_target"], strict=True)
        ]


@dataclass(frozen=True)
class PromptLens:
    """The lens of one prompt. n positions, L layers."""

    pair: str
    id: str
    input_n: list[str]
    """The token before each predicted one."""
    gold_n: list[str]
    first_nL: list[list[str]]
    """The first token of each layer."""
    probability_nL: np.ndarray


def read_lens(path: Path, name: str) -> LensResult:
    """A lens of a store; an InputError where it has none of the name."""
    names = ["language", "set", "prompt_source", "prompt_target", "prompt_positions"]
    names += [f"prompt_{of}" for of in (*_GOLD.values(), *_SET.values())]
    names += [f"control_{of}" for of in _SET.values()]
    group = f"lens/{name}"
    arrays = store.read_group(path, group, names)
    return LensResult(arrays, store.group_attributes(path, group), store.store_attributes(path)["model"])


def read_prompt(path: Path, name: str, which: str) -> PromptLens:
    """One prompt's lens. `which`: its number, from 0, or SOURCE-TARGET/ID."""
    group = f"lens/{name}"
    names = ["language", "token", "prompt_id", "prompt_source", "prompt_target", "prompt_positions"]
    arrays = store.read_group(path, group, names)
    languages, ids = arrays["language"].tolist(), arrays["prompt_id"].tolist()
    pairs = [
        f"{languages[source]}-{languages[target]}"
        for source, target in zip(arrays["prompt_source"], arrays["prompt_target"], strict=True)
    ]
    number = find_prompt(which, pairs, ids, group)
    start = int(arrays["prompt_positions"][:number].sum())
    end = start + int(arrays["prompt_positions"][number])
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
        first_nL=spelling[of["top_id"][:, :, 0]].tolist(),
        probability_nL=of["top_probability"][:, :, 0],
    )


def lens_document(result: LensResult) -> dict[str, Any]:
    """The document of `lens --json` and `--out`."""
    pair_P = result.pair_P
    attributes = result.attributes
    return {
        "schema": LENS_SCHEMA,
        "model": model_key(result.model),
        "paper": attributes["paper"],
        "layers": result.arrays["prompt_gold_rank"].shape[1],
        "sets": attributes["sets"],
        "empty_sets": attributes["empty_sets"],
        "skipped": attributes["skipped"],
        "pairs": _by(result, [f"{source}-{target}" for source, target in pair_P]),
        "unordered": _by(result, ["-".join(sorted(pair)) for pair in pair_P]),
        "sources": _by(result, [source for source, _ in pair_P]),
        "targets": _by(result, [target for _, target in pair_P]),
        "all": _means(result, np.ones(len(pair_P), bool), _macro),
        "pooled": _means(result, np.ones(len(pair_P), bool), _pooled),
    }


def lens_table(document: Mapping[str, Any]) -> str:
    """The document as text: the gold token by pair or language, then the token sets, in runs of layers."""
    runs = layer_runs(document["layers"], 4)
    if len(document["pairs"]) <= _LISTED_PAIRS:
        found = dict(document["pairs"])
    else:
        found = {f"from {name}": means for name, means in document["sources"].items()}
        found |= {f"to {name}": means for name, means in document["targets"].items()}
    found |= {"all pairs": document["all"], "all positions alike": document["pooled"]}
    rows = [
        [name, f"{means['snippets']:,}", f"{means['positions']:,}", *_in_runs(means["gold_probability"], runs)]
        for name, means in found.items()
    ]
    blocks = [text_table(("gold token's probability", "snippets", "positions", *runs), rows)]
    if document["sets"]:
        rows = [
            [name, f"{document['sets'][name]['tokens']:,}", *_in_runs(of["mass"], runs),
             *_in_runs(of["control"]["mass"], runs)]
            for name, of in document["all"]["sets"].items()
        ]  # fmt: skip
        random = [f"random {span}" for span in runs]
        blocks.append(text_table(("probability of a set's tokens", "tokens", *runs, *random), rows))
    return "\n\n".join([*blocks, "\n".join(_notes(document))])


def _by(result: LensResult, name_P: Sequence[str]) -> dict[str, Any]:
    """The means of all prompts of each name."""
    named_P = np.array(name_P)
    return {name: _means(result, named_P == name, _macro) for name in dict.fromkeys(name_P)}


def _means(result: LensResult, in_P: np.ndarray, weigh: Callable[[LensResult, np.ndarray], Weights]) -> dict[str, Any]:
    arrays = result.arrays
    counted_P = in_P & (arrays["prompt_positions"] > 0)
    weight_P = weigh(result, counted_P)

    def by_layer(name: str) -> np.ndarray:
        values = arrays[name]
        if not counted_P.any():
            return np.full(values.shape[1:], np.nan)
        mean: np.ndarray = np.tensordot(weight_P[counted_P], values[counted_P].astype(np.float64), axes=1)
        return mean

    sets: dict[str, Any] = {}
    of_sets = {key: (by_layer(f"prompt_{name}"), by_layer(f"control_{name}")) for key, name in _SET.items()}
    for number, set_name in enumerate(arrays["set"].tolist()):
        sets[set_name] = {key: numbers(found_LS[:, number]) for key, (found_LS, _) in of_sets.items()}
        sets[set_name]["control"] = {key: numbers(control_LS[:, number]) for key, (_, control_LS) in of_sets.items()}
    return {
        "snippets": int(counted_P.sum()),
        "positions": int(arrays["prompt_positions"][counted_P].sum()),
        **{key: numbers(by_layer(f"prompt_{name}")) for key, name in _GOLD.items()},
        "sets": sets,
    }


def _macro(result: LensResult, counted_P: np.ndarray) -> Weights:
    """All snippets of a pair alike, then all pairs alike."""
    pair_P = result.arrays["prompt_source"].astype(np.int64) * 2**16 + result.arrays["prompt_target"]
    _, place_P, count = np.unique(pair_P[counted_P], return_inverse=True, return_counts=True)
    weight_P = np.zeros(len(counted_P))
    weight_P[counted_P] = 1 / count[place_P] / max(1, len(count))
    return weight_P


def _pooled(result: LensResult, counted_P: np.ndarray) -> Weights:
    """All positions alike."""
    positions_P = np.where(counted_P, result.arrays["prompt_positions"], 0)
    weight_P: Weights = positions_P / max(1, positions_P.sum())
    return weight_P


def find_prompt(which: str, pairs: Sequence[str], ids: Sequence[str], group: str) -> int:
    """The number of a prompt, given by it or as SOURCE-TARGET/ID; `pairs` and `ids` are of each prompt of `group`."""
    if which.isdecimal() and int(which) < len(ids):
        return int(which)
    names = [f"{pair}/{id_}" for pair, id_ in zip(pairs, ids, strict=True)]
    if which not in names:
        raise InputError(f"--prompt {which}: {group} has prompts 0 to {len(ids) - 1}, {names[0]} to {names[-1]}")
    return names.index(which)


def _in_runs(values: Sequence[float | None], runs: Mapping[str, np.ndarray]) -> list[str]:
    found = []
    for run in runs.values():
        known = [value for value in (values[layer] for layer in run) if value is not None]
        found.append(f"{sum(known) / len(known):.4f}" if known else "-")
    return found


def _notes(document: Mapping[str, Any]) -> list[str]:
    notes = ["means over a snippet's positions, then snippets, then pairs; over the full vocabulary, by layer from 0"]
    if document["sets"]:
        notes.append(
            "random: as many tokens drawn at random; sets overlap, and a larger set gets more by its size alone"
        )
    for name, entries in document["empty_sets"].items():
        notes.append(f"no set {name!r}: none of its {entries} entries is one token of this tokenizer")
    counts: dict[str, int] = {}
    for reasons in document["skipped"].values():
        for reason, ids in reasons.items():
            counts[reason] = counts.get(reason, 0) + len(ids)
    notes += [f"skipped: {count:,} prompts ({reason}), named in the JSON document" for reason, count in counts.items()]
    if document["paper"]:
        notes.append("--paper: prefixes decoded and encoded again, as in the reference; the last token isn't predicted")
    return notes
