"""`from neurotally.profiler import load_model, switched_off, read_neurons`, on models of one's own too."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import TwoNetworks, tiny_model
from test_profiler_sites import tiny
from torch import Tensor, nn

from neurotally import profiler
from neurotally.profiler import load_model, read_neurons, switched_off
from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.hook_points import StandIn

IDS = torch.randint(2, 600, (1, 12), generator=torch.Generator().manual_seed(3))
NEURONS = {0: [1, 5], 1: [90]}
PAIRS = [(1, 90), (0, 5), (0, 1), (1, 0)]


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    return load_model(str(model_folder), "cpu")


@contextmanager
def coefficient_is(model: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A Llama whose down projections are given act(gate)·up, from the formula, with `change` made to NEURONS."""
    handles = []
    for layer, neurons in NEURONS.items():
        mlp = model.model.layers[layer].mlp

        def put(_down: nn.Module, args: Any, gate: list[Tensor], up: list[Tensor], neurons: list[int]) -> Any:
            coefficient = gate[-1] / (1 + torch.exp(-gate[-1])) * up[-1]
            read = args[0].clone()
            read[..., neurons] = change(coefficient[..., neurons])
            return (read,)

        gate: list[Tensor] = []
        up: list[Tensor] = []
        handles += [
            mlp.gate_proj.register_forward_hook(lambda _m, _a, out, gate=gate: gate.append(out)),
            mlp.up_proj.register_forward_hook(lambda _m, _a, out, up=up: up.append(out)),
            mlp.down_proj.register_forward_pre_hook(
                lambda m, args, put=put, gate=gate, up=up, neurons=neurons: put(m, args, gate, up, neurons)
            ),
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


CHANGES: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "switched off": ({}, torch.zeros_like),
    "scaled": ({"how": "scale", "value": -3.0}, lambda c: -3 * c),
    "set": ({"how": "set", "value": 2.5}, lambda c: torch.full_like(c, 2.5)),
}


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def generated(model: Any) -> list[int]:
    options = {"do_sample": False, "max_new_tokens": 20, "pad_token_id": 0}
    ids: list[int] = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)[0].tolist()
    return ids


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.slow
def test_a_model_of_ones_own_runs_and_generates_masked(what: str) -> None:
    options, change = CHANGES[what]
    bare, model = tiny("llama"), tiny("llama")
    with coefficient_is(bare, change):
        expected, expected_ids = logits(bare), generated(bare)
    with switched_off(model, NEURONS, **options):
        torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
        assert generated(model) == expected_ids
    assert torch.equal(logits(model), logits(bare))
    assert generated(model) == generated(bare)


def test_whatever_fails_the_model_is_restored() -> None:
    model = tiny("llama")
    before = logits(model)
    with pytest.raises(ZeroDivisionError), switched_off(model, NEURONS):
        _ = 1 / torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)


def test_hook_points_are_put_in_once_and_weights_keep_their_names() -> None:
    model = tiny_model("apertus")  # its activations have parameters
    names, values = list(model.state_dict()), copy.deepcopy(model.state_dict())
    with switched_off(model, NEURONS):
        first = [part for part in model.modules() if isinstance(part, StandIn)]
    read_neurons(model, IDS[0].tolist(), PAIRS)
    assert [part for part in model.modules() if isinstance(part, StandIn)] == first
    assert len(first) == 2
    assert list(model.state_dict()) == names
    model.double()
    assert all(torch.equal(values[name].double(), tensor) for name, tensor in model.state_dict().items())
    logits(model)
    twin = copy.deepcopy(model)
    with switched_off(twin, NEURONS):
        assert not torch.equal(logits(twin), logits(model))


def test_a_model_in_training_stays_so_and_gradients_flow() -> None:
    model = tiny("gpt2").train()
    modes = {name: module.training for name, module in model.named_modules()}
    with switched_off(model, NEURONS):
        model(IDS, labels=IDS).loss.backward()
    assert {name: module.training for name, module in model.named_modules()} == modes
    proj = model.transformer.h[0].mlp.c_fc
    assert not proj.weight.grad[:, NEURONS[0]].any()
    assert proj.weight.grad.any()


def test_a_model_that_cant_be_read_is_left_as_it_is() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp = TwoNetworks(model.model.layers[1].mlp)
    with pytest.raises(UnsupportedModelError, match=r"layer 1: .*found 2 among"), switched_off(model, {}):
        pass
    assert not any(isinstance(part, StandIn) for part in model.modules())


def reference(model: Any) -> np.ndarray:
    """The coefficients [T, n] of PAIRS, from the formula."""
    kept: dict[tuple[str, int], Tensor] = {}
    handles = []
    for layer in range(2):
        for name in ("gate_proj", "up_proj"):
            module = model.model.layers[layer].mlp.get_submodule(name)
            handles.append(
                module.register_forward_hook(lambda _m, _a, out, key=(name, layer): kept.update({key: out[0].double()}))
            )
    logits(model)
    for handle in handles:
        handle.remove()
    gate, up = ([kept[name, layer] for layer in range(2)] for name in ("gate_proj", "up_proj"))
    columns = [
        gate[layer][:, neuron] / (1 + torch.exp(-gate[layer][:, neuron])) * up[layer][:, neuron]
        for layer, neuron in PAIRS
    ]
    return torch.stack(columns, 1).numpy()


def test_neurons_are_read_by_the_formula() -> None:
    model = tiny("llama")
    read = read_neurons(model, IDS[0].tolist(), PAIRS)
    np.testing.assert_allclose(read.coefficient_Tn, reference(tiny("llama")), rtol=1e-5, atol=1e-7)
    assert read.neurons == tuple(PAIRS)
    assert read.tokens == tuple(str(token) for token in IDS[0].tolist())
    assert read_neurons(model, [5], []).coefficient_Tn.shape == (1, 0)


