"""A profile beside processes that want the same cores.

    python tests/bench/bench_busy.py MODEL CORPORA [--busy 0 2 6] [--rounds 3] [--settings NAME ...] [--csv busy.csv]

MODEL is profiled over CORPORA (some 100,000 tokens are enough) beside so many processes that only use a core; every
setting once a round, in turn: by one process with all cores, whose threads look for each other for a while before they
sleep ("ours" is what `neurotally.jobs` sets where the user sets nothing), and by two workers, as ours are started and
at the niceness that Ray's own workers have. Prints a row for each number of processes and setting: tokens/s of the
pass, the median of the rounds, and its share of the same setting's beside none.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.result_rows import append_rows

from neurotally.profiler.model.load import device_name

SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "ours": (1, {}),
    "asleep at once": (1, {"GOMP_SPINCOUNT": "0"}),
    "OpenMP's": (1, {"GOMP_SPINCOUNT": "300000"}),
    "two workers": (2, {}),
    "two workers, Ray's niceness": (2, {"RAY_worker_niceness": "15"}),
}
"""Workers, and what the environment says."""
PROFILE = """
import json, sys
from neurotally.jobs import profile
model, store, corpora, workers = sys.argv[1:]
done = profile(model, store, corpora=corpora, device="cpu", workers=int(workers))
print(json.dumps({"tokens_per_s": done["tokens_per_s"]}))
"""


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("corpora")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2, 6])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    quiet: dict[str, float] = {}
    for number in arguments.busy:
        found: dict[str, list[float]] = {setting: [] for setting in arguments.settings}
        with busy(number):
            for _ in range(arguments.rounds):
                for setting, rates in found.items():
                    rates.append(tokens_per_s(arguments.model, arguments.corpora, *SETTINGS[setting]))
        rows = []
        for setting, rates in found.items():
            rate = statistics.median(rates)
            if number == 0:
                quiet[setting] = rate
            rows.append({
                "device": device_name("cpu"), "cores": os.cpu_count(), "busy": number, "setting": setting,
                "tokens_per_s": round(rate), "least": round(min(rates)), "most": round(max(rates)),
                "share_of_quiet": round(rate / quiet[setting], 2) if quiet else None,
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
        if arguments.csv is not None:
            append_rows(arguments.csv, rows)


@contextlib.contextmanager
def busy(number: int) -> Iterator[None]:
    """So many processes that take all that they get of a core."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def tokens_per_s(model: str, corpora: str, workers: int, settings: dict[str, str]) -> float:
    """Of the whole pass, in a process of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-c", PROFILE, model, f"{scratch}/store", corpora, str(workers)]
        done = subprocess.run(
            command, env=environment | settings, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    return float(json.loads(done.stdout)["tokens_per_s"])


if __name__ == "__main__":
    main()
