"""What a model's config says: if it is of a kind we read, how long its rows may be, what decides its forward pass."""

import functools
import inspect
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.probe import is_experts
from neurotally.profiler.model.stacks import find_experts

_DEFAULT_ROW_TOKENS = 2048
_UNLIMITED = 2**31 - 1
_MAX_LAYERS = 10_000
"""More are taken for a damaged config: they would be made before anything could tell that they have no weights."""
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions")
_WIDTH_DEPENDENT_ROPE = ("longrope", "dynamic")
_EXPERT_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_HEADS_OF_ENCODERS = ("MaskedLM", "PreTraining")
_NOT_DECISIVE = re.compile(
    r"_name_or_path|architectures|auto_map|transformers_version|(torch_)?dtype"  # names and versions
    r"|\w+_token_id|(begin_)?suppress_tokens"  # which tokens begin, end and fill: a tokenizer's matter
    r"|\w*initializer_\w+|(\w+_)?init_std|init_device"  # how fresh weights are drawn
    r"|(\w+_)?dropout(_p|_prob|_rate)?|\w+_pdrop|(\w+_)?layerdrop"  # off in eval mode
    r"|output_(attentions|hidden_states|router_logits)|return_dict|use_cache"  # what else a pass returns
    r"|id2label|label2id|num_labels|problem_type"  # of classifiers
)
"""Keys that can't change a hidden state or a logit in eval mode. All others are taken to do so."""


def refuse_other_kinds(config: Any, model_id: str, trust_remote_code: bool = False) -> None:
    """Raise InputError, before any weight is read, unless this is the config of a language model that we may read."""
    # Reformer cuts a padded row into chunks; BigBird's sparse attention, which isn't causal, begins at 705 tokens; MRA
    # approximates attention by blocks. BigBird-Pegasus's decoder alone has full attention.
    is_bird = config.model_type == "big_bird" or (config.model_type == "bigbird_pegasus" and config.is_encoder_decoder)
    is_sparse = is_bird and getattr(config, "attention_type", None) == "block_sparse"
    if config.model_type in ("reformer", "mra") or is_sparse:
        raise UnsupportedModelError(
            f"{model_id} ({config.model_type}) isn't supported: what its attention computes depends on the length to "
            "which a row is padded"
        )
    kind = ", ".join(getattr(config, "architectures", None) or []) or config.model_type
    auto = auto_class(config)
    if type(config) not in auto._model_mapping and (config.is_encoder_decoder or not hasattr(config, "auto_map")):
        raise InputError(
            f"{model_id} ({kind}) is no language model that we can read: transformers' {auto.__name__} has no entry "
            f"for {config.model_type}"
        )
    text = config.get_text_config()
    num_layers = getattr(text, "num_hidden_layers", None)
    if isinstance(num_layers, int) and num_layers > _MAX_LAYERS:
        raise InputError(f"{model_id}: its config says num_hidden_layers={num_layers}, expected {_MAX_LAYERS} or fewer")
    # Dense models may have such keys too, so the model is looked at, without its weights.
    if any(getattr(text, key, None) not in (None, 0, 1) for key in _EXPERT_KEYS):
        _refuse_other_experts(config, model_id, trust_remote_code)


def auto_class(config: Any) -> Any:
    """The auto class that loads all weights of a model's checkpoint: of a vision-language model its towers, too.

    An encoder's checkpoint names a model with a head for masked tokens, or one without a head.
    """
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
    )  # fmt: skip
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as COMPOSITE
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    named = getattr(config, "architectures", None) or []
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if any(head in name for head in _HEADS_OF_ENCODERS for name in named):
        return AutoModelForMaskedLM
    if type(config) in AutoModelForMaskedLM._model_mapping and MODEL_MAPPING_NAMES.get(config.model_type) in named:
        return AutoModel
    is_named = COMPOSITE.get(config.model_type) in named
    is_only_one = type(config) not in AutoModelForCausalLM._model_mapping and config.model_type in COMPOSITE
    return AutoModelForImageTextToText if is_named or is_only_one else AutoModelForCausalLM


