"""A sweep over transformers' dense architectures: each is read as plain hooks on its own projections read it.

Tiny random models, saved and loaded as their users' are; documents longer than the context are among the text. The
rectangles are the same on both sides, so counts and extremes must agree to the bit.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCABULARY, PlainHooks, tiny_model
from numpy.testing import assert_array_equal

from neurotally.kernels.layer_tally import PAD, SPECIAL
from neurotally.profiler.corpus.batches import Batch, lay_out, rectangles
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.load import load_model
from neurotally.profiler.model.neurons import NeuronRecorder


def test_there_are_enough_of_them() -> None:
    assert len({family.family or name for name, family in FAMILIES.items()}) >= 60


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_dense_architecture_is_read_as_plain_hooks_read_it(name: str, tokenizer: Any, tmp_path: Path) -> None:
    family = FAMILIES[name]
    bare = tiny_model(name)
    bare.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu")
    assert model.facts.gated is family.gated
    assert model.facts.warnings == ()

    rng = np.random.default_rng(1)
    longest = min(model.facts.max_row_tokens, 400)
    lengths = (63, 90, 7, longest, longest + 1, 2 * longest + 30)
    documents = [(number, [0, *rng.integers(2, VOCABULARY, size=length - 1)]) for number, length in enumerate(lengths)]
    rows = lay_out(documents, frozenset({0}), "documents", longest)
    batches = list(rectangles(rows, 512, model.facts.attention_budget))
    recorder = NeuronRecorder(model, num_triggers=2)
    NeuronReader(model, recorder).tally(batches)
    result = recorder.result()
    hooks = PlainHooks(bare, name)
    expected = _sums(hooks, batches)

    assert model.facts.max_row_tokens == family.context
    num_layers = len(bare.get_submodule(family.layers))
    layers = [network.layer for network in model.facts.networks] or list(range(num_layers))
    assert list(hooks.run(torch.zeros(1, 8, dtype=torch.int64))) == layers
    assert expected["active"].shape == (len(layers), model.facts.num_neurons)
    assert result.sums["active"].shape == (num_layers, model.facts.num_neurons)
    assert_array_equal(result.sums["active"][layers], expected["active"])
    assert_array_equal(result.sums["active_special"][layers], expected["active_special"])
    assert_array_equal(result.sums["coefficient_max"][layers], expected["max"])
    assert_array_equal(result.sums["coefficient_min"][layers], expected["min"])
    for name, part, magnitude in (
        ("activation_sum", "activation", "activation_absolute"),
        ("coefficient_sum", "coefficient", "coefficient_absolute"),
        ("coefficient_sum_absolute", "coefficient_absolute", "coefficient_absolute"),
        ("coefficient_sum_squares", "squares", "squares"),
    ):
        assert (np.abs(result.sums[name][layers] - expected[part]) <= 2e-6 * expected[magnitude]).all(), name


def _sums(hooks: PlainHooks, batches: list[Batch]) -> dict[str, np.ndarray]:
    """Every statistic, [F] of each layer that has a network, summed up in float64 over the tokens of all rectangles."""
    tokens: dict[int, list[tuple[torch.Tensor, ...]]] = defaultdict(list)
    for batch in batches:
        kind_BT = torch.from_numpy(batch.kind_BT)
        for layer, seen in hooks.run(torch.from_numpy(batch.ids_BT)).items():
            here = kind_BT != PAD
            of_each = (seen.pre_BTF, seen.activation_BTF, seen.coefficient_BTF)
            tokens[layer].append((*(values[here] for values in of_each), kind_BT[here] == SPECIAL))
    layers = [[torch.cat(parts) for parts in zip(*layer, strict=True)] for layer in tokens.values()]

    def stacked(statistic: Any) -> np.ndarray:
        return np.stack([statistic(*layer).detach().numpy() for layer in layers])

    return {
        "active": stacked(lambda pre, a, c, special: (pre > 0).sum(0)),
        "active_special": stacked(lambda pre, a, c, special: (pre[special] > 0).sum(0)),
        "activation": stacked(lambda pre, a, c, special: a.sum(0)),
        "activation_absolute": stacked(lambda pre, a, c, special: a.abs().sum(0)),
        "coefficient": stacked(lambda pre, a, c, special: c.double().sum(0)),
        "coefficient_absolute": stacked(lambda pre, a, c, special: c.double().abs().sum(0)),
        "squares": stacked(lambda pre, a, c, special: c.double().square().sum(0)),
        "max": stacked(lambda pre, a, c, special: c.amax(0)),
        "min": stacked(lambda pre, a, c, special: c.amin(0)),
    }
