"""How long LAPE takes and how much memory, by model size: a table, and one JSON line last.

    python tests/bench/bench_lape.py [--only Llama-2-70B] [--corpora 12] [--rounds 3]

Counts are made up to look like real ones: each neuron has a firing rate of its own, corpora differ by some
factor, one neuron in a thousand is dead, one in a hundred fires in a single corpus. Each size runs in a process
of its own, so that the peak is its own: everything that the process held, the counts included.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any, get_args

import numpy as np

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Rule, Select, lape

SHAPES = {"GPT-2": (12, 3072), "Llama-3.1-8B": (32, 14336), "Llama-2-70B": (80, 28672)}
TOKENS = 100_000_000


def made_up_counts(num_corpora: int, num_layers: int, num_neurons: int) -> np.ndarray:
    """uint64 [C, L, F], made layer by layer so that making them doesn't set the peak."""
    rng = np.random.default_rng(0)
    active_CLF = np.empty((num_corpora, num_layers, num_neurons), np.uint64)
    for layer in range(num_layers):
        odds_CF = rng.beta(0.8, 3, num_neurons) * rng.lognormal(0, 0.4, (num_corpora, num_neurons))
        odds_CF[:, rng.random(num_neurons) < 0.001] = 0
        odds_CF[1:, rng.random(num_neurons) < 0.01] = 0
        active_CLF[:, layer] = odds_CF / (1 + odds_CF) * TOKENS
    return active_CLF


def measure(model: str, num_corpora: int, rounds: int) -> list[dict[str, Any]]:
    """One row a selection."""
    active_CLF = made_up_counts(num_corpora, *SHAPES[model])
    tokens_C = np.full(num_corpora, TOKENS, np.uint64)
    rows = []
    counts = CorpusCounts(None, tuple(f"corpus {c}" for c in range(num_corpora)), tokens_C, active_CLF, {})
    for select in get_args(Select):
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            found = lape(counts, Rule(select=select))
            seconds.append(time.perf_counter() - started)
        rows.append(
            {
                "op": "lape",
                "model": model,
                "layers": SHAPES[model][0],
                "neurons": SHAPES[model][1],
                "corpora": num_corpora,
                "select": select,
                "seconds_median": round(float(np.median(seconds)), 4),
                "seconds_max": round(max(seconds), 4),
                "counts_gb": round(active_CLF.nbytes / 1e9, 3),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 3),
                "passing": int(np.isfinite(found.entropy_LF).sum()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SHAPES, help="one size instead of all")
    parser.add_argument("--corpora", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(f"{'model':14}{'select':>10}{'median s':>10}{'max s':>8}{'counts GB':>11}{'peak GB':>9}{'pass':>10}")
    rows: list[dict[str, Any]] = []
    for model in [arguments.only] if arguments.only else SHAPES:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            measured = pool.submit(measure, model, arguments.corpora, arguments.rounds).result()
        for row in measured:
            print(
                f"{row['model']:14}{row['select']:>10}{row['seconds_median']:>10}{row['seconds_max']:>8}"
                f"{row['counts_gb']:>11}{row['peak_gb']:>9}{row['passing']:>10}"
            )
        rows += measured
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "numpy": np.__version__}
    print(json.dumps({"rows": rows, **machine}))


if __name__ == "__main__":
    main()
