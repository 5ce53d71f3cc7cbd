"""Do the error bars cover the truth, and what do they cost: tables, and one JSON line last.

    python tests/bench/bench_error_bars.py [--draws 1000] [--only-coverage | --only-speed]

Coverage: counts are drawn again and again from known probabilities; an interval of 95 % should hold the truth in
95 % of the draws. Tokens fire independently, or in bursts: documents of 200 tokens, each with a rate of its own
(beta distributed, standard deviation 0.58 · √(p (1-p))). Groups are unequal in tokens by a factor of 2 to 3.
Entropies are of 12 corpora, from neurons of one corpus to neurons of all alike; the coverage of those flagged and
of the others is told apart.

Speed: Llama-3.1-8B's shape, 12 corpora, 10 groups, from counts in memory and from a store on disk (reading it,
LAPE, error bars, document). Each in a process of its own, whose peak counts everything that it held.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from neurotally.analysis.languages.counts import GroupCounts, Groups, read_group_counts
from neurotally.analysis.languages.error_bars import error_bars_document
from neurotally.analysis.languages.jackknife import error_bars
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.profiler import store

PROBABILITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
NUM_CORPORA, NUM_GROUPS = 12, 10
DOCUMENT_TOKENS = 200
BURSTS = 2.0
"""A document's rate is beta distributed with p · BURSTS and (1 - p) · BURSTS: variance p (1-p) / (1 + BURSTS)."""
SHAPE = (32, 14336)


def coverage_p(draws: int, in_bursts: bool, group_tokens: int) -> list[dict[str, Any]]:
    """One row a probability; the draws stand where the neurons would."""
    counts = drawn_counts(np.array([PROBABILITIES] * 2), draws, in_bursts, group_tokens)
    bars = error_bars(counts)
    low_CPD, high_CPD = bars.p_interval()
    truth_P1 = np.array(PROBABILITIES)[:, None]
    is_in_PD = (low_CPD[0] <= truth_P1) & (truth_P1 <= high_CPD[0])
    return [
        {"op": "coverage_p", "p": p, "in_bursts": in_bursts, "group_tokens": group_tokens,
         "draws": draws, "coverage": float(is_in_PD[i].mean()), "flagged": float(bars.has_few_hits_CLF[0, i].mean())}
        for i, p in enumerate(PROBABILITIES)
    ]  # fmt: skip


def entropy_cases() -> dict[str, np.ndarray]:
    """By name: 12 probabilities."""
    spread = np.random.default_rng(1).lognormal(0, 0.5, NUM_CORPORA - 1)
    cases = {
        f"{own:g} in its corpus, about {others:g} elsewhere": np.concatenate([[own], others * spread])
        for own, others in [(0.5, 1e-5), (0.5, 5e-4), (0.5, 5e-3), (0.1, 2e-3), (0.5, 0.05), (0.3, 0.2)]
    }
    cases["0.2 in four corpora, 0.01 in eight"] = np.repeat([0.2, 0.01], [4, 8])
    cases |= {f"0.2 in all, ± {100 * by:g} %": 0.2 * np.linspace(1 - by, 1 + by, NUM_CORPORA) for by in (0.4, 0.2, 0.0)}
    cases["0.005 in all, ± 40 %"] = 0.005 * np.linspace(0.6, 1.4, NUM_CORPORA)
    return cases


def coverage_entropy(draws: int, in_bursts: bool, group_tokens: int) -> list[dict[str, Any]]:
    """One row a case of `entropy_cases`."""
    cases = entropy_cases()
    p_CP = np.stack(list(cases.values()), axis=1)
    bars = error_bars(drawn_counts(p_CP, draws, in_bursts, group_tokens))
    q_CP = p_CP / p_CP.sum(axis=0)
    truth_P = -(q_CP * np.log(q_CP)).sum(axis=0)
    low_PD, high_PD = bars.entropy_interval()
    is_in_PD = (low_PD <= truth_P[:, None] + 1e-12) & (truth_P[:, None] - 1e-12 <= high_PD)
    is_flagged_PD = np.any(list(bars.entropy_flags().values()), axis=0)
    return [
        {"op": "coverage_entropy", "case": name, "in_bursts": in_bursts, "group_tokens": group_tokens, "draws": draws,
         "entropy": float(truth_P[i]), "coverage": float(is_in_PD[i].mean()), "flagged": float(is_flagged_PD[i].mean()),
         "coverage_unflagged": _mean(is_in_PD[i][~is_flagged_PD[i]])}
        for i, name in enumerate(cases)
    ]  # fmt: skip


def drawn_counts(p_CP: np.ndarray, draws: int, in_bursts: bool, group_tokens: int) -> GroupCounts:
    """Counts of neurons [P, draws] with these probabilities: the draws of one row are independent."""
    rng = np.random.default_rng(0)
    share_CG = rng.uniform(0.6, 1.4, (len(p_CP), NUM_GROUPS))
    documents_CG = np.maximum(1, np.round(share_CG * group_tokens / DOCUMENT_TOKENS)).astype(int)
    shape = (p_CP.shape[1], draws)

    def group(p_P: np.ndarray, num_documents: int) -> np.ndarray:
        p_PD = np.broadcast_to(p_P[:, None], shape)
        if not in_bursts:
            return rng.binomial(num_documents * DOCUMENT_TOKENS, p_PD)
        hits_PD = np.zeros(shape, np.int64)
        for _ in range(num_documents):
            hits_PD += rng.binomial(DOCUMENT_TOKENS, rng.beta(p_PD * BURSTS, (1 - p_PD) * BURSTS))
        return hits_PD

    active = [
        np.stack([group(p_P, n) for n in n_G]).astype(np.uint64) for p_P, n_G in zip(p_CP, documents_CG, strict=True)
    ]
    tokens = [(n_G * DOCUMENT_TOKENS).astype(np.uint64) for n_G in documents_CG]
    names = tuple(f"corpus {c:02}" for c in range(len(p_CP)))
    made = dict(zip(names, map(Groups, tokens, active), strict=True))
    return GroupCounts(None, made, dict.fromkeys(names, 0), {})


