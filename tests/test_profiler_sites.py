"""Hook points of every supported family: built tiny at random, read as plain hooks read them, to the bit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import TwoNetworks
from reference import unit_arrays
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from neurotally.kernels.layer_tally import PAD
from neurotally.profiler.corpus.batches import lay_out, padded_batches
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.load import LoadedModel, prepare_model
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.neuron_sums import UnitNeurons

SMALL = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96, "vocab_size": 600, "head_dim": 16, "n_embd": 64, "n_layer": 2, "n_head": 4,
    "ffn_dim": 96, "ffn_hidden_size": 96, "word_embed_proj_dim": 64, "rotary_dim": 8, "n_inner": 96,
    "max_position_embeddings": 128, "n_positions": 128, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

# family: (gated, where the activation is, what reads the coefficient), the last two as the model's own code has them
FAMILIES = {
    "llama": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "mistral": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "qwen2": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "qwen3": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "gemma2": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "gemma3_text": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "gemma3": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
    "phi": (False, "layers.{}.mlp.activation_fn", "layers.{}.mlp.fc2"),
    "phi3": (True, "layers.{}.mlp.activation_fn", "layers.{}.mlp.down_proj"),
    "gpt2": (False, "h.{}.mlp.act", "h.{}.mlp.c_proj"),
    "gpt_neox": (False, "layers.{}.mlp.act", "layers.{}.mlp.dense_4h_to_h"),
    "codegen": (False, "h.{}.mlp.act", "h.{}.mlp.fc_out"),
    "gptj": (False, "h.{}.mlp.act", "h.{}.mlp.fc_out"),
    "opt": (False, "layers.{}.activation_fn", "layers.{}.fc2"),
    "bloom": (False, "h.{}.mlp.gelu_impl", "h.{}.mlp.dense_4h_to_h"),
    "falcon": (False, "h.{}.mlp.act", "h.{}.mlp.dense_4h_to_h"),
    "starcoder2": (False, "layers.{}.mlp.act", "layers.{}.mlp.c_proj"),
    "gpt_bigcode": (False, "h.{}.mlp.act", "h.{}.mlp.c_proj"),
    "olmo2": (True, "layers.{}.mlp.act_fn", "layers.{}.mlp.down_proj"),
}


def tiny(family: str) -> Any:
    config = AutoConfig.for_model(family)
    text = config.get_text_config()
    for key, value in SMALL.items():
        if hasattr(text, key) and not isinstance(getattr(type(text), key, None), property):
            setattr(text, key, value)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:2]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def loaded(family: str, tokenizer: Any) -> LoadedModel:
    return prepare_model(tiny(family), tokenizer, family, None, "float32")


class HookCounts:
    """What plain forward hooks see of one document at a time, in the words of the formulas."""

    def __init__(self, decoder: nn.Module, act_name: str, down_name: str, num_layers: int):
        self.pre: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.activation: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self.coefficient: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        for layer in range(num_layers):
            decoder.get_submodule(act_name.format(layer)).register_forward_hook(self._on_act(layer))
            decoder.get_submodule(down_name.format(layer)).register_forward_pre_hook(self._on_down(layer))

    def _on_act(self, layer: int) -> Any:
        def hook(_module: Any, args: Any, output: Any) -> None:
            self.pre[layer].append(args[0].reshape(-1, args[0].shape[-1]))
            self.activation[layer].append(output.reshape(-1, output.shape[-1]))

        return hook

    def _on_down(self, layer: int) -> Any:
        def hook(_module: Any, args: Any) -> None:
            self.coefficient[layer].append(args[0].reshape(-1, args[0].shape[-1]))

        return hook


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_nothing_is_lost_by_ending_at_the_last_hook_point(family: str, tokenizer: Any) -> None:
    model = loaded(family, tokenizer)
    rng = np.random.default_rng(1)
    documents = [(n, rng.integers(2, 600, size=length).tolist()) for n, length in enumerate((63, 90, 7, 120))]
    batches = list(padded_batches(lay_out(documents, frozenset(), "documents", 128), 256))

    def result(run: Callable[[NeuronReader], object]) -> UnitNeurons:
        recorder = NeuronRecorder(model, num_triggers=2)
        run(NeuronReader(model, recorder))
        return recorder.result()

    to_the_end = result(lambda reader: [reader.read(batch) for batch in batches])
    ended = result(lambda reader: reader.tally(batches))
    assert len(batches) > 1
    for name, array in unit_arrays(to_the_end).items():
        np.testing.assert_array_equal(unit_arrays(ended)[name], array, err_msg=name)


def test_nothing_runs_after_the_last_hook_point(tokenizer: Any) -> None:
    model = loaded("llama", tokenizer)
    ran: list[str] = []
    for name, module in model.body.named_modules():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    recorder = NeuronRecorder(model, num_triggers=0)
    (batch,) = padded_batches(lay_out([(0, [5, 6, 7])], frozenset(), "documents", 128), 256)
    NeuronReader(model, recorder).tally([batch])
    assert {"layers.0.mlp.down_proj", "layers.1.mlp.up_proj"} <= set(ran)
    assert not {"layers.1.mlp.down_proj", "norm"} & set(ran)


@pytest.mark.parametrize(
    ("family", "keys", "up"),
    [
        ("llama", ("gate_proj", 0), ("up_proj", 0)),
        ("phi3", ("gate_up_proj", 0), ("gate_up_proj", 96)),
        ("gpt_neox", ("dense_h_to_4h", 0), None),
    ],
)
def test_a_hook_point_knows_the_parts_of_its_network(
    family: str, keys: tuple[str, int], up: tuple[str, int] | None, tokenizer: Any
) -> None:
    model = loaded(family, tokenizer)
    names = {module: name.rpartition(".")[2] for name, module in model.body.named_modules()}
    for layer, point in enumerate(model.hook_points):
        assert point.keys is not None
        assert (names[point.keys[0]], point.keys[1]) == keys
        assert (None if point.up is None else (names[point.up[0]], point.up[1])) == up
        assert (point.layer, point.width, point.device, point.num_experts) == (layer, 96, torch.device("cpu"), None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_a_family_is_read_as_plain_hooks_read_it(family: str, tokenizer: Any) -> None:
    gated, act_name, down_name = FAMILIES[family]
    rng = np.random.default_rng(1)
    documents = [(n, [0, *rng.integers(2, 600, size=length).tolist()]) for n, length in enumerate((63, 90, 7, 120))]

    bare = tiny(family)
    hooks = HookCounts(bare.get_decoder(), act_name, down_name, 2)
    with torch.no_grad():
        hidden = [bare.get_decoder()(torch.tensor([ids]), use_cache=False)[0][0] for _, ids in documents]

    model = loaded(family, tokenizer)
    assert model.facts.gated is gated
    recorder = NeuronRecorder(model, num_triggers=2)
    reader = NeuronReader(model, recorder)
    for batch in padded_batches(lay_out(documents, frozenset({0}), "documents", 128), 256):
        captured_BTD = reader.read(batch)
        assert torch.equal(captured_BTD, bare.get_decoder()(torch.from_numpy(batch.ids_BT), use_cache=False)[0])
        for row in range(len(batch.ids_BT)):
            length = int((batch.kind_BT[row] != PAD).sum())
            expected = hidden[batch.document_BT[row, 0]]
            torch.testing.assert_close(captured_BTD[row, :length], expected, rtol=1e-4, atol=1e-5)

    result = recorder.result()
    for layer in range(2):
        # The batch of `equal to the bit` ran through the hooked model too: keep the lone documents only.
        pre, activation, coefficient = (
            torch.cat(kept[layer][:4]).double() for kept in (hooks.pre, hooks.activation, hooks.coefficient)
        )
        assert pre.shape[1] == model.facts.num_neurons
        near_zero = (pre.abs() < 1e-5).sum(0).numpy()
        assert (np.abs(result.sums["active"][layer].astype(int) - (pre > 0).sum(0).numpy()) <= near_zero).all()
        starts = np.cumsum([0, *[len(ids) for _, ids in documents[:-1]]])
        assert (np.abs(result.sums["active_special"][layer].astype(int) - (pre[starts] > 0).sum(0).numpy()) <= 1).all()
        for got, values in (
            (result.sums["activation_sum"], activation),
            (result.sums["coefficient_sum"], coefficient),
            (result.sums["coefficient_sum_absolute"], coefficient.abs()),
            (result.sums["coefficient_sum_squares"], coefficient.square()),
        ):
            np.testing.assert_allclose(got[layer], values.sum(0), atol=1e-5 * float(values.abs().sum(0).max()))
        np.testing.assert_allclose(result.sums["coefficient_max"][layer], coefficient.amax(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(result.sums["coefficient_min"][layer], coefficient.amin(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "codegen", "opt", "bloom"])
def test_switching_neurons_off_equals_zeroed_value_vectors(family: str, tokenizer: Any) -> None:
    _, _, down_name = FAMILIES[family]
    ids_BT = torch.randint(2, 600, (2, 64), generator=torch.Generator().manual_seed(3))
    edited = tiny(family)
    neurons = {0: [1, 5], 1: [90]}
    with torch.no_grad():
        for layer, indices in neurons.items():
            down = edited.get_decoder().get_submodule(down_name.format(layer))
            weight = down.weight if isinstance(down, nn.Linear) else down.weight.T  # Conv1D keeps it transposed
            weight[:, indices] = 0
        expected = edited.get_decoder()(ids_BT, use_cache=False)[0]
    model = loaded(family, tokenizer)
    before = model.run_body(ids_BT)
    with switched_off(model, neurons):
        masked = model.run_body(ids_BT)
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(masked, before)
    assert torch.equal(model.run_body(ids_BT), before)


class OtherExperts(nn.Module):
    """Experts of a kind that nobody knows."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.one = mlp

    def forward(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        return self.one(hidden_BTD)


def test_experts_of_an_unknown_kind_are_refused_by_name(tokenizer: Any) -> None:
    model = tiny("llama")
    model.get_decoder().layers[1].mlp = OtherExperts(model.get_decoder().layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 \(layers.1\).mlp: .*mixture of experts"):
        prepare_model(model, tokenizer, "edited", None, "float32")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda layer: setattr(layer.mlp, "act_fn", nn.Identity()), r"layer 1 .*found none"),
        (
            lambda layer: setattr(layer, "mlp", TwoNetworks(layer.mlp)),
            r"layer 1: expected one feed-forward network, found 2 among .* layers.1.mlp.one.act_fn, layers.1.mlp.other",
        ),
    ],
    ids=["no activation module", "two networks"],
)
def test_other_networks_are_refused_by_layer(tokenizer: Any, edit: Any, message: str) -> None:
    model = tiny("llama")
    edit(model.get_decoder().layers[1])
    with pytest.raises(UnsupportedModelError, match=message):
        prepare_model(model, tokenizer, "edited", None, "float32")


