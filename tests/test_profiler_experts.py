"""Mixtures of experts: every expert's neurons, as plain hooks and each family's formula have them."""

import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import VOCABULARY
from mixtures import EXPERTS, MIXTURES, MixtureHooks, Site, tiny_mixture
from numpy.testing import assert_allclose, assert_array_equal

from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN
from neurotally.kernels.statistics import statistics_of
from neurotally.profiler.corpus.batches import Batch, lay_out, rectangles
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.load import load_model
from neurotally.profiler.model.neurons import NeuronRecorder, UnitNeurons
from neurotally.profiler.model.reading import read_neurons
from neurotally.profiler.networks import site_arrays

TRIGGERS = 3
TOKENS = ("site_tokens", "site_special_tokens")


def batches(longest: int, seed: int = 1) -> list[Batch]:
    """Rectangles with pads and special tokens, a document of several rows among them.

    No token comes twice: in a first layer that reads embeddings alone its coefficients would tie.
    """
    token_N = 2 + np.random.default_rng(seed).permutation(VOCABULARY - 2)
    ends = np.cumsum([62, 89, 6, 39, longest + 29])
    documents = [(number, [0, *ids_T]) for number, ids_T in enumerate(np.split(token_N[: ends[-1]], ends[:-1]))]
    return list(rectangles(lay_out(documents, frozenset({0}), "documents", longest), 256))


def body(bare: Any, name: str) -> Any:
    """What gives the last hidden states."""
    return bare.get_submodule(MIXTURES[name].layers.rpartition(".")[0])


