"""Mixtures of experts: every expert's neurons, as plain hooks and each family's formula have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixtures import EXPERTS, MIXTURES, tiny_mixture
from numpy.testing import assert_array_equal
from reading_checks import TRIGGERS, batches, body, check_mixture, measured
from torch import nn

from neurotally.kernels.statistics import statistics_of
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.model.reading import read_neurons


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.slow
def test_every_expert_is_read_as_its_formula_has_it(name: str, tokenizer: Any, tmp_path: Path) -> None:
    check_mixture(name, tokenizer, tmp_path)


KINDS = ("mixtral", "gpt_oss", "llama4_text", "dbrx", "jetmoe", "longcat_flash", "nemotron_h", "minimax_m3_vl_text")
"""One of each way in which transformers computes experts."""


@pytest.mark.parametrize("name", KINDS)
def test_the_reader_leaves_a_mixtures_hidden_states_as_they_are(name: str) -> None:
    bare = tiny_mixture(name)
    ids_BT = torch.from_numpy(batches(100)[0].ids_BT)
    with torch.inference_mode():
        expected = body(bare, name)(input_ids=ids_BT, use_cache=False)[0]
    model = hook_model(bare, name)
    (batch, *_) = batches(100)
    assert torch.equal(NeuronReader(model, NeuronRecorder(model, TRIGGERS)).read(batch), expected)


def last_experts(model: HookedModel) -> ExpertsHookPoint:
    return [point for point in model.hook_points if isinstance(point, ExpertsHookPoint)][-1]


@pytest.mark.parametrize("name", KINDS)
def test_neurons_of_experts_are_switched_off_and_read(name: str) -> None:
    model = hook_model(tiny_mixture(name), name)
    point = last_experts(model)
    width, layer = point.expert_width, point.layer
    neurons = [point.first + expert * width + 5 for expert in range(EXPERTS)]
    ids = list(range(3, 60))
    asked = [(layer, neuron) for neuron in [*neurons, point.first + 7]]
    before = read_neurons(model, ids, asked).coefficient_Tn
    num_read = (~np.isnan(before[:, :-1])).sum()
    assert num_read == 2 * len(ids) or (name == "longcat_flash" and 0 < num_read < 2 * len(ids))  # to two experts
    assert np.nanmax(np.abs(before[:, :-1])) > 0
    after = {}
    for how in ("activation", "coefficient"):
        with switched_off(model, {layer: neurons}, how=how):
            masked = read_neurons(model, ids, asked).coefficient_Tn
            after[how] = model.run_body(torch.tensor([ids]))
        assert_array_equal(np.isnan(masked), np.isnan(before))
        assert (masked[:, :-1][~np.isnan(masked[:, :-1])] == 0).all()
        assert_array_equal(masked[:, -1], before[:, -1])
    with switched_off(model, {layer: neurons}, how="scale", value=2.0):
        assert_array_equal(read_neurons(model, ids, asked).coefficient_Tn[:, :-1], 2 * before[:, :-1])
    torch.testing.assert_close(after["activation"], after["coefficient"])
    # The last layer's neurons: what is gone is their value vectors, times coefficient and routing weight.
    with switched_off(model, {layer: neurons}):
        recorder = NeuronRecorder(model, 0)
        (batch, *_) = batches(100)
        NeuronReader(model, recorder).tally([batch])
        sums = recorder.result().sums
    assert (sums["coefficient_sum_absolute"][layer, neurons] == 0).all()
    assert (sums["active"][layer, neurons] == 0).all()
    others = [point.first + expert * width + 6 for expert in range(EXPERTS)]
    assert (sums["coefficient_sum_absolute"][layer, others] > 0).any()


VALUE_VECTORS: dict[str, Callable[[Any, int, int], Any]] = {
    "mixtral": lambda experts, expert, neuron: experts.down_proj[expert, :, neuron],
    "llama4_text": lambda experts, expert, neuron: experts.down_proj[expert, neuron],
    "dbrx": lambda experts, expert, neuron: experts.mlp.w2[expert * 24 + neuron],
    "jetmoe": lambda experts, expert, neuron: experts.output_linear.weight[expert, :, neuron],
    "longcat_flash": lambda experts, expert, neuron: experts.down_proj[expert, :, neuron],
}


@pytest.mark.parametrize("name", VALUE_VECTORS)
def test_a_masked_expert_neuron_is_as_if_its_value_vector_were_zero(name: str) -> None:
    model, other = (hook_model(tiny_mixture(name), name) for _ in range(2))
    point = last_experts(other)
    width, neurons = point.expert_width, [3, 30, 60, 125]
    with torch.no_grad():
        for neuron in neurons:
            VALUE_VECTORS[name](point.experts, neuron // width, neuron % width).zero_()
    ids_BT = torch.arange(3, 83).view(2, 40)
    before = model.run_body(ids_BT)
    with switched_off(model, {point.layer: [point.first + neuron for neuron in neurons]}):
        masked = model.run_body(ids_BT)
    torch.testing.assert_close(masked, other.run_body(ids_BT))
    assert not torch.equal(masked, before)


def test_experts_without_any_token() -> None:
    bare = tiny_mixture("longcat_flash")
    for layer in bare.model.layers:  # its further experts, which have no neurons, take all tokens
        layer.mlp.router.e_score_correction_bias[EXPERTS:] = 100.0
    model = hook_model(bare, "longcat_flash")
    result = measured(model, batches(100))
    is_expert = [network.experts is not None for network in model.networks for _ in range(network.sites)]
    assert (result.routed["site_tokens"][is_expert] == 0).all()
    assert (result.sums["active"][:, : last_experts(model).width] == 0).all()
    assert (result.sums["active"][:, last_experts(model).width :] > 0).any()


def test_a_mixtures_ordinary_networks_are_tallied_as_any_others() -> None:
    model = hook_model(tiny_mixture("deepseek_v3"), "deepseek_v3")
    for point, tally in NeuronRecorder(model, 0).tallies.items():  # the kernels take these by name
        assert tuple(tally) == tuple(one.name for one in statistics_of(isinstance(point, ExpertsHookPoint)))
    assert len({isinstance(point, ExpertsHookPoint) for point in model.hook_points}) == 2


def test_experts_in_another_order_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from neurotally.profiler.model import experts

    rows = experts._rows

    def reversed_tokens(*given: Any) -> Any:
        made = rows(*given)
        return made._replace(token_S=made.token_S.flip(0))

    monkeypatch.setattr(experts, "_rows", reversed_tokens)
    with pytest.raises(UnsupportedModelError, match="isn't what its matrix gives for its tokens"):
        hook_model(tiny_mixture("mixtral"), "mixtral")


def test_another_experts_implementation() -> None:
    bare = tiny_mixture("mixtral")
    bare.set_experts_implementation("batched_mm")
    by_row = measured(hook_model(bare, "mixtral"), batches(100))
    by_expert = measured(hook_model(tiny_mixture("mixtral"), "mixtral"), batches(100))
    assert_array_equal(by_row.routed["site_tokens"], by_expert.routed["site_tokens"])
    assert_array_equal(by_row.sums["active"], by_expert.sums["active"])
    bare = tiny_mixture("mixtral")
    bare.set_experts_implementation("eager")
    with pytest.raises(UnsupportedModelError, match=r"'eager'.*set_experts_implementation\('grouped_mm'\)"):
        hook_model(bare, "mixtral")


class UnreadableMLP(nn.Module):
    """A shared expert whose activation mixes neurons."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gate_proj(hidden_BTD).softmax(-1) * self.up_proj(hidden_BTD))


def test_a_shared_expert_that_cant_be_read_isnt_left_out() -> None:
    bare = tiny_mixture("deepseek_v3")
    layer = bare.model.layers[1].mlp
    layer.shared_experts = UnreadableMLP(layer.shared_experts)
    message = r"layer 1 \(layers.1.mlp.shared_experts\): UnreadableMLP seems to be a feed-forward network beside"
    with pytest.raises(UnsupportedModelError, match=message):
        hook_model(bare, "deepseek_v3")
