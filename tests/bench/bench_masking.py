"""How often z finds what isn't there, and what is: `analysis/masking/judgement.py` on losses drawn at random.

    python tests/bench/bench_masking.py [--seeds 2000]

Prints a row a case, the shares of seeds in percent at levels of 5 % and 1 %, and one JSON line last. Cases:

set      the set is one more draw: `neurons` many neurons whose costs have `tail`, from `others` times as many others,
         drawn from all of them ("all", as neurons above the threshold are) or from the others alone ("others", as
         neurons of the same layers are)
text     the set costs nothing over all documents there could be, and the draws nothing at all
effect   the set costs more than the draws by `effect` of their standard deviations
"""

import json
from typing import Any

import click
import numpy as np

from neurotally.analysis.masking.judgement import exclusive_factor, judge

TAILS = {
    "normal": lambda rng, number: rng.normal(size=number),
    "t, 3 degrees": lambda rng, number: rng.standard_t(3, number),
    "log-normal, 1.5": lambda rng, number: rng.lognormal(0, 1.5, number),
}
DOCUMENTS = ((5, 0.0), (5, 1.5), (12, 1.5), (60, 0.5), (60, 1.5))
"""How many, and the standard deviation of the logarithm of their lengths."""
NEURONS, DRAWS = 20, 8
DEVIATES = (1.960, 2.576)


@click.command()
@click.option("--seeds", default=2000)
def main(seeds: int) -> None:
    """Run all cases."""
    found = []
    for tail in TAILS:
        for pool, others in (("all", 1), ("all", 4), ("all", 50), ("others", 4), ("others", 50)):
            found.append(row(seeds, "set", tail=tail, pool=pool, others=others))
    for documents, spread in DOCUMENTS:
        for noise in (0.1, 1.0, 10.0):
            found.append(row(seeds, "set", documents=documents, spread=spread, noise=noise))
        found.append(row(seeds, "text", documents=documents, spread=spread))
    for effect in (2.0, 3.0, 5.0):
        for draws in (3, 5, 8, 20):
            found.append(row(seeds, "effect", effect=effect, draws=draws))
    click.echo(json.dumps(found))


def row(seeds: int, case: str, **settings: Any) -> dict[str, Any]:
    """Run a case over all seeds, and print what it gives."""
    z_N = np.array([z_of(np.random.default_rng(seed), case, **settings) for seed in range(seeds)])
    shares = [round(100 * float(np.mean(abs(z_N) > deviate)), 1) for deviate in DEVIATES]
    words = ", ".join(f"{key} {value}" for key, value in settings.items())
    click.echo(f"{case:7} {words:50} {shares[0]:5.1f} {shares[1]:5.1f}")
    return {"case": case, **settings, "percent": shares}


def z_of(
    rng: np.random.Generator, case: str, tail: str = "normal", pool: str = "all", others: int = 50, documents: int = 30,
    spread: float = 0.5, noise: float = 0.1, effect: float = 0.0, draws: int = DRAWS,
) -> float:  # fmt: skip
    """One seed; `noise`: of a document's cost, in standard deviations of the draws."""
    cost_N = TAILS[tail](rng, (others + 1) * NEURONS)
    start = 0 if pool == "all" else NEURONS
    picks = [start + rng.permutation(len(cost_N) - start)[:NEURONS] for _ in range(draws)]
    cost_S = np.array([cost_N[:NEURONS].sum(), *(cost_N[pick].sum() for pick in picks)]) / np.sqrt(NEURONS)
    cost_S[0] += effect
    noise_SD = noise * rng.normal(size=(draws + 1, documents))
    if case == "text":
        cost_S, noise_SD = np.zeros(draws + 1), noise_SD * np.array([1.0, *[1e-6] * draws])[:, None]
    tokens_D = np.maximum(2, rng.lognormal(5, spread, documents)).astype(int)
    nats_SD = (cost_S[:, None] + noise_SD) * tokens_D
    cost, *random = (nats_SD.sum(axis=1) / tokens_D.sum()).tolist()
    factor = 1.0 if pool == "all" else exclusive_factor(NEURONS, others * NEURONS)
    return judge(cost, random, nats_SD[0] - nats_SD[1:].mean(axis=0), tokens_D, factor).z


if __name__ == "__main__":
    main()