def test_an_activation_that_is_no_networks_is_passed_over(tokenizer: Any) -> None:
    model = tiny("llama")
    model.get_decoder().layers[1].mlp.extra = nn.GELU()
    points = prepare_model(model, tokenizer, "edited", None, "float32").hook_points
    assert [point.name for point in points] == ["layers.0.mlp.act_fn", "layers.1.mlp.act_fn"]


class _GateUsedTwice(nn.Module):
    """down((act(gate) · up) + act(gate)): not a gated FFN as we know it."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.act_fn, self.gate_proj, self.up_proj, self.down_proj = (
            mlp.act_fn,
            mlp.gate_proj,
            mlp.up_proj,
            mlp.down_proj,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activation = self.act_fn(self.gate_proj(x))
        return self.down_proj(activation * self.up_proj(x) + activation)


def test_another_use_of_the_activation_is_refused_by_layer(tokenizer: Any) -> None:
    model = tiny("llama")
    model.get_decoder().layers[1].mlp = _GateUsedTwice(model.get_decoder().layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1 "):
        prepare_model(model, tokenizer, "edited", None, "float32")


def test_a_tokenizer_that_does_not_match_is_refused() -> None:
    class TooLarge:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 600}

    with pytest.raises(InputError, match="ids up to 600, the model's vocabulary has 600"):
        prepare_model(tiny("llama"), TooLarge(), "llama", None, "float32")
