"""Body and head: their bits are the model's own and don't depend on the number of threads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from mixtures import tiny_mixture
from torch.nn import functional

from neurotally.profiler.model.load import load_model, prepare_model
from neurotally.profiler.passes.head import head_logits, of_many_rows
from neurotally.profiler.passes.lens import Lens


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


@pytest.mark.parametrize("name", ["mistral3", "llava", "qwen3_vl", "idefics3"])
def test_a_vision_language_models_head_gives_its_own_logits(name: str, tokenizer: Any) -> None:
    check_head(tiny_model(name), tokenizer)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_a_mixtures_head_gives_its_own_logits(name: str, tokenizer: Any) -> None:
    check_head(tiny_mixture(name), tokenizer)


def check_head(bare: Any, tokenizer: Any) -> None:
    model = prepare_model(bare, tokenizer, "tiny", None, "float32")
    ids_BT = torch.randint(3, 600, (1, 80), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected_NV = bare(input_ids=ids_BT, use_cache=False).logits[0]
    assert torch.equal(head_logits(model, model.run_body(ids_BT)[0]), expected_NV)
    Lens(model)  # refuses a last layer that isn't the model's own output
