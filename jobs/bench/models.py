"""The models that `neurotally bench` measures: known shapes or a config.json, with random weights on the device."""

import json
from pathlib import Path
from typing import Any

import torch

from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model.load import LoadedModel, prepare_model

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3m": {
        "model_type": "llama", "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 5,
        "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 4096,
    },
    "llama-34m": {
        "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 8192,
    },
    "neox-34m": {
        "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8,
        "num_attention_heads": 8, "vocab_size": 8192, "use_parallel_residual": False, "hidden_act": "gelu",
    },
    "qwen3-moe-83m": {
        "model_type": "qwen3_moe", "hidden_size": 512, "moe_intermediate_size": 352, "num_hidden_layers": 8,
        "num_experts": 16, "num_experts_per_tok": 4, "num_attention_heads": 8, "num_key_value_heads": 8,
        "head_dim": 64, "vocab_size": 8192,
    },
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 48,
        "num_experts": 128, "num_experts_per_tok": 8, "num_attention_heads": 32, "num_key_value_heads": 4,
        "head_dim": 128, "vocab_size": 151936,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0,
    },
    "polycoder-2.7b": {
        "model_type": "gpt_neox", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 50304, "use_parallel_residual": False, "hidden_act": "gelu",
    },
}  # fmt: skip
"""Known shapes, by name; random weights."""


def random_model(
    shape: str, layers: int | None, dtype: str, device: str, *, fused: bool = False
) -> tuple[LoadedModel, str]:
    """A model of SHAPES or of a config.json with random weights, and its name; raises InputError."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"max_position_embeddings": 8192, **(SHAPES.get(shape) or _read_shape(shape))}
    if layers is not None:
        settings["num_hidden_layers"] = layers
        settings.pop("layer_types", None)
    torch.manual_seed(0)
    try:
        config = AutoConfig.for_model(**settings)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--shape {shape}: {first_line(error)}") from error
    name = shape if shape in SHAPES else Path(shape).stem
    if layers is not None:
        name += f"-{layers}-layers"
    return prepare_model(model, _NoTokenizer(), name, None, dtype, fused=fused), name


def _read_shape(shape: str) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(Path(shape).read_text())
        settings["model_type"]  # a config.json always has it
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"--shape {shape}: expected one of {', '.join(SHAPES)}, or a config.json") from error
    return settings


class _NoTokenizer:
    """Random ids need none."""

    all_special_ids: tuple[int, ...] = ()

    def get_vocab(self) -> dict[str, int]:
        """No token."""
        return {}

    def __call__(self, _text: str) -> dict[str, list[int]]:
        return {"input_ids": []}


def flops_per_token(model: LoadedModel, row_tokens: int) -> float:
    """Of a token's way through the body: two per weight of its matrices, and causal attention."""
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    return float(2 * matrices + 2 * row_tokens * model.facts.width * len(model.blocks))
