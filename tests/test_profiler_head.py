"""Body and head: their bits don't depend on the number of threads."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from neurotally.profiler.model.load import load_model
from neurotally.profiler.passes.head import of_many_rows


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 64, 65])
def test_small_products_have_the_same_bits_for_any_number_of_threads(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND, weight_VD = torch.randn(rows, 192, generator=generator), torch.randn(4096, 192, generator=generator)
    expected_NV = x_ND.double() @ weight_VD.double().T
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.append(of_many_rows(lambda of_nD: functional.linear(of_nD, weight_VD), x_ND))
        assert found[-1].shape == (rows, 4096)
        torch.testing.assert_close(found[-1].double(), expected_NV, rtol=1e-5, atol=1e-4)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_short_rows_have_the_same_bits_for_very_many_threads(model_folder: Path) -> None:
    model = load_model(str(model_folder), "cpu", "float32")
    for columns in range(64, 120, 3):
        ids_BT = torch.arange(columns)[None]
        torch.set_num_threads(1)
        expected_BTD = model.run_body(ids_BT)
        torch.set_num_threads(64)
        assert torch.equal(model.run_body(ids_BT), expected_BTD), columns
        assert torch.get_num_threads() == 64
