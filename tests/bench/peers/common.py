"""What every peer's program shares: its arguments, the files' tokens in batches, and the statistics of a layer.

Not counted as lines of a peer's program, though whoever writes one has to write these, too.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

NUM_TRIGGERS = 32
TOKENS = 512
"""So many of each file."""


class Batch(NamedTuple):
    """Files, padded on the right."""

    input_ids: Tensor
    attention_mask: Tensor
    document_B: Tensor


def arguments() -> argparse.Namespace:
    """MODEL, a folder of files, how many at once, where the result goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("files", type=Path)
    parser.add_argument("batch", type=int)
    parser.add_argument("out", type=Path)
    return parser.parse_args()


def batches(folder: Path, tokenizer: Any, size: int) -> Iterator[Batch]:
    """The files in batches, the longest first, so that little is padded."""
    texts = [path.read_text() for path in sorted(path for path in folder.rglob("*") if path.is_file())]
    ids = tokenizer(texts, truncation=True, max_length=TOKENS)["input_ids"]
    order = sorted((number for number, row in enumerate(ids) if row), key=lambda number: -len(ids[number]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        longest = len(ids[numbers[0]])
        rows = torch.tensor([ids[number] + [0] * (longest - len(ids[number])) for number in numbers])
        lengths = torch.tensor([len(ids[number]) for number in numbers])
        yield Batch(rows, (torch.arange(longest) < lengths[:, None]).long(), torch.tensor(numbers))


class Statistics:
    """Counts, moments, extremes and the places of the largest coefficients, by layer and neuron."""

    def __init__(self, num_layers: int, num_neurons: int):
        shape = (num_layers, num_neurons)
        self.active = torch.zeros(shape, dtype=torch.int64)
        self.sums = torch.zeros((4, *shape), dtype=torch.float64)
        self.max = torch.full(shape, -torch.inf)
        self.min = torch.full(shape, torch.inf)
        self.value = torch.zeros((num_layers, NUM_TRIGGERS, num_neurons))
        self.place = torch.zeros((num_layers, NUM_TRIGGERS, num_neurons), dtype=torch.int64)
        self.tokens = 0

    def begin(self, batch: Batch) -> None:
        """The batch that layers are added of next."""
        self._is_token = batch.attention_mask.bool()[..., None]
        self._document_B = batch.document_B
        self.tokens += int(batch.attention_mask.sum())

    def add(self, layer: int, activation_BTF: Tensor, coefficient_BTF: Tensor) -> None:
        """Add one layer of the batch."""
        activation_BTF = activation_BTF.where(self._is_token, 0)
        zero_BTF = coefficient_BTF.where(self._is_token, 0)
        self.active[layer] += (activation_BTF > 0).sum((0, 1))
        moments = (activation_BTF, zero_BTF, zero_BTF.abs(), zero_BTF.square())
        self.sums[:, layer] += torch.stack([moment.sum((0, 1)) for moment in moments])
        best = coefficient_BTF.where(self._is_token, -torch.inf).max(1)
        self.max[layer] = torch.maximum(self.max[layer], best.values.amax(0))
        self.min[layer] = torch.minimum(self.min[layer], coefficient_BTF.where(self._is_token, torch.inf).amin((0, 1)))
        place_BF = self._document_B[:, None] * TOKENS + best.indices
        values, places = torch.cat([self.value[layer], best.values]), torch.cat([self.place[layer], place_BF])
        top = values.topk(NUM_TRIGGERS, dim=0)
        self.value[layer], self.place[layer] = top.values, places.gather(0, top.indices)

    def save(self, path: Path) -> None:
        """What the comparison reads."""
        np.savez(path, active=self.active.numpy(), tokens=self.tokens, value=self.value.numpy())


def run_all(folder: Path, tokenizer: Any, size: int, statistics: Statistics, run: Callable[[Batch], object]) -> None:
    """Run a model over all batches."""
    for batch in batches(folder, tokenizer, size):
        statistics.begin(batch)
        with torch.no_grad():
            run(batch)
