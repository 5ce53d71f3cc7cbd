"""The README's table of what the statistics cost, made from results.csv.

    python tests/bench/results_table.py [results.csv]

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
        cells = [f"{float(run[name]['ratio']) / again:.2f} ± {float(run[name]['ratio_se']):.2f}" for name in VARIANTS]
        lines.append([device + threads, f"{shape}, {dtype}", *cells])
    return tabulate(lines, ["device", "shape", *VARIANTS.values()], tablefmt="github", disable_numparse=True)


def main() -> None:
    """Print the table."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    with path.open(newline="") as file:
        print(table(csv.DictReader(file)))


if __name__ == "__main__":
    main()