class Expected:
    """The sums and triggers of one site, from what plain hooks saw."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = defaultdict(float)
        self.scale: Any = 0.0
        self.max: Any = -np.inf
        self.min: Any = np.inf
        self.best: dict[int, dict[int, tuple[float, int]]] = defaultdict(dict)
        """By neuron, by document: its largest coefficient, and the first position of it."""

    def add(self, site: Site, batch: Batch) -> None:
        kind_N, document_N, position_N = (
            table_BT.ravel()[site.cell_N.numpy()] for table_BT in (batch.kind_BT, batch.document_BT, batch.position_BT)
        )
        counted_N = kind_N != PAD
        weight_N, output_weight_N1 = site.weight_N.double().numpy(), site.output_weight_N.double().numpy()[:, None]
        pre_NF, activation_NF, c_NF = (x.numpy() for x in (site.pre_NF, site.activation_NF, site.coefficient_NF))
        self.sums["site_tokens"] += counted_N.sum()
        self.sums["site_special_tokens"] += (kind_N == SPECIAL).sum()
        self.sums["site_weight"] += weight_N[counted_N].sum()
        self.sums["active"] += (pre_NF[counted_N] > 0).sum(0)
        self.sums["active_special"] += (pre_NF[kind_N == SPECIAL] > 0).sum(0)
        for name, terms_NF in (
            ("activation_sum", activation_NF), ("coefficient_sum", c_NF), ("coefficient_sum_absolute", np.abs(c_NF)),
            ("coefficient_sum_squares", c_NF**2), ("weighted_coefficient_sum", output_weight_N1 * c_NF),
        ):  # fmt: skip
            self.sums[name] += terms_NF[counted_N].sum(0)
        self.scale += np.abs(activation_NF[counted_N]).sum(0) + np.abs(c_NF[counted_N]).sum(0)
        if counted_N.any():
            self.max = np.maximum(self.max, c_NF[counted_N].max(0))
            self.min = np.minimum(self.min, c_NF[counted_N].min(0))
        for n in np.flatnonzero(kind_N == TOKEN):
            document, position = int(document_N[n]), int(position_N[n])
            for neuron, value in enumerate(c_NF[n]):
                held = self.best[neuron].get(document)
                if value > 0 and (held is None or (-value, position) < (-held[0], held[1])):
                    self.best[neuron][document] = (float(value), position)

    def rounding(self) -> Any:
        """What fp32 makes of the sums: of their terms, and of the products of 64 terms that these come from."""
        return 2e-6 * (self.scale + self.scale**2) + 1e-6 * self.sums["site_tokens"]

    def triggers(self, neuron: int) -> list[tuple[float, int, int]]:
        """(value, document, position), the best first."""
        found = [(value, document, position) for document, (value, position) in self.best[neuron].items()]
        return sorted(found, key=lambda entry: (-entry[0], *entry[1:]))[:TRIGGERS]


def measured(model: Any, to_read: list[Batch]) -> UnitNeurons:
    recorder = NeuronRecorder(model, TRIGGERS)
    NeuronReader(model, recorder).tally(to_read)
    return recorder.result()


def hold_against(result: UnitNeurons, sites: dict[str, np.ndarray], expected: dict[tuple[int, str, int], Expected],
                 num_neurons: int) -> None:  # fmt: skip
    """Every site of the model is expected, and has what is expected."""
    starts = np.concatenate([[0], np.cumsum(result.triggers.count_F)]).astype(int)
    seen = set()
    for row in range(len(sites["site_layer"])):
        layer, first, width = (int(sites[name][row]) for name in ("site_layer", "site_first", "site_neurons"))
        network = str(sites["site_name"][row]).split(".", 2)[2]
        network = re.sub(r"\.(act_fn|activation|activation_fn|w2|down_proj)$", "", network)
        key = (layer, network, int(sites["site_expert"][row]))
        seen.add(key)
        of = expected[key]
        cells = (layer, slice(first, first + width))
        for name in TOKENS:
            assert result.routed[name][row] == of.sums[name]
        assert result.routed["site_weight"][row] == pytest.approx(of.sums["site_weight"], rel=1e-6)
        for name in ("active", "active_special"):
            assert_array_equal(result.sums[name][cells], of.sums[name])
        for name in ("activation_sum", "coefficient_sum", "coefficient_sum_absolute", "coefficient_sum_squares"):
            assert (np.abs(result.sums[name][cells] - of.sums[name]) <= of.rounding()).all(), name
        if key[2] >= 0:
            off = np.abs(result.sums["weighted_coefficient_sum"][cells] - of.sums["weighted_coefficient_sum"])
            assert (off <= of.rounding()).all()
        assert_allclose(result.sums["coefficient_max"][cells], np.broadcast_to(of.max, width), rtol=1e-4, atol=1e-6)
        assert_allclose(result.sums["coefficient_min"][cells], np.broadcast_to(of.min, width), rtol=1e-4, atol=1e-6)
        for neuron in range(width):
            at = layer * num_neurons + first + neuron
            part = slice(starts[at], starts[at + 1])
            triggers = of.triggers(neuron)
            assert result.triggers.document_N[part].tolist() == [document for _, document, _ in triggers]
            assert result.triggers.position_N[part].tolist() == [position for *_, position in triggers]
            assert_allclose(result.triggers.value_N[part], [value for value, *_ in triggers], rtol=1e-4, atol=1e-6)
    assert seen == set(expected)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.slow
def test_every_expert_is_read_as_its_formula_has_it(name: str, tokenizer: Any, tmp_path: Path) -> None:
    bare = tiny_mixture(name)
    bare.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu")
    to_read = batches(100)
    result = measured(model, to_read)
    hooks, expected = MixtureHooks(bare, name), defaultdict(Expected)
    for batch in to_read:
        for site in hooks.run(torch.from_numpy(batch.ids_BT)):
            expected[site.layer, site.name, site.expert].add(site, batch)
    hold_against(result, site_arrays(model.facts.networks), expected, model.facts.num_neurons)
    ids_BT = torch.from_numpy(to_read[0].ids_BT)
    with torch.inference_mode():
        assert torch.equal(model.run_body(ids_BT), body(bare, name)(input_ids=ids_BT, use_cache=False)[0])


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
