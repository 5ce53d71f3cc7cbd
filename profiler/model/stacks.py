"""The stacks of a language model, a decoder, an encoder, or both, and their blocks: found by structure, not by name."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.offloading import input_device
from neurotally.profiler.model.plain_tensors import share_storage
from neurotally.profiler.model.threads import few_enough_threads

_ACTIVATION_CLASSES = tuple(
    {entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()}
    | {getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"}
)
_MATRICES = ("weight", "weight_packed", "qweight")
"""What projections call their matrix: the latter two where it is packed (compressed-tensors; GPTQ and AWQ)."""
_ACTIVATION_NAME = re.compile(r"gelu|silu|swish|relu|mish", re.IGNORECASE)
_EXPERTS = re.compile(r"(experts?|moe|moe_?block|moe_?layer)$", re.IGNORECASE)
"""Classes, and names in a layer, of what sends tokens to experts; dense models of the same families have none."""


class Stack(NamedTuple):
    """The layers of an encoder or of a decoder."""

    module: nn.Module
    """What has them and gives the last hidden states."""
    blocks: nn.ModuleList


def run_stack(model: Any, module: nn.Module, ids_BT: Tensor, **context: Tensor | None) -> Tensor:
    """The last hidden states [B, T, D] of right-padded rows: no head, no cache.

    `context`: attention masks and an encoder's states; None is left out.
    """
    device = input_device(model)
    given = {name: value.to(device) for name, value in context.items() if value is not None}
    with torch.inference_mode(), few_enough_threads(ids_BT.numel(), device):
        output = module(input_ids=ids_BT.to(device), use_cache=False, **given)
    hidden_BTD: Tensor = output[0]
    return hidden_BTD


def find_stacks(model: Any, name: str) -> tuple[Stack, ...]:
    """The stacks of a model: of an encoder-decoder the encoder and the decoder, of all others one."""
    config = model.config.get_text_config()
    if model.config.is_encoder_decoder:
        return tuple(Stack(part, stack_layers(part)) for part in (model.get_encoder(), model.get_decoder()))
    num_layers = getattr(config, "num_hidden_layers", None)
    if config.model_type == "longcat_flash":  # it counts its attentions, two in a layer
        num_layers = config.num_layers
    if not num_layers:
        raise UnsupportedModelError(
            f"{name} ({config.model_type}): its config says num_hidden_layers={num_layers!r}, expected 1 or more; "
            "this model isn't supported"
        )
    body = find_decoder(model, num_layers)
    return (Stack(body, stack_layers(body, num_layers)),)


def find_decoder(model: Any, num_layers: int) -> nn.Module:
    """The part of a model of one stack that has its layers and gives the last hidden states.

    `get_decoder()` goes by names and may give a head that is called "decoder". A model without a head is its own body.
    """
    if model.base_model is model and model.get_output_embeddings() is None:
        return model  # type: ignore[no-any-return]
    named: list[nn.Module] = [model.get_decoder(), model.base_model]
    for part in named:
        if part is not model and _layer_lists(part, num_layers):
            # Of a vision-language model it may be a language model with a head of its own (Llama 4).
            return find_decoder(part, num_layers) if hasattr(part, "lm_head") else part
    children: list[nn.Module] = [part for part in model.children() if _layer_lists(part, num_layers)]
    if len(children) == 1:
        return children[0]
    raise UnsupportedModelError(
        f"{type(model).__name__}: found no list of {num_layers} decoder layers; this model isn't supported"
    )


def stack_layers(stack: nn.Module, num_layers: int | None = None) -> nn.ModuleList:
    """A stack's list of blocks: its one outermost ModuleList of `num_layers` modules with weight matrices.

    None: of so many as there are. Where there are several, the one whose blocks have activations; an
    UnsupportedModelError naming them if that leaves none or more than one.
    """
    lists = _layer_lists(stack, num_layers)
    if len(lists) > 1:
        with_activation = {
            name: blocks for name, blocks in lists.items() if any(is_activation(part) for part in blocks.modules())
        }
        lists = with_activation or lists
    if len(lists) != 1:
        of = f"{num_layers} layers" if num_layers else "layers"
        what = f"several lists of {of} ({', '.join(lists)})" if lists else f"no list of {of}"
        raise UnsupportedModelError(
            f"{type(stack).__name__}: expected one list of layers, found {what}; this model isn't supported"
        )
    return next(iter(lists.values()))


def _layer_lists(stack: nn.Module, num_layers: int | None) -> dict[str, nn.ModuleList]:
    """Outermost ModuleLists of `num_layers` modules that have a weight matrix each, by their names in the stack."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in stack.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == (num_layers or len(module)):
            is_inside = any(name.startswith(f"{outer}.") for outer in found)
            if not is_inside and all(weight_matrices(block) for block in module):
                found[name] = module
    return found


def weight_matrices(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that have a matrix of weights: its projections, of whatever class, quantised or not."""
    return [
        module
        for module in block.modules()
        if any(isinstance(matrix := getattr(module, name, None), Tensor) and matrix.dim() == 2 for name in _MATRICES)
    ]


def product_of(values: Tensor, products: Sequence[tuple[nn.Module, Tensor]]) -> tuple[nn.Module, int] | None:
    """The last matrix in whose product's memory a tensor is, and the first of its columns there.

    `products`: matrices and what they gave, in the order in which they ran.
    """
    for matrix, output in reversed(products):
        if share_storage(output, values):
            return matrix, int(values.storage_offset()) - int(output.storage_offset())
    return None


def norms(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that scale each element of a vector by a `weight` of its own."""
    weights = [(module, getattr(module, "weight", None)) for module in block.modules()]
    return [module for module, weight in weights if isinstance(weight, Tensor) and weight.dim() == 1]


def find_experts(module: nn.Module) -> list[str]:
    """Names of a module's parts that are experts or send tokens to them."""
    return [
        name
        for name, part in module.named_modules()
        if name and (_EXPERTS.search(type(part).__name__) or _EXPERTS.fullmatch(name.rpartition(".")[2]))
    ]


def is_activation(module: nn.Module) -> bool:
    """Whether a module is an elementwise activation, by its class."""
    if any(True for _ in module.children()):
        return False
    if isinstance(module, _ACTIVATION_CLASSES):
        return True
    return not any(True for _ in module.parameters()) and bool(_ACTIVATION_NAME.search(type(module).__name__))
