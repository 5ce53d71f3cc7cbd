"""Tallies against the formula in plain NumPy, for the compiled loop and for the reference in PyTorch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.activations import ACT2FN, ClippedGELUActivation

from neurotally.kernels import tally as kernels
from neurotally.kernels.activations import activation_table, cpu_threads
from neurotally.kernels.compiled import library
from neurotally.kernels.layer_tally import PAD, REPEAT, SPECIAL, TOKEN, LayerTally, RowMaxima, Statistics
from neurotally.kernels.statistics import STATISTICS

PATHS = ("compiled", "reference")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = (  # B, T, F
    (1, 1, 1), (2, 63, 64), (1, 123, 1408), (1, 1000, 64), (3, 1, 1408), (2, 17, 63), (5, 16, 123), (1, 33, 1000),
)  # fmt: skip
ACTIVATIONS = {
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "gelu_new": ACT2FN["gelu_new"],
    "relu": nn.ReLU(),
    "relu_in_place": nn.ReLU(inplace=True),
    "relu2": ACT2FN["relu2"],
    "prelu": nn.PReLU().requires_grad_(False),
    "identity": nn.Identity(),
}


@contextmanager
def path(name: str) -> Iterator[None]:
    if name == "compiled" and library() is None:
        pytest.skip("no C++ compiler here")
    with pytest.MonkeyPatch.context() as patch:
        if name == "reference":
            patch.setattr(kernels, "library", lambda: None)
        yield


def run(
    act: nn.Module,
    pre_BTF: Tensor,
    up_BTF: Tensor | None,
    kind_BT: Tensor,
    into: LayerTally | None = None,
    **levels: Any,
) -> tuple[Tensor, LayerTally, RowMaxima]:
    into = LayerTally.empty(pre_BTF.shape[2]) if into is None else into
    pre_BTF = pre_BTF.clone() if getattr(act, "inplace", False) else pre_BTF
    with torch.no_grad():
        h_BTF, maxima = kernels.tally_layer(act, pre_BTF, up_BTF, kind_BT, into, **levels)
    return h_BTF, into, maxima


def bare(act: nn.Module, pre_BTF: Tensor, up_BTF: Tensor | None) -> tuple[Tensor, Tensor]:
    """(activation, coefficient) as the model computes them on one thread: with more, PyTorch's own bits may differ."""
    pre_BTF = pre_BTF.clone() if getattr(act, "inplace", False) else pre_BTF
    with torch.no_grad(), cpu_threads(1):
        activation_BTF = act(pre_BTF)
        return activation_BTF, activation_BTF if up_BTF is None else activation_BTF * up_BTF


