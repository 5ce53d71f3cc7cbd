"""Hold a small model of a family, saved and loaded as its users' are, against what its plain hooks see.

`check_dense` and `check_mixture` raise an AssertionError where what is read isn't what the formulas say.
"""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, VOCABULARY, PlainHooks, tiny_model
from mixtures import MIXTURES, MixtureHooks, Site, tiny_mixture
from numpy.testing import assert_array_equal
from reference import SUMS

from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN
from neurotally.profiler.corpus.batches import Batch, lay_out, padded_batches
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.load import LoadedModel, load_model
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.networks import site_arrays
from neurotally.profiler.neuron_sums import UnitNeurons

TRIGGERS = 3
ROUNDING = 1e-6
"""Of a sum, relative to the sum of its terms' magnitudes: up to 16 of them are added in float32, off by at most
15 · 2⁻²⁴, and a square is rounded once more; the rest is float64. An activation is a few units in the last place from
its formula besides. Relative to the sum itself nothing holds, since terms cancel."""
TOKENS = ("site_tokens", "site_special_tokens")


def batches(longest: int, seed: int = 1) -> list[Batch]:
    """Batches with pads and special tokens, a document of several rows among them.

    No token comes twice: in a first layer that reads embeddings alone its coefficients would tie.
    """
    token_N = 2 + np.random.default_rng(seed).permutation(VOCABULARY - 2)
    ends = np.cumsum([62, 89, 6, 39, longest + 29])
    documents = [(number, [0, *ids_T]) for number, ids_T in enumerate(np.split(token_N[: ends[-1]], ends[:-1]))]
    return list(padded_batches(lay_out(documents, frozenset({0}), "documents", longest), 256))


def body(bare: Any, name: str) -> Any:
    """What gives the last hidden states."""
    return bare.get_submodule(MIXTURES[name].layers.rpartition(".")[0])


class Expected:
    """The sums, extremes and triggers of one site, from what plain hooks saw."""

    def __init__(self) -> None:
        self.sums: dict[str, Any] = defaultdict(float)
        self.scales: dict[str, Any] = defaultdict(float)
        """The sums of the terms' magnitudes."""
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
        pre_NF, activation_NF, c_NF = (
            x.double().numpy() for x in (site.pre_NF, site.activation_NF, site.coefficient_NF)
        )
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
            self.scales[name] += np.abs(terms_NF[counted_N]).sum(0)
        if counted_N.any():
            self.max = np.maximum(self.max, c_NF[counted_N].max(0))
            self.min = np.minimum(self.min, c_NF[counted_N].min(0))
        for n in np.flatnonzero(kind_N == TOKEN):
            document, position = int(document_N[n]), int(position_N[n])
            for neuron, value in enumerate(c_NF[n]):
                held = self.best[neuron].get(document)
                if value > 0 and (held is None or (-value, position) < (-held[0], held[1])):
                    self.best[neuron][document] = (float(value), position)

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
        name = str(sites["site_name"][row])
        network = re.sub(r"^.*?\.\d+\.|\.(act_fn|activation|activation_fn|w2|down_proj)$", "", name)
        key = (layer, network, int(sites["site_expert"][row]))
        seen.add(key)
        of = expected[key]
        cells = (layer, slice(first, first + width))
        for name in TOKENS:
            assert result.routed[name][row] == of.sums[name]
        assert result.routed["site_weight"][row] == pytest.approx(of.sums["site_weight"], rel=1e-6)
        for name in ("active", "active_special"):
            assert_array_equal(result.sums[name][cells], of.sums[name])
        summed = (*SUMS, "weighted_coefficient_sum") if key[2] >= 0 else SUMS
        for name in summed:
            assert (np.abs(result.sums[name][cells] - of.sums[name]) <= ROUNDING * of.scales[name]).all(), name
        assert_array_equal(result.sums["coefficient_max"][cells], np.broadcast_to(of.max, width))
        assert_array_equal(result.sums["coefficient_min"][cells], np.broadcast_to(of.min, width))
        for neuron in range(width):
            at = layer * num_neurons + first + neuron
            part = slice(starts[at], starts[at + 1])
            triggers = of.triggers(neuron)
            assert result.triggers.document_N[part].tolist() == [document for _, document, _ in triggers]
            assert result.triggers.position_N[part].tolist() == [position for *_, position in triggers]
            assert result.triggers.value_N[part].tolist() == [value for value, *_ in triggers]
    assert seen == set(expected)


def check_dense(name: str, tokenizer: Any, folder: Path) -> None:
    """A model of `FAMILIES`: counts and extremes to the bit, sums within fp32's rounding."""
    family = FAMILIES[name]
    bare = tiny_model(name)
    model = saved_and_loaded(bare, tokenizer, folder)
    assert model.facts.gated is family.gated
    assert model.facts.warnings == ()

    rng = np.random.default_rng(1)
    longest = min(model.facts.max_row_tokens, 400)
    lengths = (63, 90, 7, longest, longest + 1, 2 * longest + 30)
    documents = [(number, [0, *rng.integers(2, VOCABULARY, size=length - 1)]) for number, length in enumerate(lengths)]
    rows = lay_out(documents, frozenset({0}), "documents", longest)
    batches = list(padded_batches(rows, 512, model.facts.attention_budget))
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
        assert (np.abs(result.sums[name][layers] - expected[part]) <= ROUNDING * expected[magnitude]).all(), name


def check_mixture(name: str, tokenizer: Any, folder: Path) -> None:
    """A model of `MIXTURES`: counts, extremes, triggers and hidden states equal, sums within `ROUNDING`."""
    bare = tiny_mixture(name)
    model = saved_and_loaded(bare, tokenizer, folder)
    to_read = batches(100)
    result = measured(model, to_read)
    # The same file, so that weights lie in memory alike: of one row a product's rounding depends on that.
    again = type(bare).from_pretrained(folder, dtype="float32").eval()
    hooks, expected = MixtureHooks(again, name), defaultdict(Expected)
    for batch in to_read:
        for site in hooks.run(torch.from_numpy(batch.ids_BT)):
            expected[site.layer, site.name, site.expert].add(site, batch)
    hold_against(result, site_arrays(model.facts.networks), expected, model.facts.num_neurons)
    ids_BT = torch.from_numpy(to_read[0].ids_BT)
    with torch.inference_mode():
        assert torch.equal(model.run_body(ids_BT), body(bare, name)(input_ids=ids_BT, use_cache=False)[0])


def saved_and_loaded(bare: Any, tokenizer: Any, folder: Path) -> LoadedModel:
    """A model as its users get it."""
    bare.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), "cpu")


def _sums(hooks: PlainHooks, batches: list[Batch]) -> dict[str, np.ndarray]:
    """Every statistic, [F] of each layer that has a network, summed up in float64 over the tokens of all batches."""
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
