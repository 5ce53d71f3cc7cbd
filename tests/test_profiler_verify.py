"""What the check at loading lets through and what it refuses, with a GPU's rounding simulated on the CPU.

A GPU's kernels may round some coefficients otherwise than PyTorch's. Here some elements of what our kernel returns are
moved by one unit in the last place, and the model is held to what a GPU is allowed.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from neurotally.kernels import tally
from neurotally.kernels.layer_tally import LayerTally, RowMaxima
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.load import LoadedModel, prepare_model
from neurotally.profiler.model.verify import gpu_rounding, probe_ids, verify_hook_points

LOADS = 20
LAYERS = 32
Gated = Callable[..., tuple[Tensor, RowMaxima]]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> LoadedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=64, intermediate_size=172, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    bare = LlamaForCausalLM(config).to(getattr(torch, request.param)).eval()
    return prepare_model(bare, tokenizer, "deep", None, request.param)


def moved(h_BTF: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A share of the elements, drawn, one unit in the last place up or down."""
    chosen = torch.rand(h_BTF.shape, generator=generator) < share
    whole = h_BTF.view(torch.int32 if h_BTF.dtype == torch.float32 else torch.int16)
    step = torch.where(torch.rand(h_BTF.shape, generator=generator) < 0.5, -1, 1).to(whole.dtype)
    return torch.where(chosen & (h_BTF != 0), whole + step, whole).view(h_BTF.dtype)


def load_as_on_a_gpu(model: LoadedModel, patch: pytest.MonkeyPatch, gated: Callable[[Gated], Gated]) -> None:
    """Check the model with a kernel made from ours; raises UnsupportedModelError where it is refused."""
    with patch.context() as patched:
        patched.setattr(tally, "tally_layer", gated(tally.tally_layer))
        verify_hook_points(model, probe_ids(model.vocabulary), gpu_rounding(getattr(torch, model.facts.dtype)))


@pytest.mark.slow
def test_rounding_refuses_no_sound_model(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(LOADS):
        generator = torch.Generator().manual_seed(seed)
        num_moved = 0

        def gated(kernel: Gated, generator: torch.Generator = generator) -> Gated:
            def rounded(*args: Any) -> tuple[Tensor, RowMaxima]:
                nonlocal num_moved
                h_BTF, maxima = kernel(*args)
                other_BTF = moved(h_BTF, 1e-4, generator)
                num_moved += int((other_BTF != h_BTF).sum())
                _tally_again(args[3], args[4], h_BTF, other_BTF)
                return other_BTF, maxima

            return rounded

        load_as_on_a_gpu(model, monkeypatch, gated)
        assert num_moved > 10


@pytest.mark.slow
def test_a_float32_model_may_differ_in_many_elements(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def gated(kernel: Gated) -> Gated:
        def rounded(*args: Any) -> tuple[Tensor, RowMaxima]:
            h_BTF, maxima = kernel(*args)
            other_BTF = moved(h_BTF, 0.03, generator)
            _tally_again(args[3], args[4], h_BTF, other_BTF)
            return other_BTF, maxima

        return rounded

    if model.facts.dtype == "float32":
        load_as_on_a_gpu(model, monkeypatch, gated)
    else:
        with pytest.raises(UnsupportedModelError, match=r"layer 0 .*no weight matrix"):
            load_as_on_a_gpu(model, monkeypatch, gated)


def _tally_again(kind_BT: Tensor, into: LayerTally, h_BTF: Tensor, other_BTF: Tensor) -> None:
    """Correct a tally of `h_BTF` to be one of `other_BTF`, as a kernel that rounds so would have it."""
    counted_BT = kind_BT > 0
    ours, theirs = h_BTF[counted_BT].double(), other_BTF[counted_BT].double()
    into["coefficient_sum"].add_((theirs - ours).sum(0))
    into["coefficient_sum_absolute"].add_((theirs.abs() - ours.abs()).sum(0))
    into["coefficient_sum_squares"].add_((theirs.square() - ours.square()).sum(0))
    into["coefficient_max"].copy_(theirs.amax(0))
    into["coefficient_min"].copy_(theirs.amin(0))


def _at(layer: int, fault: Callable[..., tuple[Tensor, RowMaxima]]) -> Callable[[Gated], Gated]:
    """A kernel that is at fault in one layer."""

    def gated(kernel: Gated) -> Gated:
        calls = 0

        def faulty(*args: Any) -> tuple[Tensor, RowMaxima]:
            nonlocal calls
            calls += 1
            return fault(kernel, *args) if calls == layer + 1 else kernel(*args)

        return faulty

    return gated


def _other_activation(kernel: Gated, _act: nn.Module, *args: Any) -> tuple[Tensor, RowMaxima]:
    return kernel(nn.GELU(), *args)


def _one_neuron_shifted(kernel: Gated, *args: Any) -> tuple[Tensor, RowMaxima]:
    h_BTF, maxima = kernel(*args)
    h_BTF[..., 7] = h_BTF[..., 8]
    return h_BTF, maxima


def _tally_shifted(kernel: Gated, *args: Any) -> tuple[Tensor, RowMaxima]:
    result = kernel(*args)
    for sums_F in args[4].values():
        sums_F.copy_(sums_F.roll(1))
    return result


@pytest.mark.parametrize("fault", [_other_activation, _one_neuron_shifted, _tally_shifted])
@pytest.mark.slow
def test_a_fault_in_one_layer_is_refused_by_name(
    model: LoadedModel, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in range(0, LAYERS * LOADS, LAYERS + 1):
        with pytest.raises(UnsupportedModelError, match=rf"^layer {layer % LAYERS} "):
            load_as_on_a_gpu(model, monkeypatch, _at(layer % LAYERS, fault))


@pytest.mark.slow
def test_a_skipped_layer_is_refused_by_the_name_of_the_next(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in range(LOADS):
        block = model.body.layers[layer]  # type: ignore[index,union-attr]
        whole = block.forward

        def skipped_when_read(hidden: Tensor, *args: Any, whole: Any = whole, **kwargs: Any) -> Any:
            return whole(hidden, *args, **kwargs) if model.hook_points[0].reader is None else hidden

        with monkeypatch.context() as patched:
            patched.setattr(block, "forward", skipped_when_read)
            with pytest.raises(UnsupportedModelError, match=rf"^layer {layer + 1} "):
                verify_hook_points(model, probe_ids(model.vocabulary), gpu_rounding(getattr(torch, model.facts.dtype)))


@pytest.mark.slow
def test_nothing_may_differ_on_the_cpu(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_element(kernel: Gated, *args: Any) -> tuple[Tensor, RowMaxima]:
        h_BTF, maxima = kernel(*args)
        h_BTF[0, 3, 5] = torch.nextafter(h_BTF[0, 3, 5].float(), torch.tensor(torch.inf)) * 1.01
        return h_BTF, maxima

    monkeypatch.setattr(tally, "tally_layer", _at(30, one_element)(tally.tally_layer))
    with pytest.raises(UnsupportedModelError, match=r"^layer 30 "):
        verify_hook_points(model, probe_ids(model.vocabulary))
