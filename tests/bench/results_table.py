"""The READMEs' tables: what the statistics cost, from results.csv, the planted concept, what the demo
found, and other tools.

    python tests/bench/results_table.py [results.csv | planted_concept.csv | demo.csv | peers.csv]

A ratio is a variant's median ratio to the bare body over that of `bare again`; ± is its standard error in the run.
"""

import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from tabulate import tabulate

RESULTS = Path(__file__).with_name("results.csv")
VARIANTS = {
    "head": "with LM head",
    "eager_counts": "papers' chain",
    "eager_everything": "all by hooks",
    "products": "products alone",
    "counts": "counts",
    "moments": "and moments",
    "full": "and triggers",
}


def table(rows: Iterable[dict[str, str]]) -> str:
    """A Markdown table of the last run of every device, shape and dtype."""
    runs: dict[tuple[str, str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        runs.setdefault((row["device"], row["shape"], row["dtype"]), {})[row["variant"]] = row
    lines = []
    for (device, shape, dtype), run in runs.items():
        again = float(run["bare_again"]["ratio"])
        threads = f", {run['bare']['threads']} threads" if run["bare"]["threads"] else ""
        cells = [
            f"{float(run[name]['ratio']) / again:.2f} ± {float(run[name]['ratio_se']):.2f}" if name in run else "-"
            for name in VARIANTS
        ]
        lines.append([device + threads, f"{shape}, {dtype}", *cells])
    return tabulate(lines, ["device", "shape", *VARIANTS.values()], tablefmt="github", disable_numparse=True)


def planted_table(rows: Iterable[dict[str, str]]) -> str:
    """A Markdown table of what `planted_concept.py` measured: milli-nats a token."""
    header = ("triggers that match", "seed", "keys off", "its tokens", "random keys", "rest of its lines", "its files",
              "other files")  # fmt: skip
    lines = []
    for row in rows:
        own = f"{1000 * float(row['match']):+.0f} ± {1000 * float(row['standard_error']):.0f}"
        others = [f"{1000 * float(row[name]):+.0f}" for name in ("random", "line", "file", "elsewhere")]
        lines.append([f"{row['min_matches']} of 32 or more", row["seed"], row["keys"], own, *others])
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def demo_table(rows: Iterable[dict[str, str]]) -> str:
    """A Markdown table of each corpus's own neurons in one run of `neurotally demo`, from its JSON documents."""
    header = ("corpus", "specific neurons", "exclusive", "loss increase on its text", "z, same layers",
              "z, firing as often")  # fmt: skip
    lines = [
        [row["corpus"], row["specific"], row["exclusive"],
         f"{float(row['change']):+.3f} ± {float(row['change_error']):.3f}",
         f"{float(row['z_same_layers']):+.1f}", f"{float(row['z_above_threshold']):+.1f}"]
        for row in rows
    ]  # fmt: skip
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def peers_table(rows: Iterable[dict[str, str]]) -> str:
    """A Markdown table of what `bench_peers.py` measured last, by shape."""
    runs: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        runs.setdefault((row["device"], row["shape"]), {})[row["program"]] = row
    lines = [
        [f"{device}, {row['threads']} threads", shape, row["program"], f"{float(row['tokens_per_s']):,.0f}",
         f"{float(row['ratio']):.2f}", f"{float(row['peak_mb']):,.0f}", row["lines"]]
        for (device, shape), run in runs.items()
        for row in run.values()
    ]  # fmt: skip
    header = ("device", "shape", "program", "tokens/s", "time over ours", "peak memory, MB", "lines")
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def main() -> None:
    """Print the table."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    made_by = {"min_matches": planted_table, "z_same_layers": demo_table, "variant": table, "peak_mb": peers_table}
    print(next(make(rows) for column, make in made_by.items() if column in rows[0]))


if __name__ == "__main__":
    main()