def random_batch(shape: tuple[int, int, int], dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(pre, up, kind): true lengths from 0 to all, a special token in front, some of a repeat, the pads NaN."""
    num_rows, num_tokens, _ = shape
    rng = torch.Generator().manual_seed(seed)
    pre_BTF, up_BTF = (torch.randn(shape, generator=rng).mul(2).to(dtype) for _ in range(2))
    kind_BT = torch.full((num_rows, num_tokens), TOKEN, dtype=torch.uint8)
    kind_BT[:, 3::7] = REPEAT
    kind_BT[:, 0] = SPECIAL if num_tokens > 1 else TOKEN
    for row in range(num_rows):
        length = (num_tokens, 0, num_tokens // 2 + 1)[row % 3]
        kind_BT[row, length:] = PAD
        pre_BTF[row, length:] = up_BTF[row, length:] = torch.nan
    return pre_BTF, up_BTF, kind_BT


def number(x: Tensor) -> np.ndarray:
    return x.double().numpy()


def expect_formula(
    pre_BTF: Tensor,
    activation_BTF: Tensor,
    coefficient_BTF: Tensor,
    kind_BT: Tensor,
    got: LayerTally,
    maxima: RowMaxima,
) -> None:
    """Check a tally and row maxima against the formulas, token by token in float64."""
    pre, activation, coefficient = map(number, (pre_BTF, activation_BTF, coefficient_BTF))
    kind = kind_BT.numpy()
    counted, special = kind != PAD, kind == SPECIAL
    np.testing.assert_array_equal(got["active"].numpy(), (pre[counted] > 0).sum(0))
    np.testing.assert_array_equal(got["active_special"].numpy(), (pre[special] > 0).sum(0))
    with np.errstate(all="ignore"):
        for sums_F, values in (
            (got["activation_sum"], activation[counted]),
            (got["coefficient_sum"], coefficient[counted]),
            (got["coefficient_sum_absolute"], np.abs(coefficient[counted])),
            (got["coefficient_sum_squares"], coefficient[counted] ** 2),
        ):
            assert_close_sums(sums_F.numpy(), values.sum(0), np.abs(values).sum(0))
        is_nan = np.isnan(coefficient[counted])
        max_F = np.where(is_nan, -np.inf, coefficient[counted]).max(0, initial=-np.inf)
        min_F = np.where(is_nan, np.inf, coefficient[counted]).min(0, initial=np.inf)
    np.testing.assert_array_equal(got["coefficient_max"].numpy(), max_F)
    np.testing.assert_array_equal(got["coefficient_min"].numpy(), min_F)
    eligible = np.where((kind == TOKEN)[:, :, None] & (coefficient > 0), coefficient, 0)
    np.testing.assert_array_equal(maxima.value_BF.numpy(), eligible.max(1))
    np.testing.assert_array_equal(maxima.position_BF.numpy(), eligible.argmax(1))


def assert_close_sums(got: np.ndarray, expected: np.ndarray, magnitude: np.ndarray) -> None:
    is_finite = np.isfinite(magnitude)
    np.testing.assert_array_equal(got[~is_finite], expected[~is_finite])
    assert (np.abs(got - expected)[is_finite] <= 1e-6 * magnitude[is_finite] + 1e-40).all()


def assert_same(a: Any, b: Any) -> None:
    """Equal to the bit; a NaN equals a NaN."""
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel_path", PATHS)
@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_formula(shape: tuple[int, int, int], dtype: torch.dtype, is_gated: bool, kernel_path: str) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch(shape, dtype)
    up = up_BTF if is_gated else None
    activation_BTF, coefficient_BTF = bare(ACTIVATIONS["silu"], pre_BTF, up)
    with path(kernel_path):
        h_BTF, got, maxima = run(ACTIVATIONS["silu"], pre_BTF, up, kind_BT)
    assert_same([h_BTF], [coefficient_BTF])
    expect_formula(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, got, maxima)


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "halves", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_the_model_reads_is_the_same_to_the_bit(
    name: str, dtype: torch.dtype, layout: str, num_threads: int
) -> None:
    act = ACTIVATIONS[name].to(dtype)
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 167, 2 * 123, generator=generator).mul(3).to(dtype)
    pre_BTF, up_BTF = both.chunk(2, dim=-1)
    if layout == "contiguous":
        pre_BTF, up_BTF = pre_BTF.contiguous(), up_BTF.contiguous()
    if layout == "transposed":
        pre_BTF, up_BTF = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (pre_BTF, up_BTF))
    kind_BT = torch.ones(2, 167, dtype=torch.uint8)
    with cpu_threads(num_threads), path("compiled"):
        for up in (None, up_BTF):
            activation_BTF, coefficient_BTF = bare(act, pre_BTF, up)
            kept = pre_BTF.clone()
            h_BTF, got, maxima = run(act, pre_BTF, up, kind_BT)
            assert_same([h_BTF, pre_BTF], [coefficient_BTF, kept])
            expect_formula(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, got, maxima)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
@pytest.mark.slow
def test_any_bit_pattern_goes_through_as_in_pytorch(dtype: torch.dtype, is_gated: bool) -> None:
    """NaN, infinities, subnormals, overflow and ties in rounding, all counted as what they are."""
    number_type = torch.int32 if dtype == torch.float32 else torch.int16
    limit = torch.iinfo(number_type)
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(limit.min, limit.max + 1, (2, 4, 250, 1000), generator=generator).to(number_type)
    pre_BTF, up_BTF = bits.view(dtype)
    up = up_BTF if is_gated else None
    kind_BT = torch.ones(4, 250, dtype=torch.uint8)
    with path("compiled"):
        for name in ("relu", "identity", "prelu"):
            act = ACTIVATIONS[name].to(dtype)
            h_BTF, got, maxima = run(act, pre_BTF, up, kind_BT)
            activation_BTF, coefficient_BTF = bare(act, pre_BTF, up)
            assert_same([h_BTF.nan_to_num(7).view(number_type)], [coefficient_BTF.nan_to_num(7).view(number_type)])
            expect_formula(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, got, maxima)


@pytest.mark.parametrize("kernel_path", PATHS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_sums_beyond_the_range_of_float32_are_summed(dtype: torch.dtype, kernel_path: str) -> None:
    pre_BTF = torch.full((1, 40, 20), 3e25, dtype=dtype)
    up_BTF = torch.full((1, 40, 20), 3.0, dtype=dtype)
    kind_BT = torch.ones(1, 40, dtype=torch.uint8)
    kind_BT[0, 5] = PAD
    activation_BTF, coefficient_BTF = bare(ACTIVATIONS["relu"], pre_BTF, up_BTF)
    with path(kernel_path):
        _, got, maxima = run(ACTIVATIONS["relu"], pre_BTF, up_BTF, kind_BT)
    assert got["coefficient_sum_squares"].isfinite().all()
    expect_formula(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, got, maxima)


@pytest.mark.parametrize("kernel_path", PATHS)
def test_one_nan_or_infinity_shows_in_its_own_neuron_only(kernel_path: str) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((1, 50, 40), torch.float32)
    pre_BTF[0, 9, 3], up_BTF[0, 20, 4], pre_BTF[0, 30, 5], up_BTF[0, 30, 5] = torch.nan, -torch.inf, torch.inf, 2
    with path(kernel_path):
        _, got, maxima = run(ACTIVATIONS["relu"], pre_BTF, up_BTF, kind_BT)
    assert got["coefficient_sum"].isfinite().sum() == 37
    assert got["coefficient_sum"][3].isnan()
    assert got["coefficient_max"][5] == maxima.value_BF[0, 5] == torch.inf
    assert maxima.position_BF[0, 5] == 30
    assert got["coefficient_max"][3].isfinite()


@pytest.mark.parametrize("kernel_path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_gated", [True, False], ids=["gated", "plain"])
def test_the_number_of_threads_changes_no_bit(dtype: torch.dtype, is_gated: bool, kernel_path: str) -> None:
    # PyTorch's own float32 SiLU rounds the last elements of a thread's share otherwise: here no share has any.
    pre_BTF, up_BTF, kind_BT = random_batch((3, 320, 211), dtype)
    results = []
    for num_threads in (1, 2, 3):
        with cpu_threads(num_threads), path(kernel_path):
            h_BTF, got, maxima = run(ACTIVATIONS["silu"], pre_BTF, up_BTF if is_gated else None, kind_BT)
        results.append([h_BTF, *got.values(), *maxima])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("kernel_path", PATHS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_any_split_into_batches_gives_the_whole(kernel_path: str, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 6)), data.draw(st.integers(1, 40)), data.draw(st.sampled_from([1, 31, 64])))
    dtype = data.draw(st.sampled_from(DTYPES))
    pre_BTF, up_BTF, _ = random_batch(shape, dtype, seed=data.draw(st.integers(0, 99)))
    pre_BTF, up_BTF = pre_BTF.nan_to_num(1), up_BTF.nan_to_num(-1)
    kinds = data.draw(st.lists(st.sampled_from([PAD, TOKEN, SPECIAL, REPEAT]), min_size=6 * 40, max_size=6 * 40))
    kind_BT = torch.tensor(kinds, dtype=torch.uint8)[: shape[0] * shape[1]].view(shape[:2])
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[0]), max_size=3)))
    with path(kernel_path):
        # PyTorch's own SiLU and GELU round an element by where it stands (vector loop or tail), so not of a slice.
        act = ACTIVATIONS["relu"]
        _, whole, maxima = run(act, pre_BTF, up_BTF, kind_BT)
        parts = LayerTally.empty(shape[2])
        part_maxima = []
        for first, end in zip([0, *cuts], [*cuts, shape[0]], strict=True):
            if first < end:
                rows = slice(first, end)
                part_maxima.append(run(act, pre_BTF[rows], up_BTF[rows], kind_BT[rows], parts)[2])
    for name in ("active", "active_special", "coefficient_max", "coefficient_min"):
        assert torch.equal(whole[name], parts[name])
    assert_same(maxima, [torch.cat(column) for column in zip(*part_maxima, strict=True)])
    activation_BTF, coefficient_BTF = bare(act, pre_BTF, up_BTF)
    expect_formula(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, parts, maxima)


@pytest.mark.parametrize("kernel_path", PATHS)
@given(
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    content=st.sampled_from([0.0, torch.nan, torch.inf, -torch.inf, 3e4, -5.0]),
)
@settings(max_examples=30, deadline=None)
@pytest.mark.slow
def test_what_pads_hold_changes_no_bit(kernel_path: str, seed: int, dtype: torch.dtype, content: float) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((3, 29, 50), dtype, seed)
    is_pad_BT = kind_BT == PAD
    with path(kernel_path):
        h_BTF, *before = run(ACTIVATIONS["silu"], pre_BTF, up_BTF, kind_BT)
        pre_BTF[is_pad_BT] = up_BTF[is_pad_BT] = content
        again_BTF, *after = run(ACTIVATIONS["silu"], pre_BTF, up_BTF, kind_BT)
    assert_same([*before[0].values(), *before[1]], [*after[0].values(), *after[1]])
    assert_same([h_BTF[~is_pad_BT]], [again_BTF[~is_pad_BT]])
    assert_same([again_BTF], [bare(ACTIVATIONS["silu"], pre_BTF, up_BTF)[1]])


@pytest.mark.parametrize("kernel_path", PATHS)
def test_every_cell_of_the_results_is_written(kernel_path: str) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((4, 37, 99), torch.bfloat16)
    pre_BTF, up_BTF = pre_BTF.nan_to_num(1), up_BTF.nan_to_num(1)
    torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
    try:
        with path(kernel_path):
            h_BTF, _, maxima = run(ACTIVATIONS["silu"], pre_BTF, up_BTF, kind_BT)
            with_levels = [run(ACTIVATIONS["silu"], pre_BTF, up_BTF, kind_BT, statistics=level) for level in Statistics]
    finally:
        torch.use_deterministic_algorithms(False)
    assert h_BTF.isfinite().all()
    assert maxima.value_BF.isfinite().all()
    assert (maxima.position_BF >= 0).all()
    assert all(result[2].value_BF.isfinite().all() for result in with_levels)


@pytest.mark.parametrize("kernel_path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fewer_statistics_are_the_same_statistics(dtype: torch.dtype, kernel_path: str) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((2, 45, 70), dtype)
    with path(kernel_path):
        h_BTF, everything, _ = run(ACTIVATIONS["silu"], pre_BTF, up_BTF, kind_BT)
        for level, num_filled in ((Statistics.COUNTS, 2), (Statistics.MOMENTS, len(STATISTICS))):
            fewer_h_BTF, fewer, maxima = run(ACTIVATIONS["silu"], pre_BTF, up_BTF, kind_BT, statistics=level)
            assert_same([fewer_h_BTF], [h_BTF])
            for number, (name, empty_F) in enumerate(LayerTally.empty(70).items()):
                assert_same([fewer[name]], [everything[name] if number < num_filled else empty_F])
            assert not maxima.value_BF.any()
            assert maxima.value_BF.shape == maxima.position_BF.shape == (2, 70)


@pytest.mark.parametrize("kernel_path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_first_of_equal_maxima_is_kept_and_special_tokens_have_none(dtype: torch.dtype, kernel_path: str) -> None:
    pre_BTF = torch.tensor([9.0, 1, 5, 5, -3, 5]).repeat(40)[None, :, None].repeat(1, 1, 20).to(dtype)
    kind_BT = torch.ones(1, 240, dtype=torch.uint8)
    kind_BT[0, ::6] = SPECIAL
    with path(kernel_path):
        _, got, maxima = run(ACTIVATIONS["relu"], pre_BTF, None, kind_BT)
        _, _, none = run(ACTIVATIONS["relu"], -pre_BTF.abs(), None, kind_BT)
    assert (maxima.value_BF == 5).all()
    assert (maxima.position_BF == 2).all()
    assert (got["coefficient_max"] == 9).all()
    assert (got["active_special"] == 40).all()
    assert not none.value_BF.any()
    assert not none.position_BF.any()


def test_counts_stay_exact_beyond_what_float32_holds() -> None:
    into = LayerTally.empty(3)
    into["active"].fill_(2**40)
    into["coefficient_sum"].fill_(2.0**40)
    for name in PATHS:
        with path(name):
            run(ACTIVATIONS["relu"], torch.ones(1, 9, 3), None, torch.ones(1, 9, dtype=torch.uint8), into)
    assert into["active"].tolist() == [2**40 + 18] * 3
    assert into["coefficient_sum"].tolist() == [2**40 + 18] * 3


class _Upcasts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().relu()


@pytest.mark.parametrize("up_dtype", [torch.bfloat16, torch.float32], ids=str)
def test_mixed_dtypes_are_left_to_pytorch(up_dtype: torch.dtype) -> None:
    pre_BTF, up_BTF, kind_BT = random_batch((2, 20, 30), torch.bfloat16)
    up_BTF = up_BTF.to(up_dtype)
    for act in (_Upcasts(), ACTIVATIONS["silu"]):
        activation_BTF, coefficient_BTF = bare(act, pre_BTF, up_BTF)
        h_BTF, got, maxima = run(act, pre_BTF, up_BTF, kind_BT)
        assert h_BTF.dtype == coefficient_BTF.dtype
        assert_same([h_BTF], [coefficient_BTF])
        expect_formula(pre_BTF, activation_BTF, coefficient_BTF, kind_BT, got, maxima)


def test_a_wanted_gradient_is_kept() -> None:
    pre_BTF = torch.randn(1, 5, 7, requires_grad=True)
    h_BTF, _ = kernels.tally_layer(nn.SiLU(), pre_BTF, None, torch.zeros(1, 5, dtype=torch.uint8), LayerTally.empty(7))
    h_BTF.sum().backward()
    assert pre_BTF.grad is not None


@pytest.mark.parametrize(
    ("pre_shape", "up_shape", "kind_shape"),
    [
        ((2, 5, 7), (2, 5, 6), (2, 5)),
        ((2, 5, 8), (2, 5, 8), (2, 5)),
        ((2, 5, 7), (2, 5, 7), (2, 4)),
        ((5, 7), (5, 7), (2, 5)),
    ],
    ids=["up", "tally", "kind", "dimensions"],
)
def test_shapes_that_do_not_fit_are_refused(pre_shape: tuple, up_shape: tuple, kind_shape: tuple) -> None:
    with pytest.raises(ValueError, match="expected"):
        kernels.tally_layer(
            nn.SiLU(), torch.zeros(pre_shape), torch.zeros(up_shape), torch.zeros(kind_shape), LayerTally.empty(7)
        )


class _Softmax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(-1)


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    ("make", "has_table"),
    [
        (nn.SiLU, True),
        (lambda: nn.LeakyReLU(0.1), True),
        (lambda: ClippedGELUActivation(-10, 10), None),
        (nn.PReLU, False),
        (_Softmax, False),
        (_Noise, False),
        (_Upcasts, False),
    ],
    ids=["silu", "leaky_relu", "clipped", "parameters", "mixes", "random", "changes_dtype"],
)
def test_only_functions_of_the_element_alone_become_tables(
    make: Callable[[], nn.Module], has_table: bool | None
) -> None:
    act = make().to(torch.bfloat16)
    for is_contiguous in (True, False):
        table = activation_table(act, torch.bfloat16, is_contiguous)
        if has_table is not None:
            assert (table is not None) == has_table
        assert table is activation_table(act, torch.bfloat16, is_contiguous)


def test_modules_share_a_table_only_if_they_are_alike() -> None:
    steep, flat, alike = nn.LeakyReLU(0.5), nn.LeakyReLU(0.25), nn.LeakyReLU(0.5)
    tables = [activation_table(act, torch.float16, True) for act in (steep, flat, alike)]
    assert tables[0] is tables[2]
    element = torch.tensor([-2.0], dtype=torch.float16).view(torch.int16).item() % 2**16
    assert [table[int(element)].item() for table in tables[:2] if table is not None] == [-1.0, -0.5]
