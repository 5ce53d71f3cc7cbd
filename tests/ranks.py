"""Shards of several models on two devices, by two processes that load one model after the other.

python ranks.py FOLDER RANK MODEL...      leaves FOLDER/MODEL'S NAME.RANK: (its shard, what it counts), pickled
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import distributed

from neurotally.jobs.engines.device_group import RankStart
from neurotally.jobs.engines.rank import _join
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler.corpus.batches import TokenRows, lay_out
from neurotally.profiler.model.shards import ModelShard
from neurotally.profiler.neuron_sums import UnitNeurons
from neurotally.profiler.passes.worker import PassConfig, neurons_of

CONFIG = PassConfig("documents", 64, None, 512, 2**20, 1, 4, kernels="plain")
RANKS = 2


def some_rows() -> TokenRows:
    generator = np.random.default_rng(0)
    documents = [(number, generator.integers(0, 600, 3 + 2 * number).tolist()) for number in range(25)]
    return lay_out(documents, frozenset([0]), "documents", 64)


def counted_by_ranks(folder: Path, models: Sequence[Path]) -> dict[str, list[tuple[ModelShard, UnitNeurons]]]:
    """What each rank has of each model's neurons in `some_rows`, by the name of its folder."""
    command = [sys.executable, __file__, str(folder)]
    started = [
        subprocess.Popen(
            [*command, str(rank), *map(str, models)],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)},
        )
        for rank in range(RANKS)
    ]
    assert [process.wait() for process in started] == [0] * RANKS
    return {
        model.name: [pickle.loads((folder / f"{model.name}.{rank}").read_bytes()) for rank in range(RANKS)]
        for model in models
    }


def main(folder: Path, rank: int, models: Sequence[Path]) -> None:
    for path in models:
        start = RankStart(ModelConfig(str(path), device="cpu", devices=RANKS), folder / f"{path.name}.meeting", 1)
        model, shard = _join(start)
        counted = neurons_of(model, CONFIG, some_rows(), 512, None)
        (folder / f"{path.name}.{rank}").write_bytes(pickle.dumps((shard, counted)))
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