def made_up_counts(shape: tuple[int, int] = SHAPE) -> GroupCounts:
    """Counts of a model that look like real ones: rates of their own, factors by corpus, dead and lonely neurons."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(8_000_000, 12_000_000, NUM_GROUPS) for _ in range(NUM_CORPORA)]
    odds_LF = rng.beta(0.8, 3, shape)
    odds_LF[rng.random(shape) < 0.001] = 0
    is_lonely_LF = rng.random(shape) < 0.01
    active = []
    for c, tokens_G in enumerate(tokens):
        corpus_LF = odds_LF * rng.lognormal(0, 0.4, shape) * (1 if c == 0 else ~is_lonely_LF)
        group_GLF = corpus_LF * rng.lognormal(0, 0.02, (NUM_GROUPS, *shape))
        active.append((group_GLF / (1 + group_GLF) * tokens_G[:, None, None]).astype(np.uint64))
    names = tuple(f"corpus {c:02}" for c in range(NUM_CORPORA))
    unsigned = [tokens_G.astype(np.uint64) for tokens_G in tokens]
    made = dict(zip(names, map(Groups, unsigned, active), strict=True))
    return GroupCounts(None, made, dict.fromkeys(names, 0), {})


def write_store(path: Path) -> None:
    counts = made_up_counts()
    store.create_store(path, {"model": None})
    for name, tokens_G, active_GLF in zip(counts.corpora, counts.tokens, counts.active, strict=True):
        store.write_arrays(path / "fresh", {"tokens": tokens_G, "active": active_GLF}, {})
        store.publish(path, f"corpora/{name}", path / "fresh")


def measure(path: Path | None) -> dict[str, Any]:
    """LAPE with error bars, from a store or from counts in memory."""
    counts = None if path else made_up_counts()
    held_gb = _peak_gb()
    started = time.perf_counter()
    groups = counts or read_group_counts(path or Path())
    read = time.perf_counter()
    selection = lape(groups.total(), Rule())
    document = error_bars_document(error_bars(groups), selection)
    finished = time.perf_counter()
    return {"op": "error_bars", "from": "store" if path else "memory", "layers": SHAPE[0], "neurons": SHAPE[1],
            "corpora": NUM_CORPORA, "groups": NUM_GROUPS, "read_s": round(read - started, 2),
            "seconds": round(finished - started, 2), "peak_gb": round(_peak_gb(), 2),
            "held_before_gb": round(held_gb, 2),
            "specific": sum(len(of["entropy"]) for of in document["specific"].values())}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--group-tokens", type=int, default=20_000)
    parser.add_argument("--only-coverage", action="store_true")
    parser.add_argument("--only-speed", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if not arguments.only_speed:
        rows += print_coverage(arguments.draws, arguments.group_tokens)
    if not arguments.only_coverage:
        rows += print_speed()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
    print(json.dumps({"rows": rows, **machine}))


def print_coverage(draws: int, group_tokens: int) -> list[dict[str, Any]]:
    ways = (False, True)
    by_way = [coverage_p(draws, in_bursts, group_tokens) for in_bursts in ways]
    print(f"95 % intervals of p, {draws:,} draws: how many hold the truth (share flagged)")
    print(f"{'p':>8}{'independent':>20}{'in bursts':>20}")
    for both in zip(*by_way, strict=True):
        print(f"{both[0]['p']:8g}" + "".join(f"{row['coverage']:12.1%} {row['flagged']:6.0%} " for row in both))
    entropies = [coverage_entropy(draws, in_bursts, group_tokens) for in_bursts in ways]
    print(f"\n95 % intervals of the entropy of {NUM_CORPORA} corpora (at most {math.log(NUM_CORPORA):.3f}): "
          "all, share flagged, those not flagged")  # fmt: skip
    print(f"{'probabilities':42}{'entropy':>8}{'independent':>24}{'in bursts':>24}")
    for both in zip(*entropies, strict=True):
        cells = "".join(f"{_shown(row):>24}" for row in both)
        print(f"{both[0]['case']:42}{both[0]['entropy']:8.3f}{cells}")
    return [row for rows in (*by_way, *entropies) for row in rows]


def print_speed() -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for path in (None, Path(folder) / "store"):
            context = multiprocessing.get_context("spawn")
            if path:
                with ProcessPoolExecutor(1, context) as pool:
                    pool.submit(write_store, path).result()
            with ProcessPoolExecutor(1, context) as pool:
                rows.append(pool.submit(measure, path).result())
    print(f"\n{'LAPE with error bars, from':28}{'read s':>8}{'all s':>8}{'peak GB':>9}")
    for row in rows:
        print(f"{row['from']:28}{row['read_s']:8}{row['seconds']:8}{row['peak_gb']:9}")
    return rows


def _shown(row: dict[str, Any]) -> str:
    unflagged = "-" if row["coverage_unflagged"] is None else f"{row['coverage_unflagged']:.1%}"
    return f"{row['coverage']:.1%} {row['flagged']:5.0%} {unflagged:>6}"


def _mean(values: Sequence[bool] | np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
