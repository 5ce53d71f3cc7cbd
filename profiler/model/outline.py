"""What a model's config alone tells of it: its networks, its limits, the bytes of its weights. None of these is read.

The model is made on the device `meta`, whose tensors have shapes and no values, and goes through the same steps as one
that is loaded, as far as they need no values: of what kind it is, where its body and its hook points are. What loading
also sees, that the checkpoint is whole and that what is read is what the model computes, stays open.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.overrides import TorchFunctionMode

from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model import verify
from neurotally.profiler.model.config import empty_model, is_encoder, row_limits, weight_bytes
from neurotally.profiler.model.experts import has_interface, routed_inputs
from neurotally.profiler.model.hooking import points_of
from neurotally.profiler.model.load import (
    checkpoint_dtype_of,
    load_config,
    quiet_transformers,
    resolve_device,
    running_dtype,
    split_revision,
    try_load,
)  # fmt: skip
from neurotally.profiler.model.probe import experts_hook_point, is_experts, number_neurons
from neurotally.profiler.model.quantised import quantisation_of
from neurotally.profiler.model.stacks import Stack, find_stacks
from neurotally.profiler.networks import ENCODER, Network, Networks, has_experts

_CHOICE_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "moe_topk", "moe_k")
"""Of how many experts get each token, where these have a way of their own to compute."""
_WIDTH_KEYS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff")


@dataclass(frozen=True)
class Outline:
    """A model without its weights."""

    id: str
    revision: str | None
    family: str
    """The `model_type` of its config."""
    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    networks: Networks
    """All of them, by layer and first neuron; see `pass_failed`."""
    experts_per_token: int | None
    """None where there are no experts, or where it couldn't be seen."""
    vocabulary: int
    attention: str
    row_tokens: int
    """The default."""
    max_row_tokens: int
    checkpoint_dtype: str
    dtype: str
    """In which it would run on `device_type`."""
    device_type: str
    num_weights: int
    weight_bytes: int
    """Of the weights as they are loaded; about, where they stay quantised: those of the checkpoint."""
    checkpoint_bytes: int | None
    """Of the weights as they are stored; None where neither a folder nor an index of files tells."""
    quantization: str | None
    """The method of its `quantization_config`."""
    is_dequantised: bool
    """Whether loading undoes that here."""
    pass_failed: str = ""
    """Why no pass without values went through the model; then `networks` are what structure and config tell."""

    @property
    def num_neurons(self) -> int:
        """Of all layers."""
        return sum(network.end - network.first for network in self.networks)

    @property
    def widest_layer(self) -> int:
        """Neurons of the widest layer: what the arrays of a store have for every layer."""
        return max(network.end for network in self.networks)

    @property
    def has_experts(self) -> bool:
        """Whether some neurons are in a mixture's experts."""
        return has_experts(self.networks)


def outline_model(spec: str, device: str = "auto", dtype: str = "auto", trust_remote_code: bool = False) -> Outline:
    """The outline of MODEL[@REVISION]; its config alone is read.

    Raises InputError where loading would, for the same reason, as far as the config tells.

        outline = outline_model("Qwen/Qwen2.5-Coder-0.5B")
        print(outline.num_layers, outline.num_neurons)
    """
    model_id, revision = split_revision(spec)
    device_type = resolve_device(device)
    with quiet_transformers():
        common = {"revision": revision, "trust_remote_code": trust_remote_code}
        config = load_config(model_id, common)
        running = running_dtype(config, dtype, device_type)
        quantisation = quantisation_of(config)
        model = try_load(model_id, "model", lambda: empty_model(config, trust_remote_code, running))
    stacks = find_stacks(model, model_id)
    text = config.get_text_config()
    row_tokens, max_row_tokens = row_limits(text, stacks[-1].module)
    num_bytes = weight_bytes(model)
    found = _networks(model, stacks)
    networks = found.networks
    if is_encoder(config):
        networks = tuple(replace(network, stack=ENCODER) for network in networks)
    stored_bytes = _checkpoint_bytes(model_id, revision)
    if quantisation is not None and not quantisation.is_dequantised:
        num_bytes = stored_bytes or num_bytes
    return Outline(
        id=model_id,
        revision=revision,
        family=config.model_type,
        architecture=type(model).__name__,
        num_layers=sum(len(stack.blocks) for stack in stacks),
        hidden_size=text.hidden_size,
        num_heads=getattr(text, "num_attention_heads", 0),
        networks=networks,
        experts_per_token=found.experts_per_token,
        vocabulary=model.get_input_embeddings().weight.shape[0],
        attention=str(getattr(model.config, "_attn_implementation", None) or "eager"),
        row_tokens=row_tokens,
        max_row_tokens=max_row_tokens,
        checkpoint_dtype=checkpoint_dtype_of(config),
        dtype=str(running).removeprefix("torch."),
        device_type=device_type,
        num_weights=sum(parameter.numel() for parameter in model.parameters()),
        weight_bytes=num_bytes,
        checkpoint_bytes=stored_bytes,
        quantization=None if quantisation is None else quantisation.method,
        is_dequantised=quantisation is not None and quantisation.is_dequantised,
        pass_failed=found.pass_failed,
    )