def without_pooler(config: Any) -> dict[str, Any]:
    """Options to load an encoder without a head without the layer that pools its states: no state depends on it, and
    a checkpoint may lack it."""
    from transformers import AutoModel

    auto = auto_class(config)
    if auto is not AutoModel:
        return {}
    made = inspect.signature(auto._model_mapping[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in made else {}


def is_encoder(config: Any) -> bool:
    """Whether a model is an encoder alone, by its checkpoint's class; of others loading finds out."""
    from transformers import AutoModel, AutoModelForMaskedLM

    return auto_class(config) in (AutoModel, AutoModelForMaskedLM)


def empty_model(config: Any, trust_remote_code: bool, dtype: torch.dtype | None = None) -> Any:
    """The model of a config, in eval mode and without its weights: all of them on the device `meta`.

    It may have been given before, and be given again: it is to be looked at alone.
    """
    return _empty_model(
        _Described(type(config), config.to_json_string(use_diff=False), config), trust_remote_code, dtype
    )


@dataclass(frozen=True)
class _Described:
    """A config, equal to any other that says the same."""

    kind: type
    text: str
    config: Any = field(compare=False)


@functools.lru_cache(maxsize=2)  # in the checkpoint's dtype, and in the one that it runs in: it takes seconds
def _empty_model(described: _Described, trust_remote_code: bool, dtype: torch.dtype | None) -> Any:
    config = described.config
    options = {"trust_remote_code": trust_remote_code, **without_pooler(config)}
    with torch.device("meta"):
        return auto_class(config).from_config(config, dtype=dtype, **options).eval()


def weight_bytes(model: Any) -> int:
    """What the weights of a model take, with or without their values, in the dtypes in which they are loaded."""
    # Some families keep some weights in float32 beside a 16-bit dtype: what transformers itself goes by.
    kept = [re.compile(name.replace("*", ".*")) for name in model._get_dtype_plan(model.dtype)]
    return sum(
        parameter.numel() * (4 if any(one.search(name) for one in kept) else parameter.element_size())
        for name, parameter in model.named_parameters()
    )


def _refuse_other_experts(config: Any, model_id: str, trust_remote_code: bool) -> None:
    try:
        model = empty_model(config, trust_remote_code)
    except Exception:  # what can't be made without weights is looked at with them, when its hook points are found
        return
    if any(is_experts(module) for module in model.modules()):
        return
    if experts := find_experts(model):
        raise UnsupportedModelError(
            f"{model_id} ({config.model_type}) is a mixture of experts ({experts[0]}) of a kind that isn't known: not "
            "supported yet"
        )


def row_limits(config: Any, body: nn.Module) -> tuple[int, int]:
    """(default, longest) row in tokens, by the text config and the table of positions.

    The decoder of an encoder-decoder reads a start token besides.
    """
    limits = [getattr(config, key) for key in _CONTEXT_KEYS if getattr(config, key, None)]
    table = _table_after_pad(body)
    if table is not None and table.padding_idx is not None:
        limits.append(table.num_embeddings - table.padding_idx - 1)
    longest = min(limits) - config.is_encoder_decoder if limits else _UNLIMITED
    originals = [getattr(config, "original_max_position_embeddings", None)]
    rope_settings = getattr(config, "rope_parameters", None) or {}
    by_kind = [value for value in rope_settings.values() if isinstance(value, dict)]  # of layers; else there is one
    for rope in by_kind or [rope_settings]:
        originals.append(rope.get("original_max_position_embeddings"))
        # Their factors depend on the width of the batch beyond the original context.
        if rope.get("rope_type") in _WIDTH_DEPENDENT_ROPE:
            longest = min([longest, *filter(None, originals)])
    return min([_DEFAULT_ROW_TOKENS, longest, *filter(None, originals)]), longest


def decoder_start(model: Any) -> int | None:
    """The token with which the decoder of an encoder-decoder begins, as transformers' `generate` has it."""
    if not model.config.is_encoder_decoder:
        return None
    for settings in (model.config, getattr(model, "generation_config", None)):
        for key in ("decoder_start_token_id", "bos_token_id"):
            if isinstance(token := getattr(settings, key, None), int):
                return token
    raise UnsupportedModelError(
        f"{model.config.model_type} isn't supported: its config has no decoder_start_token_id, with which its decoder "
        "would begin"
    )


def _table_after_pad(body: nn.Module) -> nn.Embedding | None:
    """RoBERTa's table of positions, whose first row in use comes after the pad token's."""
    for name, module in body.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and "position" in name.rpartition(".")[2]
            and module.padding_idx is not None
        ):
            return module
    return None


def forward_config(config: Any, body: nn.Module) -> dict[str, Any]:
    """The values of the text config that decide the forward pass beside the weights. JSON-ready, equal after JSON."""
    values = config.to_dict()
    kept = {key: value for key, value in values.items() if not _NOT_DECISIVE.fullmatch(key)}
    kept["quantization_config"] = values.get("quantization_config")
    if _table_after_pad(body) is not None:
        kept["pad_token_id"] = values.get("pad_token_id")
    made: dict[str, Any] = json.loads(json.dumps(_finite(kept), default=str))
    return made


def _finite(value: Any) -> Any:
    """The same with infinities, which JSON can't spell, as text."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
