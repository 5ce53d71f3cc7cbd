"""Independent references, written from the formulas with plain forward hooks and plain Python."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from neurotally.profiler import store
from neurotally.profiler.neuron_sums import UnitNeurons


def everything(path: Path) -> dict[str, bytes]:
    """Every array of every corpus, as bytes."""
    return {
        f"{corpus}/{name}": array.tobytes() if array.dtype.kind not in "TO" else repr(array.tolist()).encode()
        for corpus in store.committed_corpora(path)
        for name, array in store.read_corpus(path, corpus).items()
    }


def unit_arrays(unit: UnitNeurons) -> dict[str, np.ndarray]:
    """All arrays of a unit, sums and triggers, by name."""
    return {**unit.sums, **unit.triggers._asdict()}


SUMS = ("activation_sum", "coefficient_sum", "coefficient_sum_absolute", "coefficient_sum_squares")


class HookCount:
    """Counts of a Llama made with plain forward hooks, row by row as given. Written from the formulas alone."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        self.layers = self.model.model.layers
        self.activations: list[torch.Tensor] = []
        self.coefficients: list[torch.Tensor] = []
        for layer in self.layers:
            layer.mlp.act_fn.register_forward_hook(lambda _m, _a, out: self.activations.append(out))
            layer.mlp.down_proj.register_forward_pre_hook(lambda _m, args: self.coefficients.append(args[0]))
        shape = (len(self.layers), self.model.config.intermediate_size)
        self.tokens = 0
        self.active = np.zeros(shape, np.int64)
        self.sums = {name: np.zeros(shape) for name in SUMS}
        self.scales = {name: np.zeros(shape) for name in SUMS}
        """The sums of the terms' magnitudes."""
        self.largest = np.full(shape, -np.inf)
        self.smallest = np.full(shape, np.inf)

    def row(self, ids: list[int]) -> np.ndarray:
        """Count one row; returns its coefficients [L, T, F]."""
        return next(self.rectangle([ids], len(ids)))

    def rectangle(self, rows: list[list[int]], width: int) -> Iterator[np.ndarray]:
        """Run rows together, right-padded with token 0 to `width`, and count them; the coefficients of each."""
        self.activations.clear()
        self.coefficients.clear()
        with torch.no_grad():
            self.model.model(torch.tensor([ids + [0] * (width - len(ids)) for ids in rows]), use_cache=False)
        for number, ids in enumerate(rows):
            yield self._count(
                len(ids),
                *(
                    torch.stack([layer[number, : len(ids)].double() for layer in read]).numpy()
                    for read in (self.activations, self.coefficients)
                ),
            )

    def _count(self, length: int, activation: np.ndarray, coefficient: np.ndarray) -> np.ndarray:
        self.tokens += length
        self.active += (activation > 0).sum(1)
        for name, terms in zip(SUMS, (activation, coefficient, np.abs(coefficient), coefficient**2), strict=True):
            self.sums[name] += terms.sum(1)
            self.scales[name] += np.abs(terms).sum(1)
        self.largest = np.maximum(self.largest, coefficient.max(1))
        self.smallest = np.minimum(self.smallest, coefficient.min(1))
        return coefficient


def corpus_order(folder: Path) -> list[Path]:
    """The design's order: by the SHA-256 of the relative POSIX path."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest())


def top(candidates: list[tuple[float, int, int]], k: int) -> list[tuple[float, int, int]]:
    return sorted([c for c in candidates if c[0] > 0], key=lambda c: -c[0])[:k]  # stable: corpus order on ties


def check_sums(arrays: store.Arrays, count: HookCount, relative: float) -> None:
    for name, expected in count.sums.items():
        bound = relative * (np.abs(expected) + count.scales["coefficient_sum"])
        assert (np.abs(arrays[name] - expected) <= bound).all(), name
    np.testing.assert_allclose(arrays["coefficient_max"], count.largest, rtol=10 * relative)
    np.testing.assert_allclose(arrays["coefficient_min"], count.smallest, rtol=10 * relative)