@dataclass(frozen=True)
class _Found:
    networks: Networks
    experts_per_token: int | None
    pass_failed: str = ""


def _networks(model: Any, stacks: tuple[Stack, ...]) -> _Found:
    """Those that a pass without values sees, else those that structure and config tell."""
    ids_BT = verify.probe_ids(model.get_input_embeddings().weight.shape[0]).to("meta")
    chosen: set[int] = set()
    # So that what looks for places goes on, too.
    all_nonzero = symbolic_shapes.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    try:
        with torch.device("meta"), all_nonzero, _WithoutValues(), _counting_choices(stacks, chosen):
            points = points_of(model, stacks, ids_BT)
    except InputError:
        raise
    except Exception as error:  # of code that isn't ours, which may need values
        pass_failed = f"{type(error).__name__}: {first_line(error)}"
        return _Found(tuple(_by_structure(stacks, model.config.get_text_config())), None, pass_failed)
    networks = tuple(point.network for point in points)
    if has_experts(networks) and not chosen:
        chosen.update(_numbers(model.config.get_text_config(), _CHOICE_KEYS))
    return _Found(networks, max(chosen, default=None))


def _numbers(config: Any, keys: Sequence[str]) -> list[int]:
    """What a config, or one in it, has under some keys."""
    values = config.to_dict()
    inner = [value for value in values.values() if isinstance(value, dict)]
    return [one[key] for one in (values, *inner) for key in keys if isinstance(one.get(key), int)]


class _WithoutValues(TorchFunctionMode):
    """Conditions on values that aren't there hold: families ask whether rows are whole and nothing is masked.

    Products of all experts at once have a shape in every dtype; torch tells it of bfloat16 alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func in (Tensor.__bool__, Tensor.item, Tensor.__contains__) and args[0].is_meta:
            return True
        if func is torch._grouped_mm:
            rows_SD, matrices_EDF, *_ = args
            return rows_SD.new_empty(len(rows_SD), matrices_EDF.shape[-1])
        return func(*args, **(kwargs or {}))


@contextmanager
def _counting_choices(stacks: tuple[Stack, ...], chosen: set[int]) -> Iterator[None]:
    """Within this context `chosen` is given how many experts get each token, of every layer that has some."""

    def look(experts: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        _, index_Nk, _ = routed_inputs(experts, args, kwargs)
        chosen.add(index_Nk.shape[-1])

    with ExitStack() as hooks:
        for module in (part for stack in stacks for part in stack.blocks.modules() if has_interface(part)):
            hooks.enter_context(module.register_forward_pre_hook(look, with_kwargs=True))
        yield


def _by_structure(stacks: tuple[Stack, ...], config: Any) -> Iterator[Network]:
    """The experts of each block that has some; of the others one network each, as wide as the config says."""
    width = next((value for key in _WIDTH_KEYS if isinstance(value := getattr(config, key, None), int)), None)
    blocks = [(block, name) for stack in stacks for name, block in stack.blocks.named_children()]
    for layer, (block, name) in enumerate(blocks):
        points = [
            experts_hook_point(layer, f"{name}.{part_name}", module, block)
            for part_name, module in block.named_modules()
            if is_experts(module)
        ]
        number_neurons(points)
        yield from (point.network for point in points)
        if not points:
            if width is None:
                raise InputError(
                    f"how wide the networks of {config.model_type} are can't be told without its weights: its config "
                    f"has none of {', '.join(_WIDTH_KEYS)}; `neurotally profile` loads it"
                )
            yield Network(layer, 0, width, None, name)


def _checkpoint_bytes(model_id: str, revision: str | None) -> int | None:
    """What an index of weight files says, or the one file in a folder has."""
    from transformers.utils.hub import cached_file

    folder = Path(model_id)
    try:
        index = cached_file(model_id, "model.safetensors.index.json", revision=revision)
        return int(json.loads(Path(index).read_text())["metadata"]["total_size"])
    except Exception:  # it has none, or the hub can't be reached
        sizes = [file.stat().st_size for file in folder.glob("*.safetensors")] if folder.is_dir() else []
        return sum(sizes) or None
