"""Small random mixtures of experts, and what each of their networks computes, by plain hooks and the formulas.

Where a family keeps its experts and its other networks is written down from its own modeling file. An expert's
pre-activations are computed anew, from its own matrix and the hidden states of the tokens that the router sends to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from families import CONTEXT, LAYERS, VOCABULARY
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

EXPERTS, TOP = 6, 2


@dataclass(frozen=True)
class Mixture:
    """Where one family's experts and other networks are, by their names in a layer."""

    config: dict[str, Any]
    experts: str = "mlp.experts"
    others: tuple[tuple[str, str, str], ...] = ()
    """Networks that aren't routed: name, its gate, its down projection; where a layer has it."""
    formula: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    """Activation and coefficient of gate and up; SwiGLU if None."""
    interleaved: bool = False
    fused: bool = False
    """Whether the others' gate and up are one product."""


def _swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    activation = functional.silu(gate)
    return activation, activation * up


def _gpt_oss(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    activation = gate * torch.sigmoid(1.702 * gate)
    return activation, (up + 1) * activation


_ATTENTION = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
              "num_key_value_heads": 4, "head_dim": 8}  # fmt: skip
_DEEPSEEK = {**_ATTENTION, "n_routed_experts": EXPERTS, "moe_intermediate_size": 24, "n_shared_experts": 1,
             "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "topk_method": "greedy"}  # fmt: skip
_DENSE_AND_SHARED = (("mlp", "gate_proj", "down_proj"), ("mlp.shared_experts", "gate_proj", "down_proj"))

MIXTURES: dict[str, Mixture] = {
    "mixtral": Mixture({"num_local_experts": EXPERTS, "intermediate_size": 24}),
    "qwen3_moe": Mixture({"num_experts": EXPERTS, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
                         others=(("mlp", "gate_proj", "down_proj"),)),
    "qwen2_moe": Mixture({"num_experts": EXPERTS, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
                         others=(("mlp.shared_expert", "gate_proj", "down_proj"),)),
    "olmoe": Mixture({"num_experts": EXPERTS, "intermediate_size": 24}),
    "deepseek_v2": Mixture(_DEEPSEEK, others=_DENSE_AND_SHARED),
    "deepseek_v3": Mixture({**_DEEPSEEK, "topk_method": "noaux_tc"}, others=_DENSE_AND_SHARED),
    "glm4_moe": Mixture({**_DEEPSEEK, "head_dim": 16}, others=_DENSE_AND_SHARED),
    "gpt_oss": Mixture({"num_local_experts": EXPERTS, "intermediate_size": 24, "head_dim": 16}, formula=_gpt_oss,
                       interleaved=True),
    "granitemoehybrid": Mixture(
        {"num_local_experts": EXPERTS, "intermediate_size": 24, "shared_intermediate_size": 40, "mamba_n_heads": 8,
         "mamba_d_head": 16, "layer_types": ["full_attention"] * LAYERS},
        experts="block_sparse_moe.experts", others=(("shared_mlp", "input_linear", "output_linear"),), fused=True),
}  # fmt: skip


def tiny_mixture(name: str) -> Any:
    """A model of `MIXTURES`, random: the same each time."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": TOP,
        "max_position_embeddings": CONTEXT, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**{**settings, **MIXTURES[name].config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.05 if parameter.dim() < 2 else 0.5 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn(parameter.shape) * scale)
    return model


@dataclass(frozen=True)
class Site:
    """One network, or one expert, in one pass over a rectangle of B·T cells: the N that came by."""

    layer: int
    name: str
    expert: int
    """-1: it is none."""
    cell_N: Tensor
    weight_N: Tensor
    pre_NF: Tensor
    activation_NF: Tensor
    coefficient_NF: Tensor


class MixtureHooks:
    """Forward hooks on a bare model's own experts and projections."""

    def __init__(self, model: Any, name: str):
        self.model = model
        self.mixture = MIXTURES[name]
        self._inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._products: dict[tuple[int, str], Tensor] = {}
        self._read: dict[tuple[int, str], Tensor] = {}
        self._layers = model.model.layers
        for number, layer in enumerate(self._layers):
            parts = dict(layer.named_modules())
            if self.mixture.experts in parts:
                parts[self.mixture.experts].register_forward_pre_hook(self._keep_inputs(number), with_kwargs=True)
            for network, gate, down in self.mixture.others:
                if f"{network}.{gate}" in parts:
                    key = (number, network)
                    parts[f"{network}.{gate}"].register_forward_hook(self._keep(self._products, key))
                    parts[f"{network}.{down}"].register_forward_pre_hook(self._keep_read(key))

    def _keep_inputs(self, number: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            self._inputs[number] = (*args, *kwargs.values())

        return hook

    def _keep(self, into: dict[Any, Tensor], key: Any) -> Any:
        return lambda _module, _args, output: into.__setitem__(key, output)

    def _keep_read(self, key: Any) -> Any:
        return lambda _module, args: self._read.__setitem__(key, args[0])

    def run(self, ids_BT: Tensor) -> Iterator[Site]:
        """The whole model over a rectangle; what each site did."""
        with torch.no_grad():
            self.model(input_ids=ids_BT, use_cache=False)
            for number, layer in enumerate(self._layers):
                if number in self._inputs:
                    yield from self._experts(number, layer.get_submodule(self.mixture.experts))
                for network, *_ in self.mixture.others:
                    if (number, network) in self._read:
                        yield self._ordinary(number, network, ids_BT.numel())

    def _experts(self, number: int, experts: Any) -> Iterator[Site]:
        hidden_ND, index_Nk, weight_Nk = self._inputs[number]
        for expert in range(EXPERTS):
            cell_N, place_N = (index_Nk == expert).nonzero(as_tuple=True)
            matrix = experts.gate_up_proj[expert].double()
            both = hidden_ND[cell_N].double() @ (matrix if self.mixture.interleaved else matrix.T)
            if getattr(experts, "gate_up_proj_bias", None) is not None:
                both = both + experts.gate_up_proj_bias[expert].double()
            gate, up = (both[:, ::2], both[:, 1::2]) if self.mixture.interleaved else both.chunk(2, dim=-1)
            activation, coefficient = (self.mixture.formula or _swiglu)(gate, up)
            yield Site(number, self.mixture.experts, expert, cell_N, weight_Nk[cell_N, place_N], gate, activation,
                       coefficient)  # fmt: skip

    def _ordinary(self, number: int, network: str, num_cells: int) -> Site:
        product = self._products[number, network].reshape(num_cells, -1).double()
        pre_NF = product.chunk(2, dim=-1)[0] if self.mixture.fused else product
        read_NF = self._read[number, network].reshape(num_cells, -1).double()
        return Site(number, network, -1, torch.arange(num_cells), torch.ones(num_cells), pre_NF,
                    functional.silu(pre_NF), read_NF)  # fmt: skip
