"""Models whose weights are quantised: how they are loaded, and what was left as it was.

Where transformers keeps weights quantised, projections stay modules whose products are read as any others. Where a
method would change the whole model at its first forward pass (compressed-tensors), or compute an activation inside a
kernel (MXFP4), its weights are dequantised when they are loaded; so are FP8 ones where there is no GPU for them.
"""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.offloading import own_tensors
from neurotally.profiler.model.plain_tensors import is_plain
from neurotally.profiler.model.probe import is_experts
from neurotally.profiler.model.stacks import weight_matrices

_ALWAYS_DEQUANTISED = ("compressed-tensors", "mxfp4")


@dataclass(frozen=True)
class Quantisation:
    """How the weights of a checkpoint are quantised."""

    method: str
    settings: dict[str, Any]
    """As the config has them: part of what a model is."""
    is_dequantised: bool
    """When it is loaded here."""

    def loading(self, config: Any) -> dict[str, Any]:
        """What `from_pretrained` needs beside what it takes from the checkpoint."""
        if self.method not in _ALWAYS_DEQUANTISED:
            return {}
        config = copy.deepcopy(config)
        config.quantization_config["dequantize"] = True
        return {"config": config}


def quantisation_of(config: Any) -> Quantisation | None:
    """That of a model's config; None where its weights are plain.

    Raises what transformers raises, each of its own kind, where the method is none that it knows, or needs a package
    or a device that isn't there; UnsupportedModelError where tokens aren't computed each by itself.
    """
    from transformers.quantizers import AutoHfQuantizer

    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    if not isinstance(settings, dict):
        settings = settings.to_dict()
    if settings.get("quant_method") == "bitsandbytes":
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else a line for each product
        _refuse_outliers(settings)
    try:
        quantiser = AutoHfQuantizer.from_config(copy.deepcopy(settings), pre_quantized=True)
    except ModuleNotFoundError as error:
        package = str(error.name).replace("_", "-")
        raise ModuleNotFoundError(f"its quantised weights need a package: pip install {package}") from error
    quantiser.validate_environment(device_map=None)
    method = str(getattr(quantiser.quantization_config.quant_method, "value", settings["quant_method"]))
    is_dequantised = method in _ALWAYS_DEQUANTISED or bool(getattr(quantiser.quantization_config, "dequantize", False))
    return Quantisation(method, copy.deepcopy(settings), is_dequantised)


def _refuse_outliers(settings: dict[str, Any]) -> None:
    """UnsupportedModelError where bitsandbytes lets the tokens of a batch decide how each of them is computed."""
    threshold = settings.get("llm_int8_threshold", 6.0)
    if settings.get("load_in_8bit") and threshold > 0:
        raise UnsupportedModelError(
            f"with llm_int8_threshold {threshold} bitsandbytes computes a column in 16 bits, not 8, for all tokens of "
            "a batch if one of them is an outlier there, so that a token's neurons depend on other texts; expected 0.0 "
            "in the quantization_config of its config.json"
        )


def in_dtypes_of(model: nn.Module, empty: nn.Module) -> None:
    """Bring dequantised weights into the dtypes of the same model without weights; scales may have decided theirs."""
    expected = {name: parameter.dtype for name, parameter in empty.named_parameters()}
    for name, parameter in model.named_parameters():
        if is_plain(parameter):
            parameter.data = parameter.data.to(expected.get(name, parameter.dtype))


def left_plain(blocks: Sequence[nn.Module]) -> list[str]:
    """The matrices, and the experts, of layers that a quantiser left in 16 bits or more, by layer and name in it."""
    return [f"{layer}.{name}" for layer, block in enumerate(blocks) for name in _left_in(block)]


def _left_in(block: nn.Module) -> Iterator[str]:
    projections = {*weight_matrices(block), *filter(is_experts, block.modules())}
    for name, module in block.named_modules():
        if module in projections and all(is_plain(tensor) for tensor in own_tensors(module) if tensor.dim() >= 2):
            yield name
