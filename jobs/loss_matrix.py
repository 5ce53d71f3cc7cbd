"""What switching off each corpus's neurons costs every corpus, beside random neurons of the same layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neurotally.analysis.masks import random_like
from neurotally.profiler.capture import switched_off
from neurotally.profiler.loss import document_losses
from neurotally.profiler.model import LoadedModel

NeuronSet = Sequence[tuple[int, int]]
"""(layer, neuron) pairs."""


@dataclass(frozen=True)
class LossMatrix:
    """Loss changes in nats a token: C corpora switched off (rows) by C corpora evaluated (columns)."""

    corpora: list[str]
    baseline_C: np.ndarray
    change_CC: np.ndarray
    random_DCC: np.ndarray
    """The same for D draws of as many random neurons in each layer."""

    @property
    def over_random_CC(self) -> np.ndarray:
        """Change beyond the mean of the random draws."""
        difference: np.ndarray = self.change_CC - self.random_DCC.mean(axis=0)
        return difference


def loss_matrix(
    model: LoadedModel,
    documents: Mapping[str, Sequence[Sequence[int]]],
    neurons: Mapping[str, NeuronSet],
    row_tokens: int,
    draws: int,
    seed: int = 0,
    on_evaluation: Callable[[], object] = lambda: None,
) -> LossMatrix:
    """Evaluate every corpus's tokenised documents with each corpus's neurons off, and with random ones off."""
    corpora = list(documents)

    def losses(off: NeuronSet) -> list[float]:
        row = []
        with switched_off(model, by_layer(off)):
            for corpus in corpora:
                row.append(document_losses(model, documents[corpus], row_tokens).mean)
                on_evaluation()
        return row

    baseline_C = np.array(losses(()))
    change_CC = np.array([losses(neurons[corpus]) for corpus in corpora]) - baseline_C
    random_DCC = np.array(
        [[losses(_random_like(neurons[name], model, seed + draw)) for name in corpora] for draw in range(draws)]
    )
    return LossMatrix(corpora, baseline_C, change_CC, random_DCC - baseline_C)


def count_evaluations(num_corpora: int, draws: int) -> int:
    """How often `loss_matrix` evaluates a corpus."""
    return num_corpora * (1 + num_corpora * (1 + draws))


def _random_like(neurons: NeuronSet, model: LoadedModel, seed: int) -> NeuronSet:
    drawn: NeuronSet = random_like(np.array(neurons, np.int64).reshape(-1, 2), model.facts.num_neurons, seed).tolist()
    return drawn


def by_layer(neurons: NeuronSet) -> dict[int, list[int]]:
    """Neuron numbers by layer."""
    layers: dict[int, list[int]] = {}
    for layer, neuron in neurons:
        layers.setdefault(layer, []).append(neuron)
    return layers
