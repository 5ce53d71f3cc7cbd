"""How long MEXA takes: 581 ids x 8 languages x 33 layers x 4096 dimensions, random vectors.

    python tests/bench/bench_mexa.py [--common 10]

`--common C` adds to every vector one vector of C times its length, as where a BOS token dominates the mean: all
cosines are then close to 1 (C = 10: 0.99), where float32 alone can't tell them apart.
"""

import json
import resource
import time

import click
import numpy as np

from neurotally.analysis.layers.mexa import mexa


@click.command()
@click.option("--ids", default=581)
@click.option("--languages", default=8)
@click.option("--layers", default=33)
@click.option("--width", default=4096)
@click.option("--common", default=0.0, help="Length of the vector that all share, in lengths of their own.")
@click.option("--noise", default=1.0, help="Distance of an id's languages, in lengths of the id's own vector.")
def main(ids: int, languages: int, layers: int, width: int, common: float, noise: float) -> None:
    """Time `mexa`; one JSON line."""
    rng = np.random.default_rng(0)
    vector_LND = rng.standard_normal((layers, languages * ids, width), dtype=np.float32)
    own_LnD = rng.standard_normal((layers, ids, width), dtype=np.float32)
    for language in range(languages):
        vector_LND[:, language * ids : (language + 1) * ids] *= noise
        vector_LND[:, language * ids : (language + 1) * ids] += own_LnD
    vector_LND += common * rng.standard_normal((layers, 1, width), dtype=np.float32)
    del own_LnD
    text_Cn = np.arange(languages * ids).reshape(languages, ids)
    start = time.perf_counter()
    found = mexa(vector_LND, text_Cn)
    result = {
        "ids": ids, "languages": languages, "layers": layers, "width": width, "common": common, "noise": noise,
        "seconds": round(time.perf_counter() - start, 1),
        "vectors_gb": round(vector_LND.nbytes / 1e9, 2),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "mean_score": round(float(found.mean()), 4),
    }  # fmt: skip
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
