"""The Triton kernels against the reference in PyTorch: on the GPU where there is one, else in Triton's interpreter.

Run by test_kernels_triton.py in a process of its own: Triton must be told to interpret before anything imports it.
By hand: `TRITON_INTERPRET=1 pytest tests/triton_cases.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpreting import DEVICE, ON_GPU, skip_unless_kernels_run
from sorted_triggers import as_list, sorted_triggers
from test_kernels_routed import EXPERTS, TOKENS, Case
from test_kernels_routed import make as routed_case
from torch import Tensor, nn
from transformers.activations import ACT2FN

from neurotally.kernels import tally as kernels
from neurotally.kernels.activations import activation_name
from neurotally.kernels.layer_tally import PAD, REPEAT, SPECIAL, TOKEN, LayerTally, RowMaxima, Statistics
from neurotally.kernels.reference import tally_reference
from neurotally.kernels.statistics import STATISTICS
from neurotally.kernels.triggers import LayerTriggers

skip_unless_kernels_run()
pytest.importorskip("triton", reason="Triton isn't installed")

from neurotally.kernels import triton_tally, triton_triggers  # noqa: E402
from neurotally.kernels.triton_tally import Tiling  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy", "ignore::RuntimeWarning:triton")  # NaN, inf
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
ACTIVATIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "relu2": ACT2FN["relu2"],
}


@pytest.fixture(autouse=True, scope="module")
def rounding() -> Iterator[None]:
    """The interpreter cuts fp32 to bf16 off, where hardware rounds to the nearest, ties to even."""
    if ON_GPU:
        yield
        return
    from triton.runtime import interpreter

    original = interpreter._convert_float

    def convert(x: np.ndarray, from_type: Any, to_type: Any, mode: Any) -> np.ndarray:
        if str(to_type) == "bf16":
            rounded = torch.from_numpy(np.ascontiguousarray(x)).bfloat16()
            return rounded.view(torch.int16).numpy().view(np.uint16)
        if str(from_type) == "bf16":
            return (x.astype(np.uint32) << 16).view(np.float32)
        return original(x, from_type, to_type, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", convert)
        yield


@contextmanager
def poisoned() -> Iterator[None]:
    """Fills torch.empty with NaN, and integers with their largest."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def run(
    act: nn.Module,
    pre_BTF: Tensor,
    up_BTF: Tensor | None,
    kind_BT: Tensor,
    into: LayerTally | None = None,
    statistics: Statistics = Statistics.EVERYTHING,
    tiling: Tiling | None = None,
) -> tuple[Tensor, LayerTally, RowMaxima]:
    into = LayerTally.empty(pre_BTF.shape[2], DEVICE) if into is None else into
    if tiling is None and not ON_GPU:
        # The interpreter takes its time by the program and the tile, not by the element.
        block_neurons = 1 << (pre_BTF.shape[2] - 1).bit_length()
        tiling = Tiling(512, 256, block_neurons, 16, block_neurons)
    with torch.no_grad(), poisoned(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "kernels_for", lambda *_: "triton")
        if tiling is not None:
            patch.setattr(triton_tally, "_tiling", lambda *_: tiling)
        h_BTF, maxima = kernels.tally_layer(act, pre_BTF, up_BTF, kind_BT, into, statistics)
    return h_BTF, into, maxima