def test_the_masked_model_is_read() -> None:
    model, bare = tiny("llama"), tiny("llama")
    with switched_off(model, {0: NEURONS[0]}):
        masked = read_neurons(model, IDS[0].tolist(), PAIRS).coefficient_Tn
    with torch.no_grad():
        bare.model.layers[0].mlp.up_proj.weight[NEURONS[0]] = 0
    np.testing.assert_allclose(masked, reference(bare), rtol=1e-5, atol=1e-7)
    assert not masked[:, 1:3].any()


@pytest.mark.slow
def test_text_is_read_with_the_tokens_beside_it(model: Any) -> None:
    pandas = pytest.importorskip("pandas")
    read = read_neurons(model, "x = [1]\n", [(0, 3), (1, 7)])
    assert "".join(read.tokens[1:]) == "x = [1]\n"
    assert read.tokens[0] == "<s>"
    frame = read.frame()
    assert list(frame.columns) == [(0, 3), (1, 7)]
    assert list(frame.index) == list(read.tokens)
    pandas.testing.assert_series_equal(frame[1, 7], pandas.Series(read.coefficient_Tn[:, 1], frame.index, name=(1, 7)))
    same = read_neurons(model.model, "x = [1]\n", [(0, 3), (1, 7)], model.tokenizer)
    np.testing.assert_array_equal(same.coefficient_Tn, read.coefficient_Tn)


def mask_document(fingerprint: str | None) -> dict[str, Any]:
    return {"model": {"fingerprint": fingerprint}, "specific": {"go": [[0, 1], [0, 5]], "c": [[1, 90], [0, 5]]}}


def test_a_mask_document_is_taken_whole_or_by_set(model: Any, tmp_path: Path) -> None:
    width = model.facts.num_neurons
    document = mask_document(model.facts.fingerprint)
    document["specific"]["c"][0][1] = width - 1
    (tmp_path / "mask.json").write_text(json.dumps(document))

    def masked(neurons: Any, set_name: str | None = None) -> Tensor:
        with switched_off(model, neurons, set_name=set_name):
            return model.run_body(IDS)

    whole, go = masked({0: [1, 5], 1: [width - 1]}), masked({0: [1, 5]})
    assert not torch.equal(whole, go)
    for neurons in (document, tmp_path / "mask.json", str(tmp_path / "mask.json")):
        assert torch.equal(masked(neurons), whole)
        assert torch.equal(masked(neurons, "go"), go)


@pytest.mark.parametrize(
    ("neurons", "options", "message"),
    [
        ({7: [0]}, {}, "has no layer 7; expected 0 to 1"),
        ({0: [0, 4000]}, {}, "layer 0 has no neuron 4000; expected 0 to"),
        ({0: [-1]}, {}, "layer 0 has no neuron -1"),
        ({0: [0]}, {"how": "ablate"}, "how='ablate': expected one of activation, "),
        ({0: [0]}, {"how": "scale"}, "how='scale', value=None: expected a value for mean, set, scale"),
        ({0: [0]}, {"value": 1.0}, "how='activation', value=1.0: expected a value for"),
        ({0: [0]}, {"set_name": "go"}, "set_name='go': expected a mask document"),
        ([(0, 1)], {}, "expected {layer: [neurons]} or a mask document, got list"),
        ({"sets": {}}, {}, "expected a mask document, which has a part 'specific'"),
        (mask_document(None), {"set_name": "rust"}, "set_name='rust': the mask document has 'go', 'c'"),
        ({"specific": {"go": [1, 2]}}, {}, "set 'go' of the mask document: expected a list of"),
        (mask_document("0" * 64), {}, r"the mask document is of another model \(fingerprint 00000000"),
        ("nowhere.json", {}, "nowhere.json can't be read"),
    ],
)
def test_what_cant_be_switched_off_is_refused(neurons: Any, options: dict[str, Any], message: str, model: Any) -> None:
    with pytest.raises(InputError, match=re.escape(message) if "\\" not in message else message) as caught:
        with switched_off(model, neurons, **options):
            pass
    assert "\n" not in str(caught.value)


def test_what_cant_be_read_is_refused(model: Any) -> None:
    for text, message in (
        ([], "the text has 0 tokens, expected 1 to 128"),
        ([5] * 129, "the text has 129 tokens, expected 1 to 128"),
    ):
        with pytest.raises(InputError, match=message):
            read_neurons(model, text, [(0, 1)])
    with pytest.raises(InputError, match="text needs a tokenizer"):
        read_neurons(model.model, "x", [(0, 1)])
    with pytest.raises(InputError, match="layer 1 has no neuron 9999"):
        read_neurons(model, "x", [(1, 9999)])


@pytest.mark.parametrize("name", ["load_model", "switched_off", "read_neurons"])
def test_the_examples_run(name: str, model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documented = getattr(profiler, name).__doc__
    lines = [line.removeprefix(" " * 8) for line in documented.splitlines() if line.startswith(" " * 8)]
    code = "\n".join(lines)
    assert name in code
    assert "Qwen/Qwen2.5-Coder-0.5B" in code
    exec(code.replace("Qwen/Qwen2.5-Coder-0.5B", str(model_folder)), {n: getattr(profiler, n) for n in profiler._WHERE})


def test_other_names_are_refused() -> None:
    assert {"load_model", "switched_off", "read_neurons"} <= set(dir(profiler))
    with pytest.raises(AttributeError, match="no attribute 'load_models'"):
        profiler.load_models  # noqa: B018
