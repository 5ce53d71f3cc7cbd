"""How transformers would spread a model over devices, told from its config before any weight is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.config import empty_model
from neurotally.profiler.model.own_experts import has_own_experts

_KEYS = ("k_proj", "kv_b_proj", "qkv_proj", "query_key_value")
"""What gives attention its keys, where devices share it head by head."""
_SPREADING = re.compile("colwise|rowwise")
"""In names of styles."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WIDTHS = ("intermediate_size", "moe_intermediate_size")
"""Of configs; what else there is of networks is looked at when the shards are loaded."""


@dataclass(frozen=True)
class ShardPlan:
    """How transformers spreads a model over devices."""

    styles: Mapping[str, str]
    """By names of modules and parameters, layers as `*`; empty where it can't."""
    shared: float
    """Of all weights, those that devices share; of the others each has all."""
    own_experts: str = ""
    """The class of experts that devices can't share, if it has such."""

    def held(self, devices: int) -> float:
        """Of all weights, those that each of so many devices holds."""
        return 1 - self.shared + self.shared / devices


def shard_plan(config: Any, trust_remote_code: bool, dtype: torch.dtype | None = None) -> ShardPlan:
    """That of a model, told from its config; the dtype in which it runs makes no difference."""
    model = empty_model(config, trust_remote_code, dtype)
    styles = dict(getattr(model, "tp_plan", None) or {})
    number = {name: parameter.numel() for name, parameter in model.named_parameters()}
    shared = sum(number[name] for name in number if _SPREADING.search(_style(name, styles)))
    own_experts = next((type(part).__name__ for part in model.modules() if has_own_experts(part)), "")
    return ShardPlan(styles, shared / sum(number.values()), own_experts)


def _style(parameter: str, styles: Mapping[str, str]) -> str:
    """Of a parameter, or else of its module."""
    name = _NUMBER.sub("*", parameter)
    return styles.get(name) or styles.get(name.rpartition(".")[0], "")


def refuse_unshardable(plan: ShardPlan, config: Any, model_id: str, devices: int) -> None:
    """InputError, before any weight is read, where so many devices can't hold a model together."""
    option = f"--devices-per-worker {devices}"
    if not plan.styles:
        raise UnsupportedModelError(
            f"{option}: {model_id} ({config.model_type}) has no plan in transformers for several devices (tp_plan); "
            "leave the option out"
        )
    if plan.own_experts:
        raise UnsupportedModelError(
            f"{option}: {model_id} ({config.model_type}) has experts of a kind ({plan.own_experts}) that devices can't "
            "share yet; leave the option out"
        )
    text = config.get_text_config()
    shared = {f"neurons a network ({key})": getattr(text, key, None) for key in _WIDTHS}
    if any(name.endswith(_KEYS) and style == "colwise" for name, style in plan.styles.items()):
        heads = text.num_attention_heads
        shared["attention heads"] = heads
        shared["key and value heads"] = getattr(text, "num_key_value_heads", None) or heads
    for what, number in shared.items():
        if isinstance(number, int) and number % devices:
            raise InputError(f"{option}: {model_id} has {number:,} {what}; expected a number that divides them")
