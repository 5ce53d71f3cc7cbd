"""Layers below the first that is changed, computed once a batch, against all computed every time."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model
from torch import Tensor

from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.shared_layers import SharedLayers

IDS_BT = torch.randint(0, 600, (3, 30), generator=torch.Generator().manual_seed(1))
OTHER_IDS_BT = torch.randint(0, 600, (2, 45), generator=torch.Generator().manual_seed(2))


def deep(family: str, layers: int = 5) -> Any:
    """A hooked model of more layers than the families' usual."""
    config = tiny_model(family).config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return hook_model(type(tiny_model(family))(config).eval(), family)


def count_blocks(model: Any, counted: Counter[int]) -> None:
    """How often each block is computed, not how often it is asked for: by its first part."""
    for number, block in enumerate(model.blocks):
        part = next(block.children())
        part.register_forward_hook(lambda *_, number=number: counted.update([number]))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "starcoder2"])
def test_the_same_bits_in_fewer_layers(family: str) -> None:
    model = deep(family)
    masks = [{0: [1, 2]}, {1: [3], 4: [0]}, {1: [5]}, {3: range(40)}, {4: [7]}, {}, {}]
    expected = {}
    for name, ids_BT in (("one", IDS_BT), ("other", OTHER_IDS_BT)):
        for number, mask in enumerate(masks):
            with switched_off(model, mask):
                expected[name, number] = model.run_body(ids_BT)
    counted: Counter[int] = Counter()
    shared = SharedLayers(model)
    count_blocks(model, counted)
    for name, ids_BT in (("one", IDS_BT), ("other", OTHER_IDS_BT)):
        shared.forget()
        for number, mask in enumerate(masks):
            with switched_off(model, mask), shared.unchanged_below(min(mask, default=5)):
                found_BTD = model.run_body(ids_BT)
            assert torch.equal(found_BTD, expected[name, number]), (name, mask)
    # the first block with the first two masks, the last with the first six
    assert counted == {block: 2 * times for block, times in enumerate((2, 4, 4, 5, 6))}
    assert not any("forward" in vars(block) for block in model.blocks)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_every_family_comes_out_the_same(family: str) -> None:
    model = hook_model(tiny_model(family), family)
    last = max(point.layer for point in model.hook_points)
    masks: list[Any] = [{last: [3, 5]}, {last: [1]}, {}]
    shared = SharedLayers(model)
    for mask in masks:
        with switched_off(model, mask):
            expected_BTD = model.run_body(IDS_BT)
            with shared.unchanged_below(min(mask, default=len(model.blocks))):
                found_BTD = model.run_body(IDS_BT)
        assert torch.equal(found_BTD, expected_BTD)


def share_a_part(model: Any) -> None:
    """Two layers have one network."""
    model.blocks[2].mlp = model.blocks[0].mlp


def look_back(model: Any) -> None:
    """What a layer computes depends on whether another was, beside what it is given."""
    seen: list[Tensor] = []
    model.body.register_forward_pre_hook(lambda *_: seen.clear())
    model.blocks[0].mlp.register_forward_hook(lambda *call: seen.append(call[-1].mean()))
    model.blocks[4].mlp.register_forward_hook(lambda *call: call[-1] + sum(seen))


@pytest.mark.parametrize("change", [share_a_part, look_back])
def test_where_layers_are_more_than_what_they_give_all_are_computed(change: Callable[[Any], None]) -> None:
    model = deep("llama")
    change(model)
    counted: Counter[int] = Counter()
    shared = SharedLayers(model)
    count_blocks(model, counted)
    expected_BTD = model.run_body(IDS_BT)
    counted.clear()
    for _ in range(2):
        with shared.unchanged_below(5):
            assert torch.equal(model.run_body(IDS_BT), expected_BTD)
    assert counted == dict.fromkeys(range(5), 2)


def test_blocks_may_write_into_what_they_are_given() -> None:
    model = deep("llama")
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _block, args: (args[0].mul_(0.5), None)[1])
    expected_BTD = model.run_body(IDS_BT)
    counted: Counter[int] = Counter()
    shared = SharedLayers(model)
    count_blocks(model, counted)
    for layer in (2, 2, 3):
        with shared.unchanged_below(layer):
            assert torch.equal(model.run_body(IDS_BT), expected_BTD)
    assert counted[0] == 1