def random_batch(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(pre, up, kind): rows of full length, 0 and 1, special tokens and some of repeats among them, the pads NaN."""
    num_rows, num_tokens, _ = shape
    rng = torch.Generator().manual_seed(seed)
    pre_BTF, up_BTF = (torch.randn(shape, generator=rng).mul(2).to(dtype) for _ in range(2))
    draw_BT = torch.rand((num_rows, num_tokens), generator=rng)
    kind_BT = torch.where(draw_BT < 0.1, SPECIAL, torch.where(draw_BT > 0.9, REPEAT, TOKEN)).to(torch.uint8)
    for row in range(num_rows):
        length = (num_tokens, 0, 1)[row % 3]
        kind_BT[row, length:] = PAD
        pre_BTF[row, length:] = up_BTF[row, length:] = torch.nan
    return pre_BTF.to(DEVICE), up_BTF.to(DEVICE), kind_BT.to(DEVICE)


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit; a NaN equals a NaN."""
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def expect_reference(
    pre_BTF: Tensor, activation_BTF: Tensor, h_BTF: Tensor, kind_BT: Tensor, got: LayerTally, maxima: RowMaxima
) -> None:
    """Check a tally and row maxima against the reference given the same activation and h: all but sums to the bit."""
    expected = LayerTally.empty(pre_BTF.shape[2], DEVICE)
    expected_maxima = tally_reference(pre_BTF, activation_BTF, h_BTF, kind_BT, expected)
    assert_same(maxima, expected_maxima)
    for name in ("active", "active_special", "coefficient_max", "coefficient_min"):
        assert_same([got[name]], [expected[name]])
    counted_BT = kind_BT != PAD
    for name, values in (
        ("activation_sum", activation_BTF),
        ("coefficient_sum", h_BTF),
        ("coefficient_sum_absolute", h_BTF.abs()),
        ("coefficient_sum_squares", h_BTF.double().square()),
    ):
        magnitude_F = values[counted_BT].double().abs().sum(0)
        assert_close_sums(got[name], expected[name], magnitude_F)


def assert_close_sums(got_F: Tensor, expected_F: Tensor, magnitude_F: Tensor) -> None:
    is_finite_F = magnitude_F.isfinite()
    assert_same([got_F[~is_finite_F]], [expected_F[~is_finite_F]])
    # fp32 additions of one neuron in one chunk: a tile's elements, then their sum; and the rounding of a square.
    num_additions = 1024 // 4 + 4 + 1
    error_F = (got_F - expected_F).abs()[is_finite_F]
    assert (error_F <= num_additions * 2.0**-24 * magnitude_F[is_finite_F] + 1e-40).all()


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("num_tokens", "num_neurons"),
    [(1, 1408 if ON_GPU else 352), (63, 1), (63, 64), (123, 1408 if ON_GPU else 352), (1000, 1), (1000, 64)],
)
@pytest.mark.slow
def test_equals_the_reference(num_tokens: int, num_neurons: int, dtype: torch.dtype, is_gated: bool) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((3, num_tokens, num_neurons), dtype)
    activation_BTF = h_BTF = run(nn.SiLU(), pre_BTF, None, kind_BT, statistics=Statistics.COUNTS)[0]
    if is_gated:
        h_BTF = activation_BTF * up_BTF
    got_BTF, got, maxima = run(nn.SiLU(), pre_BTF, up_BTF if is_gated else None, kind_BT)
    assert_same([got_BTF], [h_BTF])
    expect_reference(pre_BTF, activation_BTF, h_BTF, kind_BT, got, maxima)


def as_cuda_computes(name: str, x: Tensor) -> Tensor:
    """The activation in fp32 by the formula of PyTorch's CUDA kernels, rounded to the dtype of `x`.

    PyTorch's CPU kernels use polynomials of their own, with other values near 0, at -5 and beyond 1e38.
    """
    y = x.float()
    formulas = {
        "silu": lambda: y / (1 + torch.exp(-y)),
        "gelu": lambda: y * 0.5 * (1 + torch.erf(y * 0.5**0.5)),
        "gelu_tanh": lambda: 0.5 * y * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (y + 0.044715 * (y * y * y)))),
        "relu": lambda: y.relu(),
        "relu2": lambda: y.relu() * y.relu(),
    }
    return formulas[name]().to(x.dtype)


