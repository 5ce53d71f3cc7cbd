"""Neurons switched off and read at the same time: the statistics are those of the masked model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from reference import unit_arrays
from test_profiler_loss import KEYS, NEURONS, edit, with_biases
from test_profiler_sites import FAMILIES
from torch import Tensor

from neurotally.kernels.layer_tally import PAD, SPECIAL
from neurotally.profiler.corpus.batches import Batch, lay_out, padded_batches
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.interventions import WAYS, switched_off
from neurotally.profiler.model.load import LoadedModel, prepare_model
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.neuron_sums import UnitNeurons

MEAN_LF = np.random.default_rng(1).normal(size=(2, 96))
VALUES = {"mean": MEAN_LF, "set": 1.5, "scale": -2.0}


def batches() -> list[Batch]:
    rng = np.random.default_rng(2)
    documents = [(n, [0, *rng.integers(2, 600, size=length).tolist()]) for n, length in enumerate((63, 90, 7, 120, 31))]
    return list(padded_batches(lay_out(documents, frozenset({0}), "documents", 128), 256))


def tallied(model: LoadedModel) -> UnitNeurons:
    recorder = NeuronRecorder(model, num_triggers=2)
    NeuronReader(model, recorder).tally(batches())
    return recorder.result()


class Hooked:
    """A bare model, edited as `how` says, whose activations and coefficients plain hooks keep."""

    def __init__(self, family: str, how: str):
        model = with_biases(family)
        _, act_name, down_name = FAMILIES[family]
        self.activation: list[list[Tensor]] = [[], []]
        self.coefficient: list[list[Tensor]] = [[], []]
        decoder = model.get_decoder()
        for layer in range(2):
            act, down = (decoder.get_submodule(name.format(layer)) for name in (act_name, down_name))
            if how == "activation":
                act.register_forward_hook(self._zeroing(NEURONS[layer]))
            act.register_forward_hook(lambda _m, _a, out, layer=layer: self.activation[layer].append(out))
            if how in ("coefficient", "set", "scale"):
                down.register_forward_pre_hook(
                    lambda _m, args, layer=layer: (self._changed(args[0], NEURONS[layer], how),)
                )
        if how in ("weights", "weights-no-bias", "mean"):
            edit(model, family, how, MEAN_LF)
        for layer in range(2):
            down = decoder.get_submodule(down_name.format(layer))
            down.register_forward_pre_hook(lambda _m, args, layer=layer: self.coefficient[layer].append(args[0]))
        self.batches = batches()
        with torch.no_grad():
            for batch in self.batches:
                decoder(torch.from_numpy(batch.ids_BT), use_cache=False)

    def counted(self, kept: list[Tensor], special: bool = False) -> Tensor:
        """float64 [N, F]: of the counted tokens (or the special ones)."""
        rows = []
        for batch, values in zip(self.batches, kept, strict=True):
            kind_BT = torch.from_numpy(batch.kind_BT)
            rows.append(values.view(*kind_BT.shape, -1)[kind_BT == SPECIAL if special else kind_BT != PAD])
        return torch.cat(rows).double()

    @staticmethod
    def _changed(values: Tensor, indices: list[int], how: str) -> Tensor:
        values = values.clone()
        values[..., indices] = -2 * values[..., indices] if how == "scale" else 1.5 if how == "set" else 0.0
        return values

    def _zeroing(self, indices: list[int]) -> Callable[..., Tensor]:
        return lambda _module, _args, output: self._changed(output, indices, "activation")


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("family", KEYS)
@pytest.mark.slow
def test_a_reader_reads_the_masked_model(family: str, how: str, tokenizer: Any) -> None:
    model = prepare_model(with_biases(family), tokenizer, family, None, "float32")
    bare = tallied(model)
    with switched_off(model, NEURONS, how, VALUES.get(how)):
        masked = tallied(model)
    hooked = Hooked(family, how)
    for layer, neurons in NEURONS.items():
        activation_NF = hooked.counted(hooked.activation[layer])
        coefficient_NF = hooked.counted(hooked.coefficient[layer])
        scale_F = np.maximum(1.0, coefficient_NF.abs().sum(0).numpy())
        # A neuron is active where what it computes is positive; these models' activations never underflow.
        near_zero_F = ((activation_NF.abs() < 1e-5) & (activation_NF != 0)).sum(0).numpy()
        active_F = (activation_NF > 0).sum(0).numpy()
        assert (np.abs(masked.sums["active"][layer].astype(int) - active_F) <= near_zero_F).all()
        special_F = (hooked.counted(hooked.activation[layer], special=True) > 0).sum(0).numpy()
        np.testing.assert_array_equal(masked.sums["active_special"][layer][neurons], special_F[neurons])
        for got, expected in (
            (masked.sums["activation_sum"], activation_NF.sum(0)),
            (masked.sums["coefficient_sum"], coefficient_NF.sum(0)),
            (masked.sums["coefficient_sum_absolute"], coefficient_NF.abs().sum(0)),
            (masked.sums["coefficient_sum_squares"], coefficient_NF.square().sum(0)),
        ):
            assert (np.abs(got[layer] - expected.numpy()) <= 1e-4 * scale_F).all()
        np.testing.assert_allclose(masked.sums["coefficient_max"][layer], coefficient_NF.amax(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(masked.sums["coefficient_min"][layer], coefficient_NF.amin(0), rtol=1e-4, atol=1e-5)
    if how in ("activation", "coefficient"):  # a coefficient of 0 triggers nothing
        off = [layer * 96 + neuron for layer, neurons in NEURONS.items() for neuron in neurons]
        assert bare.triggers.count_F[off].any()
        assert not masked.triggers.count_F[off].any()
    # Neurons of the first layer that aren't switched off compute what they did; those of the second read other input.
    others = np.setdiff1d(np.arange(96), NEURONS[0])
    np.testing.assert_array_equal(masked.sums["coefficient_sum"][0, others], bare.sums["coefficient_sum"][0, others])
    assert np.abs(masked.sums["coefficient_sum"][1] - bare.sums["coefficient_sum"][1]).max() > 1e-3
    for name, array in unit_arrays(tallied(model)).items():
        np.testing.assert_array_equal(array, unit_arrays(bare)[name], err_msg=name)


def test_triggers_are_those_of_the_masked_model(tokenizer: Any) -> None:
    model = prepare_model(with_biases("llama"), tokenizer, "llama", None, "float32")
    with switched_off(model, NEURONS, "mean", MEAN_LF):
        masked = tallied(model)
    for layer, neurons in NEURONS.items():
        for neuron in neurons:
            number = layer * 96 + neuron
            first = int(masked.triggers.count_F[:number].sum())
            mine = slice(first, first + int(masked.triggers.count_F[number]))
            value = np.float32(MEAN_LF[layer, neuron])
            # The same value at every token: the first ones, after the special token, of the first documents.
            expected = ([value] * 2, [0, 1], [1, 1]) if value > 0 else ([], [], [])
            got = (masked.triggers.value_N[mine], masked.triggers.document_N[mine], masked.triggers.position_N[mine])
            for of, wanted in zip(got, expected, strict=True):
                np.testing.assert_array_equal(of, wanted)


def test_masks_within_masks_add_up_and_are_taken_off_one_by_one(tokenizer: Any) -> None:
    model = prepare_model(with_biases("llama"), tokenizer, "llama", None, "float32")
    ids_BT = torch.randint(2, 600, (2, 64), generator=torch.Generator().manual_seed(3))
    first, second = {0: [1, 5]}, {0: [7], 1: [90]}

    def masked(*masks: dict[int, list[int]]) -> Tensor:
        neurons = {layer: [one for mask in masks for one in mask.get(layer, [])] for layer in (0, 1)}
        with switched_off(model, neurons):
            return model.run_body(ids_BT)

    bare, one, both = model.run_body(ids_BT), masked(first), masked(first, second)
    with switched_off(model, first):
        with switched_off(model, second):
            assert torch.equal(model.run_body(ids_BT), both)
        assert torch.equal(model.run_body(ids_BT), one)
        with pytest.raises(ZeroDivisionError), switched_off(model, second):
            raise ZeroDivisionError
        assert torch.equal(model.run_body(ids_BT), one)
    assert torch.equal(model.run_body(ids_BT), bare)
    assert not torch.equal(one, both)


def test_of_two_masks_of_a_neuron_the_later_holds(tokenizer: Any) -> None:
    model = prepare_model(with_biases("gpt_neox"), tokenizer, "gpt_neox", None, "float32")
    ids_BT = torch.randint(2, 600, (2, 64), generator=torch.Generator().manual_seed(3))
    with switched_off(model, NEURONS, "mean", MEAN_LF):
        expected = model.run_body(ids_BT)
    with switched_off(model, NEURONS, "coefficient"), switched_off(model, NEURONS, "mean", MEAN_LF):
        assert torch.equal(model.run_body(ids_BT), expected)
