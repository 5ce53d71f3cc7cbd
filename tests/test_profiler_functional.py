"""Networks whose activation is a function: read as if it were a module, and layers that have no network."""

import copy
import math
from typing import Any

import pytest
import torch
from families import tiny_model
from numpy.testing import assert_array_equal
from reference import unit_arrays
from test_profiler_interventions import VALUES, tallied
from test_profiler_sites import tiny
from torch import Tensor, nn
from torch.nn import functional

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.functional import FunctionHookPoint
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.interventions import WAYS, switched_off
from neurotally.profiler.model.load import LoadedModel, prepare_model
from neurotally.profiler.model.reading import read_neurons

NEURONS = {0: [3, 40, 95], 1: [0, 17]}
IDS_BT = torch.randint(2, 600, (2, 64), generator=torch.Generator().manual_seed(3))


class FunctionalGated(nn.Module):
    """A Llama's network with a function for its activation."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.w1, self.w3, self.w2 = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class FunctionalPlain(nn.Module):
    """Phi's network, likewise."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))
        return self.fc2(0.5 * x * (1.0 + torch.tanh(inner)))


def both(family: str, tokenizer: Any) -> tuple[LoadedModel, LoadedModel]:
    """The same weights twice: with activation modules, as the family has them, and with functions."""
    models = [tiny(family) for _ in range(2)]
    make = {"llama": FunctionalGated, "phi": FunctionalPlain}[family]
    for layer in models[1].model.layers:
        layer.mlp = make(layer.mlp)
    with_modules, with_functions = (prepare_model(model, tokenizer, family, None, "float32") for model in models)
    assert {type(point) for point in with_modules.hook_points} == {HookPoint}
    assert {type(point) for point in with_functions.hook_points} == {FunctionHookPoint}
    return with_modules, with_functions


@pytest.mark.parametrize("family", ["llama", "phi"])
@pytest.mark.parametrize("how", [None, *WAYS])
def test_a_function_is_read_and_masked_as_a_module_is(family: str, how: str | None, tokenizer: Any) -> None:
    results, states = [], []
    for model in both(family, tokenizer):
        if how is None:
            results.append(tallied(model))
            states.append(model.run_body(IDS_BT))
            continue
        with switched_off(model, NEURONS, how=how, value=VALUES.get(how)):
            results.append(tallied(model))
            states.append(model.run_body(IDS_BT))
    for name, array in unit_arrays(results[0]).items():
        assert_array_equal(unit_arrays(results[1])[name], array, err_msg=name)
    assert torch.equal(*states)


def test_masks_and_readers_compose_and_leave_the_model_as_it_was(tokenizer: Any) -> None:
    _, model = both("llama", tokenizer)
    before = model.run_body(IDS_BT)
    ids = IDS_BT[0].tolist()
    with switched_off(model, {0: [3]}, how="scale", value=2.0), switched_off(model, {0: [3]}, how="scale", value=3.0):
        six_times = read_neurons(model, ids, [(0, 3), (0, 4)]).coefficient_Tn
        assert not torch.equal(model.run_body(IDS_BT), before)
    plain = read_neurons(model, ids, [(0, 3), (0, 4)]).coefficient_Tn
    torch.testing.assert_close(torch.from_numpy(six_times[:, 0]), torch.from_numpy(6 * plain[:, 0]))
    assert_array_equal(six_times[:, 1], plain[:, 1])
    assert torch.equal(model.run_body(IDS_BT), before)


def test_hook_points_are_found_again_and_copied_with_their_model(tokenizer: Any) -> None:
    _, model = both("llama", tokenizer)
    assert hook_model(model.model, "again").hook_points == model.hook_points
    twin = hook_model(copy.deepcopy(model.model), "copy")
    assert not set(twin.hook_points) & set(model.hook_points)
    before = model.run_body(IDS_BT)
    with switched_off(twin, NEURONS):
        assert torch.equal(model.run_body(IDS_BT), before)
        assert not torch.equal(twin.run_body(IDS_BT), before)


@pytest.mark.parametrize("name", ["lfm2", "rwkv", "zamba", "zamba2", "nemotron_h, dense"])
@pytest.mark.slow
def test_a_masked_neuron_is_as_if_its_value_vector_were_zero(name: str) -> None:
    model, other = (hook_model(tiny_model(name), name) for _ in range(2))
    point = other.hook_points[-1]
    before = model.run_body(IDS_BT)
    with torch.no_grad():
        point.down.weight[:, [3, 30]] = 0
    with switched_off(model, {at.layer: [3, 30] for at in model.hook_points if _are_tied(model, at)}):
        torch.testing.assert_close(model.run_body(IDS_BT), other.run_body(IDS_BT))
    assert torch.equal(model.run_body(IDS_BT), before)


def _are_tied(model: Any, point: HookPoint) -> bool:
    """Whether a network has the weights of the last one."""
    last: Any = model.hook_points[-1].down
    return point.down.weight is last.weight


def test_before_a_norm_a_neuron_is_masked_as_its_coefficient_would_be() -> None:
    model, bare = hook_model(tiny_model("bitnet"), "bitnet"), tiny_model("bitnet")

    def without(_norm: nn.Module, args: tuple) -> tuple:
        changed = args[0].clone()
        changed[..., [3, 30]] = 0
        return (changed,)

    bare.model.layers[1].mlp.ffn_sub_norm.register_forward_pre_hook(without)
    with switched_off(model, {1: [3, 30]}), torch.inference_mode():
        assert torch.equal(model.run_body(IDS_BT), bare.model(input_ids=IDS_BT, use_cache=False)[0])


def test_a_layer_without_a_network_has_no_neurons() -> None:
    model = hook_model(tiny_model("nemotron_h, dense"), "hybrid")
    assert [network.layer for network in model.networks] == [1, 3]
    with pytest.raises(InputError, match="layer 0 has no neurons"), switched_off(model, {0: [0]}):
        pass
    with pytest.raises(InputError, match="layer 2 has no neurons"):
        read_neurons(model, [3, 4, 5], [(2, 0)])


class Unreadable(nn.Module):
    """A gated network with an activation that mixes neurons."""

    def __init__(self, mlp: Any):
        super().__init__()
        self.w1, self.w3, self.w2 = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(functional.softmax(self.w1(x), dim=-1) * self.w3(x))


def test_a_network_that_cant_be_read_isnt_taken_for_none(tokenizer: Any) -> None:
    model = tiny("llama")
    model.model.layers[1].mlp = Unreadable(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 \(layers.1\): .*found none"):
        prepare_model(model, tokenizer, "edited", None, "float32")
