"""Tallies of experts, against formulas in float64 over each expert's own tokens."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sorted_triggers import as_list
from torch import Tensor, nn

from neurotally.kernels import tally, triggers
from neurotally.kernels.activations import cpu_threads
from neurotally.kernels.layer_tally import PAD, SPECIAL, TOKEN, LayerTally, Statistics
from neurotally.kernels.routing import Routing, route
from neurotally.kernels.triggers import LayerTriggers

ROWS, TOKENS, EXPERTS, TOP = 3, 70, 5, 2


class Case(NamedTuple):
    """What an experts' product gives, and whose its rows are."""

    pre_SF: Tensor
    up_SF: Tensor | None
    kind_S: Tensor
    routing: Routing
    expert_S: Tensor
    cell_S: Tensor
    weight_S: Tensor


def make(width: int, dtype: torch.dtype = torch.float32, gated: bool = True, seed: int = 0) -> Case:
    """Rows in no order at all; the last expert gets none."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.stack([torch.randperm(EXPERTS - 1, generator=generator)[:TOP] for _ in range(ROWS * TOKENS)])
    order = torch.randperm(index.numel(), generator=generator)
    expert_S, cell_S = index.flatten()[order], order // TOP
    weight_S = torch.rand(index.numel(), generator=generator)[order]
    product = torch.randn(len(expert_S), 2 * width, generator=generator).to(dtype)
    kind_S = torch.randint(0, 4, (ROWS * TOKENS,), generator=generator, dtype=torch.uint8)[cell_S]
    routing = route(expert_S, cell_S, weight_S, TOKENS)
    up_SF = product[:, width:] if gated else None
    return Case(product[:, :width], up_SF, kind_S, routing, expert_S, cell_S, weight_S)


def tallied(case: Case, statistics: Statistics = Statistics.EVERYTHING) -> tuple[Tensor, Any, LayerTally]:
    width = case.pre_SF.shape[1]
    into = LayerTally.empty(EXPERTS * width, has_experts=True)
    kind_S = case.kind_S[case.routing.row_S]
    coefficient_SF, maxima = tally.tally_layer(
        nn.SiLU(), case.pre_SF, case.up_SF, kind_S, into, statistics, case.routing
    )
    return coefficient_SF, maxima, into


@pytest.fixture(params=["compiled", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr("neurotally.kernels.tally.kernels_for_these", lambda *_: "plain")
        monkeypatch.setattr(triggers, "kernels_for", lambda *_: "plain")
    return str(request.param)


def test_the_compiled_loop_is_there() -> None:
    assert tally.kernels_for(torch.device("cpu"), torch.float32) == "compiled"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [48, 37])
@pytest.mark.parametrize("gated", [True, False])
def test_sums_are_those_of_each_experts_tokens(kernels: str, dtype: torch.dtype, width: int, gated: bool) -> None:
    case = make(width, dtype, gated)
    coefficient_SF, _, into = tallied(case)
    activation_SF = nn.functional.silu(case.pre_SF)
    expected_SF = activation_SF if case.up_SF is None else activation_SF * case.up_SF
    assert torch.equal(coefficient_SF, expected_SF)
    pre, a, c = (x.double().numpy() for x in (case.pre_SF, activation_SF, expected_SF))
    kind, expert_S = case.kind_S.numpy(), case.expert_S.numpy()
    weight = case.weight_S.double().numpy()[:, None]
    for expert in range(EXPERTS):
        of = {name: sums[expert * width : (expert + 1) * width].numpy() for name, sums in into.items()}
        mine = (expert_S == expert) & (kind != PAD)
        assert (of["active"] == (pre[mine] > 0).sum(0)).all()
        assert (of["active_special"] == (pre[mine & (kind == SPECIAL)] > 0).sum(0)).all()
        for name, terms in (
            ("activation_sum", a), ("coefficient_sum", c), ("coefficient_sum_absolute", np.abs(c)),
            ("coefficient_sum_squares", c**2), ("weighted_coefficient_sum", weight * c),
        ):  # fmt: skip
            assert (np.abs(of[name] - terms[mine].sum(0)) <= 1e-6 * np.abs(terms[mine]).sum(0)).all(), name
        assert (of["coefficient_max"] == c[mine].max(0, initial=-np.inf)).all()
        assert (of["coefficient_min"] == c[mine].min(0, initial=np.inf)).all()


@pytest.mark.parametrize("statistics", [Statistics.COUNTS, Statistics.MOMENTS])
def test_what_isnt_asked_for_stays(kernels: str, statistics: Statistics) -> None:
    *_, into = tallied(make(40), statistics)
    *_, everything = tallied(make(40))
    empty = LayerTally.empty(EXPERTS * 40, has_experts=True)
    for name in into:
        is_asked_for = statistics == Statistics.MOMENTS or name.startswith("active")
        is_count = name in ("active", "active_special")
        assert torch.equal(into[name], (everything if is_asked_for and (is_count or statistics > 1) else empty)[name])


def test_the_bits_are_the_same_for_any_number_of_threads() -> None:
    case = make(200, torch.bfloat16)
    runs = []
    for number in (1, 2, 3):
        with cpu_threads(number):
            runs.append(tallied(case))
    for coefficient_SF, maxima, into in runs[1:]:
        assert torch.equal(coefficient_SF, runs[0][0])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(maxima, runs[0][1], strict=True))
        assert all(torch.equal(into[name], runs[0][2][name]) for name in into)


def candidates(case: Case, coefficient_SF: Tensor) -> Iterator[tuple[int, float, int, int]]:
    """(neuron, value, document, position): the best of every neuron in each row of the batch, its first place."""
    width = coefficient_SF.shape[1]
    for expert in range(EXPERTS):
        for row in range(ROWS):
            mine = (case.expert_S == expert) & (case.cell_S // TOKENS == row) & (case.kind_S == TOKEN)
            rows = mine.nonzero()[:, 0]
            rows = rows[case.cell_S[rows].argsort(stable=True)]
            for neuron in range(width):
                values = coefficient_SF[rows, neuron].float()
                if len(values) and values.max() > 0:
                    best = int(values.argmax())
                    cell = int(case.cell_S[rows[best]])
                    yield expert * width + neuron, float(values[best]), 10 + row, cell % TOKENS


def test_triggers_are_the_best_of_each_document(kernels: str) -> None:
    case = make(37, torch.bfloat16)
    coefficient_SF, maxima, _ = tallied(case)
    lists = LayerTriggers(EXPERTS * 37, 2, "cpu", None)
    sorted_cell_S = case.routing.cell_S
    lists.add(maxima, (10 + sorted_cell_S // TOKENS).int(), (sorted_cell_S % TOKENS).int(), case.routing.runs)
    by_neuron: dict[int, list[tuple[float, int, int]]] = {}
    for neuron, value, document, position in candidates(case, coefficient_SF):
        by_neuron.setdefault(neuron, []).append((-value, document, position))
    expected = [(neuron, *entry) for neuron in sorted(by_neuron) for entry in sorted(by_neuron[neuron])[:2]]
    found = [(neuron, -value, *where) for neuron, value, *where in as_list(lists.best())]
    assert found == expected
    assert len(expected) > 100