def expect_close(got: Tensor, expected: Tensor, x: Tensor) -> None:
    """Within a unit in the last place (four of fp32), but for what an fp32 formula loses where it is near 0."""
    assert got.dtype == expected.dtype == x.dtype
    unit = torch.nextafter(expected.abs(), torch.full_like(expected, torch.inf)) - expected.abs()
    unit = unit.double().nan_to_num(0, 0) * (4 if x.dtype == torch.float32 else 1)
    is_number = expected.isfinite()
    assert_same([got[~is_number]], [expected[~is_number]])
    error = (got.double() - expected.double()).abs()
    assert (error <= unit + 2.0**-22 * x.double().abs())[is_number].all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_models_own_to_the_rounding_of_the_dtype(name: str, dtype: torch.dtype) -> None:
    """Of every number that a 16-bit dtype has."""
    if dtype == torch.float32:
        rng = torch.Generator().manual_seed(0)
        x_BTF = torch.randn((1, 64, 1024), generator=rng) * torch.logspace(-3, 2, 1024)
    else:
        x_BTF = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 64, 1024)
    x_BTF = x_BTF.to(DEVICE)
    kind_BT = torch.ones((1, 64), dtype=torch.uint8, device=DEVICE)
    act = ACTIVATIONS[name]
    assert activation_name(act) == name
    h_BTF, got, maxima = run(act, x_BTF, None, kind_BT)
    expect_reference(x_BTF, h_BTF, h_BTF, kind_BT, got, maxima)
    model_BTF = act(x_BTF)
    expect_close(h_BTF, model_BTF if ON_GPU else as_cuda_computes(name, x_BTF), x_BTF)
    is_ordinary = x_BTF.abs() < 100
    torch.testing.assert_close(h_BTF[is_ordinary], model_BTF[is_ordinary], atol=2e-6, rtol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "quick_gelu", "gelu_python", "prelu", "identity", "linear"])
@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
def test_other_activations_are_the_modules(name: str, is_gated: bool) -> None:
    act = {"prelu": nn.PReLU, "identity": nn.Identity}.get(name, lambda: ACT2FN[name])().to(DEVICE).bfloat16()
    assert activation_name(act) is None
    pre_BTF, up_BTF, kind_BT = random_batch((3, 63, 64), torch.bfloat16)
    with torch.no_grad():
        activation_BTF = act(pre_BTF)
    h_BTF, got, maxima = run(act, pre_BTF, up_BTF if is_gated else None, kind_BT)
    assert_same([h_BTF], [activation_BTF * up_BTF if is_gated else activation_BTF])
    expect_reference(pre_BTF, activation_BTF, h_BTF, kind_BT, got, maxima)


class _Subclass(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("act", "name"),
    [
        (ACT2FN["silu"], "silu"),
        (ACT2FN["gelu"], "gelu"),
        (ACT2FN["gelu_pytorch_tanh"], "gelu_tanh"),
        (ACT2FN["gelu_python_tanh"], None),
        (ACT2FN["relu"], "relu"),
        (nn.ReLU(inplace=True), "relu"),
        (ACT2FN["gelu_10"], None),
        (ACT2FN["mish"], None),
        (_Subclass(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_which_activations_have_a_kernel(act: nn.Module, name: str | None) -> None:
    assert activation_name(act) == name


@pytest.mark.parametrize("layout", ["halves", "other half", "transposed", "rows"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.slow
def test_strides(dtype: torch.dtype, layout: str) -> None:
    rng = torch.Generator().manual_seed(0)
    both = torch.randn((2, 167, 2 * 123), generator=rng).to(dtype).to(DEVICE)
    pre_BTF, up_BTF = both.chunk(2, dim=-1)
    if layout == "other half":
        pre_BTF, up_BTF = up_BTF, pre_BTF
    if layout == "transposed":
        pre_BTF, up_BTF = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (pre_BTF, up_BTF))
    if layout == "rows":
        pre_BTF, up_BTF = pre_BTF.transpose(0, 1)[:50], up_BTF.transpose(0, 1)[:50]
    kind_BT = torch.ones(pre_BTF.shape[:2], dtype=torch.uint8, device=DEVICE)
    h_BTF, *others = run(nn.SiLU(), pre_BTF, up_BTF, kind_BT)
    packed_BTF, *packed = run(nn.SiLU(), pre_BTF.contiguous(), up_BTF.contiguous(), kind_BT)
    assert h_BTF.is_contiguous()
    assert_same([h_BTF, *others[0].values(), *others[1]], [packed_BTF, *packed[0].values(), *packed[1]])


@pytest.mark.slow
def test_tilings_agree_and_a_batch_gives_the_same_bits_again() -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((2, 530, 300), torch.bfloat16)
    default = None if ON_GPU else Tiling(chunk_tokens=512, block_neurons=512, merge_neurons=512)
    h_BTF, first, maxima = run(nn.SiLU(), pre_BTF, up_BTF, kind_BT, tiling=default)
    again_BTF, second, again_maxima = run(nn.SiLU(), pre_BTF, up_BTF, kind_BT, tiling=default)
    assert_same([h_BTF, *first.values(), *maxima], [again_BTF, *second.values(), *again_maxima])
    activation_BTF = run(nn.SiLU(), pre_BTF, None, kind_BT, statistics=Statistics.COUNTS)[0]
    expect_reference(pre_BTF, activation_BTF, h_BTF, kind_BT, first, maxima)


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.slow
def test_any_bit_pattern_in_real_tokens_is_counted_as_what_it_is(dtype: torch.dtype, is_gated: bool) -> None:
    number_type = torch.int32 if dtype == torch.float32 else torch.int16
    limit = torch.iinfo(number_type)
    rng = torch.Generator().manual_seed(0)
    num_tokens = 250 if ON_GPU else 60
    bits = torch.randint(limit.min, limit.max + 1, (2, 2, num_tokens, 300), generator=rng).to(number_type)
    pre_BTF, up_BTF = bits.view(dtype).to(DEVICE)
    kind_BT = torch.ones((2, num_tokens), dtype=torch.uint8, device=DEVICE)
    h_BTF, got, maxima = run(nn.ReLU(), pre_BTF, up_BTF if is_gated else None, kind_BT)
    activation_BTF = nn.ReLU()(pre_BTF)
    assert_same([h_BTF], [activation_BTF * up_BTF if is_gated else activation_BTF])
    expect_reference(pre_BTF, activation_BTF, h_BTF, kind_BT, got, maxima)


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sums_beyond_the_range_of_float32_are_summed(dtype: torch.dtype, is_gated: bool) -> None:
    pre_BTF = torch.full((1, 40, 20), 3e25, dtype=dtype, device=DEVICE)
    up_BTF = torch.full_like(pre_BTF, 3.0)
    kind_BT = torch.ones((1, 40), dtype=torch.uint8, device=DEVICE)
    kind_BT[0, 5] = PAD
    h_BTF, got, maxima = run(nn.ReLU(), pre_BTF, up_BTF if is_gated else None, kind_BT)
    assert got["coefficient_sum_squares"].isfinite().all()
    expect_reference(pre_BTF, pre_BTF, h_BTF, kind_BT, got, maxima)


def test_one_nan_or_infinity_shows_in_its_own_neuron_only() -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((1, 50, 40), torch.float32)
    kind_BT.fill_(TOKEN)
    pre_BTF[0, 9, 3], up_BTF[0, 20, 4], pre_BTF[0, 30, 5], up_BTF[0, 30, 5] = torch.nan, -torch.inf, torch.inf, 2
    pre_BTF[0, 20, 4] = 1
    _, got, maxima = run(nn.ReLU(), pre_BTF, up_BTF, kind_BT)
    assert got["coefficient_sum"].isfinite().sum() == 37
    assert got["coefficient_sum"][3].isnan()
    assert got["coefficient_max"][3].isfinite()
    assert got["coefficient_min"][4] == -torch.inf
    assert got["coefficient_max"][5] == maxima.value_BF[0, 5] == torch.inf
    assert maxima.position_BF[0, 5] == 30


@pytest.mark.parametrize("content", [0.0, torch.nan, torch.inf, -torch.inf, 3e4, -5.0])
def test_what_pads_hold_changes_no_bit(content: float) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((3, 63, 50), torch.bfloat16)
    is_pad_BT = kind_BT == PAD
    h_BTF, *before = run(nn.SiLU(), pre_BTF, up_BTF, kind_BT)
    pre_BTF[is_pad_BT] = up_BTF[is_pad_BT] = content
    again_BTF, *after = run(nn.SiLU(), pre_BTF, up_BTF, kind_BT)
    assert_same([*before[0].values(), *before[1]], [*after[0].values(), *after[1]])
    assert_same([h_BTF[~is_pad_BT]], [again_BTF[~is_pad_BT]])
    expected_BTF = nn.SiLU()(pre_BTF) * up_BTF
    assert_same([again_BTF[is_pad_BT]], [expected_BTF[is_pad_BT]])


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
def test_fewer_statistics_are_the_same_statistics(is_gated: bool) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((2, 300, 70), torch.bfloat16)
    up = up_BTF if is_gated else None
    h_BTF, everything, _ = run(nn.SiLU(), pre_BTF, up, kind_BT)
    for level, num_filled in ((Statistics.COUNTS, 2), (Statistics.MOMENTS, len(STATISTICS))):
        fewer_h_BTF, fewer, maxima = run(nn.SiLU(), pre_BTF, up, kind_BT, statistics=level)
        assert_same([fewer_h_BTF], [h_BTF])
        for number, (name, empty_F) in enumerate(LayerTally.empty(70, DEVICE).items()):
            assert_same([fewer[name]], [everything[name] if number < num_filled else empty_F])
        assert not maxima.value_BF.any()
        assert not maxima.position_BF.any()
        assert maxima.value_BF.shape == maxima.position_BF.shape == (2, 70)


@pytest.mark.parametrize("num_tokens", [240, 2400])
def test_the_first_of_equal_maxima_is_kept_and_special_tokens_have_none(num_tokens: int) -> None:
    pre_BTF = torch.tensor([9.0, 1, 5, 5, -3, 5]).repeat(num_tokens // 6)[None, :, None].repeat(2, 1, 20)
    pre_BTF[1, : num_tokens - 4] = -1
    kind_BT = torch.ones((2, num_tokens), dtype=torch.uint8)
    kind_BT[0, ::6] = SPECIAL
    pre_BTF, kind_BT = pre_BTF.to(DEVICE), kind_BT.to(DEVICE)
    _, got, maxima = run(nn.ReLU(), pre_BTF, None, kind_BT)
    _, _, none = run(nn.ReLU(), -pre_BTF.abs(), None, kind_BT)
    assert (maxima.value_BF == 5).all()
    assert (maxima.position_BF[0] == 2).all()
    assert (maxima.position_BF[1] == num_tokens - 4).all()
    assert (got["coefficient_max"] == 9).all()
    assert (got["active_special"] == num_tokens // 6).all()
    assert not none.value_BF.any()
    assert not none.position_BF.any()


def test_counts_stay_exact_beyond_what_float32_holds() -> None:
    into = LayerTally.empty(3, DEVICE)
    into["active"].fill_(2**40)
    into["coefficient_sum"].fill_(2.0**40)
    kind_BT = torch.ones((1, 9), dtype=torch.uint8, device=DEVICE)
    for _ in range(2):
        run(nn.ReLU(), torch.ones((1, 9, 3), device=DEVICE), None, kind_BT, into)
    assert into["active"].tolist() == [2**40 + 18] * 3
    assert into["coefficient_sum"].tolist() == [2**40 + 18] * 3


def test_a_batch_of_no_tokens() -> None:
    empty = torch.empty((0, 5, 7), device=DEVICE)
    h_BTF, got, maxima = run(nn.SiLU(), empty, empty, torch.empty((0, 5), dtype=torch.uint8, device=DEVICE))
    assert h_BTF.shape == (0, 5, 7)
    assert maxima.value_BF.shape == (0, 7)
    assert_same(got.values(), LayerTally.empty(7, DEVICE).values())


class _Upcasts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().relu()


def test_an_activation_of_another_dtype_is_left_to_pytorch() -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((2, 20, 30), torch.bfloat16)
    h_BTF, got, maxima = run(_Upcasts(), pre_BTF, up_BTF, kind_BT)
    activation_BTF = pre_BTF.float().relu()
    assert_same([h_BTF], [activation_BTF * up_BTF])
    expect_reference(pre_BTF, activation_BTF, h_BTF, kind_BT, got, maxima)


def routed(case: Case, act: nn.Module, kernel: str, statistics: Statistics) -> tuple[Tensor, LayerTally, RowMaxima]:
    """The tally of a mixture's experts by the Triton kernels or by the reference."""
    into = LayerTally.empty(EXPERTS * case.pre_SF.shape[1], DEVICE, has_experts=True)
    on_device = [
        None if x is None else x.to(DEVICE) for x in (case.pre_SF, case.up_SF, case.kind_S[case.routing.row_S])
    ]
    routing = case.routing._replace(**{
        name: getattr(case.routing, name).to(DEVICE) for name in ("expert_S", "cell_S", "row_S", "weight_S")
    })  # fmt: skip
    with poisoned(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "kernels_for_these", lambda *_: kernel)
        if not ON_GPU:
            patch.setattr(triton_tally, "_tiling", lambda *_: Tiling(512, 64, 64, 16, 64))
        coefficient_SF, maxima = kernels.tally_layer(act, *on_device, into, statistics, routing)
    return coefficient_SF, into, maxima


@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("act", "width"), [(nn.SiLU(), 37), (nn.ReLU(), 64), (nn.ELU(), 100)], ids=lambda x: str(x))
@pytest.mark.slow
def test_experts_equal_the_reference(act: nn.Module, width: int, dtype: torch.dtype, is_gated: bool) -> None:
    case = routed_case(width, dtype, is_gated)
    got_SF, got, maxima = routed(case, act, "triton", Statistics.EVERYTHING)
    expected_SF, expected, expected_maxima = routed(case, act, "plain", Statistics.EVERYTHING)
    if isinstance(act, nn.SiLU):  # PyTorch's on the CPU rounds some elements otherwise than its CUDA kernel
        torch.testing.assert_close(got_SF, expected_SF, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
        torch.testing.assert_close(maxima.value_BF, expected_maxima.value_BF, rtol=2 * torch.finfo(dtype).eps, atol=0)
    else:
        assert_same([got_SF], [expected_SF])
        assert_same(maxima, expected_maxima)
    for name in expected:
        if name.startswith("active"):
            assert_same([got[name]], [expected[name]])
        else:
            scale = 1 if name.endswith(("max", "min")) else case.kind_S.numel()
            limit = scale * (2 * torch.finfo(dtype).eps if isinstance(act, nn.SiLU) else 2**-20)
            torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=limit)


@pytest.mark.parametrize("content", [float("nan"), 1e30])
def test_a_lost_sum_of_an_expert_is_summed_again(content: float) -> None:
    case = routed_case(32, torch.float32)
    row = int(case.routing.row_S[(case.routing.expert_S == 1).nonzero()[3, 0]])
    case.pre_SF[row, 5], case.kind_S[row] = content, TOKEN
    _, got, _ = routed(case, nn.ReLU(), "triton", Statistics.MOMENTS)
    _, expected, _ = routed(case, nn.ReLU(), "plain", Statistics.MOMENTS)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-6, atol=1e-4, equal_nan=True)


@pytest.mark.slow
def test_what_isnt_asked_for_of_experts_stays() -> None:
    case = routed_case(32, torch.bfloat16)
    _, everything, _ = routed(case, nn.SiLU(), "triton", Statistics.EVERYTHING)
    for statistics in (Statistics.COUNTS, Statistics.MOMENTS):
        _, got, _ = routed(case, nn.SiLU(), "triton", statistics)
        untouched = LayerTally.empty(EXPERTS * 32, DEVICE, has_experts=True)
        for name in got:
            is_asked_for = name.startswith("active") or statistics == Statistics.MOMENTS
            assert_same([got[name]], [(everything if is_asked_for else untouched)[name]])


@pytest.mark.slow
def test_triggers_of_experts_are_the_references() -> None:
    case = routed_case(37, torch.bfloat16)
    _, _, maxima = routed(case, nn.ReLU(), "triton", Statistics.EVERYTHING)
    cell_S = case.routing.cell_S.to(DEVICE)
    by_kernel = []
    for lists in (lists_by_triton(2, torch.zeros(EXPERTS * 37)), LayerTriggers(EXPERTS * 37, 2, "cpu", None)):
        device = lists._threshold_F.device
        of = RowMaxima(*(x.to(device) for x in maxima))
        lists.add(of, (10 + cell_S // TOKENS).int().to(device), (cell_S % TOKENS).int().to(device), case.routing.runs)
        by_kernel.append([torch.from_numpy(column) for column in lists.best()])
    assert_same(*by_kernel)
    assert len(by_kernel[0][0]) > 100


# Triggers. A row: a document, the position its first token has there, and for each neuron (value, column). Values
# are few, so that ties are the normal case, as in bf16.
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, float("inf")]
CELLS = st.tuples(st.sampled_from(VALUES), st.integers(0, 7))
ROWS = st.lists(
    st.tuples(st.integers(0, 12), st.sampled_from([0, 8, 16]), st.lists(CELLS, min_size=3, max_size=3)),
    min_size=1,
    max_size=40,
)


def lists_by_triton(num_triggers: int, threshold_F: Tensor) -> LayerTriggers:
    """Lists that the Triton kernel changes, on the CPU too, where it is interpreted."""
    lists = LayerTriggers(len(threshold_F), num_triggers, DEVICE, threshold_F)
    lists._offer = triton_triggers.offer
    return lists


def offer(lists: LayerTriggers, rows: list) -> None:
    """Offer rows as one batch of 8 columns."""
    value_BF = torch.tensor([[value for value, _ in cells] for _, _, cells in rows])
    position_BF = torch.tensor([[column for _, column in cells] for _, _, cells in rows], dtype=torch.int32)
    document_BT = torch.tensor([[document] * 8 for document, _, _ in rows], dtype=torch.int32)
    position_BT = torch.tensor([[first + column for column in range(8)] for _, first, _ in rows], dtype=torch.int32)
    lists.add(RowMaxima(value_BF.to(DEVICE), position_BF.to(DEVICE)), document_BT.to(DEVICE), position_BT.to(DEVICE))


@given(
    rows=ROWS,
    num_triggers=st.integers(1, 5),
    threshold=st.lists(st.sampled_from(VALUES[:4]), min_size=3, max_size=3),
    sizes=st.lists(st.integers(1, 20), max_size=8),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=60 if ON_GPU else 30, deadline=None)
@pytest.mark.slow
def test_any_order_and_split_gives_the_sorted_list(
    rows: list, num_triggers: int, threshold: list[float], sizes: list[int], random: Any
) -> None:
    offered = list(rows)
    random.shuffle(offered)
    lists = lists_by_triton(num_triggers, torch.tensor(threshold, device=DEVICE))
    while offered:
        size = sizes.pop() if sizes else len(offered)
        offer(lists, offered[:size])
        offered = offered[size:]
    best = lists.best()
    assert as_list(best) == sorted_triggers(rows, num_triggers, threshold)
    assert [column.dtype for column in best] == [np.uint32, np.float32, np.uint32, np.uint32]


@pytest.mark.parametrize("num_triggers", [1, 4, 33])
@pytest.mark.slow
def test_many_neurons(num_triggers: int) -> None:
    rng = torch.Generator().manual_seed(0)
    num_neurons, num_rows = 123 if ON_GPU else 19, 9
    lists = lists_by_triton(num_triggers, torch.zeros(num_neurons, device=DEVICE))
    every = []
    for batch in range(8):
        value_BF = torch.randn((num_rows, num_neurons), generator=rng).bfloat16().float().clamp_min(0)
        column_BF = torch.randint(0, 8, value_BF.shape, generator=rng)
        # Documents span rows, in one batch and across two, and come in no order.
        rows = [
            (
                (37 * (batch * num_rows + row) % 50),
                8 * batch,
                list(zip(value_BF[row].tolist(), column_BF[row].tolist(), strict=True)),
            )
            for row in range(num_rows)
        ]
        offer(lists, rows)
        every += rows
    assert as_list(lists.best()) == sorted_triggers(every, num_triggers, [0.0] * num_neurons)


def test_lists_can_be_read_at_any_time() -> None:
    lists = lists_by_triton(2, torch.zeros(3, device=DEVICE))
    assert as_list(lists.best()) == []
    offer(lists, [(5, 0, [(1.0, 3), (0.0, 0), (2.0, 1)])])
    assert as_list(lists.best()) == [(0, 1.0, 5, 3), (2, 2.0, 5, 1)]
    offer(lists, [(4, 8, [(1.0, 0), (0.0, 0), (0.5, 1)])])
    assert as_list(lists.best()) == [(0, 1.0, 4, 8), (0, 1.0, 5, 3), (2, 2.0, 5, 1), (2, 0.5, 4, 9)]
    assert as_list(lists.best()) == as_list(lists.best())
