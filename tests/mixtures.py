"""Small random mixtures of experts, and what each of their networks computes, by plain hooks and the formulas.

Where a family keeps its experts and its other networks is written down from its own modeling file. An expert's
pre-activations are computed anew, from its own matrix and the hidden states of the tokens that the router sends to it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from families import LAYERS, SMALL, each, randomised, tiny_config
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

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
    """Whether gate and up alternate in an expert's product."""
    transposed: bool = False
    """Whether an expert's matrix is [D, 2F]."""
    fused: bool = False
    """Whether the others' gate and up are one product."""
    layers: str = "model.layers"
    is_composite: bool = False
    """Whether it is a vision-language model, of which the text decoder is read."""
    for_all: str = ""
    """Experts that every token goes to, each with a weight."""
    matrix: Callable[[Any, int], Tensor] | None = None
    """Gate and up of an expert, [2F, D] (one of them where it has no gate), from the module of experts; `gate_up_proj`
    if None."""
    router: str = ""
    """What is given the hidden states and gives the routers' logits, where the experts aren't told who goes where."""
    logits: int = 0
    """Which of its results these are."""
    weights: Callable[[Tensor], Tensor] = torch.sigmoid
    """Routing weights of the logits of a token's experts."""
    weights_input: bool = False
    """Whether the routing weight multiplies an expert's input, not its output."""


def _swiglu(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    activation = functional.silu(gate)
    return activation, activation * up


def _gpt_oss(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    activation = gate * torch.sigmoid(1.702 * gate)
    return activation, (up + 1) * activation


def _clamped(gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    activation = functional.silu(gate.clamp(max=10.0))
    return activation, activation * up.clamp(-10.0, 10.0)


def _relu_squared(pre: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    return pre.clamp(min=0) ** 2, pre.clamp(min=0) ** 2


def _dbrx(experts: Any, expert: int) -> Tensor:
    of_each = (experts.mlp.w1, experts.mlp.v1)
    return torch.cat([matrix.view(EXPERTS, -1, matrix.shape[1])[expert] for matrix in of_each])


_SMALL = {
    **SMALL,
    **each("num_experts num_local_experts n_routed_experts moe_num_experts", EXPERTS),
    **each("num_experts_per_tok moe_topk moe_k num_experts_per_token", TOP),
    **each("moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size expert_ffn_hidden_size", 24),
    **each("moe_shared_expert_intermediate_size", 24),
    **each("n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers", 1),
    **each("n_group topk_group num_expert_group", 1),
    **each("head_dim linear_head_dim swa_head_dim index_topk index_head_dim mamba_d_head", 16),
    **each("linear_num_heads swa_num_attention_heads index_n_heads mamba_dt_rank", 4),
    **each("num_mtp_layers num_nextn_predict_layers", 0),
    **each("mamba_n_heads mamba_num_heads mamba_d_state ssm_state_size", 8), "swa_num_key_value_heads": 2,
    **each("mamba_head_dim mamba_chunk_size chunk_size moe_shared_experts_intermediate_size", 16),
    **each("dense_intermediate_size intermediate_size_mlp", 48), "mamba_n_groups": 1, "n_groups": 1,
}  # fmt: skip
_DENSE = ("mlp", "gate_proj", "down_proj")
_SHARED = ("mlp.shared_experts", "gate_proj", "down_proj")
_FUSED_SHARED = Mixture(
    {}, experts="block_sparse_moe.experts", others=(("shared_mlp", "input_linear", "output_linear"),), fused=True
)
_LIKE_DEEPSEEK = Mixture({}, others=(_DENSE, _SHARED))
_QWEN = Mixture({}, others=(_DENSE, ("mlp.shared_expert", "gate_proj", "down_proj")))
_QWEN4 = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 16,
          "indexer_compress_ratio": 4, "hc_count": 2, "hc_lowrank": 8}  # fmt: skip
_DOTS3 = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 32, "swa_kv_lora_rank": 16,
          "swa_head_dim": 24, "swa_qk_nope_head_dim": 16, "swa_qk_rope_head_dim": 8, "swa_v_head_dim": 16}  # fmt: skip
_LLAMA4 = Mixture(
    {"num_experts_per_tok": 2, "moe_layers": [1], "no_rope_layers": [1, 0],
     "layer_types": ["chunked_attention", "full_attention"]},
    experts="feed_forward.experts", transposed=True, router="feed_forward.router", logits=1, weights_input=True,
    others=(("feed_forward", "gate_proj", "down_proj"), ("feed_forward.shared_expert", "gate_proj", "down_proj")),
)  # fmt: skip

MIXTURES: dict[str, Mixture] = {
    **dict.fromkeys(("flex_olmo", "minimax", "minimax_m2", "mixtral", "olmoe", "phimoe"), Mixture({})),
    **dict.fromkeys(
        ("afmoe", "bailing_hybrid", "ernie4_5_moe", "exaone_moe",
         "glm4_moe", "glm4_moe_lite", "kimi_linear", "mimo_v2_flash", "solar_open"), _LIKE_DEEPSEEK,
    ),
    **dict.fromkeys(("axk1", "deepseek_v3"), replace(_LIKE_DEEPSEEK, config={"head_dim": 8})),
    **dict.fromkeys(("deepseek_v2", "dots1"), replace(_LIKE_DEEPSEEK, config={
        "head_dim": 8, "n_routed_experts": EXPERTS, "n_shared_experts": 1, "num_experts_per_tok": TOP})),
    "qwen3_moe": Mixture({"mlp_only_layers": [1]}, others=(_DENSE,)),
    **dict.fromkeys(("qwen2_moe", "qwen3_next", "qwen3_5_moe_text"),
                    Mixture({}, others=(("mlp.shared_expert", "gate_proj", "down_proj"),))),
    "gpt_oss": Mixture({}, formula=_gpt_oss, interleaved=True, transposed=True),
    "granitemoe": Mixture({}, experts="block_sparse_moe.experts"),
    "granitemoeshared": _FUSED_SHARED,
    "granitemoehybrid": replace(_FUSED_SHARED, config={"layer_types": ["full_attention"] * LAYERS}),
    "hunyuan_v1_moe": Mixture({}, others=(("mlp.shared_mlp", "gate_proj", "down_proj"),)),
    "cohere2_moe": Mixture({}, others=(_DENSE, _SHARED)),
    "aria_text": Mixture({}, others=(_SHARED,), transposed=True),
    "jamba": Mixture(
        {"expert_layer_period": 2, "expert_layer_offset": 1, "attn_layer_period": 1, "attn_layer_offset": 0},
        experts="feed_forward.experts", others=(("feed_forward", "gate_proj", "down_proj"),)),
    "llama4_text": _LLAMA4,
    "llama4": replace(_LLAMA4, is_composite=True, layers="language_model.model.layers", config={
        "text_config": _LLAMA4.config, "vision_config": {
            "image_size": 32, "patch_size": 16, "vision_output_dim": 64, "projector_input_dim": 64,
            "projector_output_dim": 64, "intermediate_size": 256}}),
    "dbrx": Mixture(
        {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
         "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": EXPERTS, "moe_top_k": TOP, "hidden_size": 64}},
        experts="ffn.experts", layers="transformer.blocks", matrix=_dbrx),
    "jetmoe": Mixture(
        {}, experts="mlp", router="mlp.router", logits=4, weights=lambda logits_Nk: logits_Nk.softmax(-1),
        matrix=lambda experts, expert: experts.input_linear.weight[expert]),
    "longcat_flash": Mixture(
        {"head_dim": 8, "zero_expert_num": 2, "num_experts_per_tok": TOP},
        others=(("mlps.0", "gate_proj", "down_proj"), ("mlps.1", "gate_proj", "down_proj"))),
    "nemotron_h": Mixture(
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "num_key_value_heads": 4},
        experts="mixer.experts", formula=_relu_squared, matrix=lambda experts, expert: experts.up_proj[expert],
        others=(("mixer", "up_proj", "down_proj"), ("mixer.shared_experts", "up_proj", "down_proj"))),
    "lfm2_moe": Mixture(
        {"layer_types": ["conv", "full_attention"]}, experts="feed_forward.experts",
        others=(("feed_forward", "w1", "w2"),)),
    "minimax_m3_vl_text": Mixture(
        {"mlp_layer_types": ["dense", "sparse"]}, formula=_gpt_oss, fused=True,
        others=(("mlp", "gate_up_proj", "down_proj"), ("mlp.shared_experts", "gate_up_proj", "down_proj"))),
    "axk2": Mixture({"head_dim": 8, "mlp_layer_types": ["dense", "sparse"]}, others=(_DENSE, _SHARED)),
    "deepseek_v4": Mixture({}, formula=_clamped, others=(_SHARED,)),
    "hy_v4": Mixture({"mlp_layer_types": ["dense", "sparse"]}, formula=_clamped, others=(_DENSE, _SHARED)),
    **dict.fromkeys(("beam", "mellum"), Mixture({}, others=(_DENSE,))),
    "zaya": Mixture({"num_experts_per_tok": 1}),
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), _LIKE_DEEPSEEK),
    "dots3_note_text": replace(_LIKE_DEEPSEEK, config=_DOTS3),
    "dots3_note": replace(_LIKE_DEEPSEEK, config={
        "text_config": _DOTS3, "vision_config": {"adapter_in_dim": 64, "adapter_out_dim": 64},
        "audio_config": {"adapter_out_dim": 64, "adapter_input_size": 64}}),
    **dict.fromkeys(("hy_v3", "laguna", "kolibri1"), _LIKE_DEEPSEEK),
    "flint": replace(_QWEN, config={"mlp_only_layers": [0]}),
    "qwen3_5_moe": _QWEN,
    "qwen4_exp_text": replace(_QWEN, config=_QWEN4),
    "qwen4_exp": replace(_QWEN, config={"text_config": _QWEN4}),
    "granitemoe_swa": _FUSED_SHARED,
    "inkling_text": Mixture({"mlp_layer_types": ["dense", "sparse"]}, others=(_DENSE,), for_all="mlp.shared_experts"),
}  # fmt: skip


def tiny_mixture(name: str) -> Any:
    """A model of `MIXTURES`, random: the same each time."""
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if MIXTURES[name].is_composite else AutoModelForCausalLM
    return randomised(auto.from_config(tiny_config(name, MIXTURES[name].config, _SMALL)).eval())


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
    output_weight_N: Tensor
    """By what the expert's output is multiplied."""


class MixtureHooks:
    """Forward hooks on a bare model's own experts and projections."""

    def __init__(self, model: Any, name: str):
        self.model = model
        self.mixture = MIXTURES[name]
        self._inputs: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._for_all: dict[int, tuple[Tensor, Tensor]] = {}
        self._products: dict[tuple[int, str], Tensor] = {}
        self._read: dict[tuple[int, str], Tensor] = {}
        self._layers = model.get_submodule(self.mixture.layers)
        for number, layer in enumerate(self._layers):
            parts = dict(layer.named_modules())
            if self.mixture.experts in parts:
                if self.mixture.router:
                    parts[self.mixture.router].register_forward_hook(self._keep_routing(number))
                else:
                    parts[self.mixture.experts].register_forward_pre_hook(self._keep_inputs(number), with_kwargs=True)
            if self.mixture.for_all and self.mixture.for_all in parts:
                parts[self.mixture.for_all].register_forward_pre_hook(self._keep_weights(number), with_kwargs=True)
            for network, gate, down in self.mixture.others:
                if f"{network}.{gate}" in parts:
                    key = (number, network)
                    parts[f"{network}.{gate}"].register_forward_hook(self._keep(self._products, key))
                    parts[f"{network}.{down}"].register_forward_pre_hook(self._keep_read(key))

    def _keep_inputs(self, number: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: Any) -> None:
            self._inputs[number] = (*args, *kwargs.values())

        return hook

    def _keep_routing(self, number: int) -> Any:
        def hook(_module: Any, args: Any, output: Any) -> None:
            logit_Nk, index_Nk = output[self.mixture.logits].topk(TOP, dim=1)
            self._inputs[number] = (args[0], index_Nk, self.mixture.weights(logit_Nk.float()))

        return hook

    def _keep_weights(self, number: int) -> Any:
        return lambda _module, args, kwargs: self._for_all.__setitem__(number, (args[0], kwargs["gammas"]))

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
                if number in self._for_all:
                    yield from self._experts_for_all(number, layer.get_submodule(self.mixture.for_all))
                for network, *_ in self.mixture.others:
                    if (number, network) in self._read:
                        yield self._ordinary(number, network, ids_BT.numel())

    def _experts(self, number: int, experts: Any) -> Iterator[Site]:
        hidden_ND, index_Nk, weight_Nk = self._inputs[number]
        hidden_ND = hidden_ND.reshape(len(index_Nk), -1)
        for expert in range(EXPERTS):
            cell_N, place_N = (index_Nk == expert).nonzero(as_tuple=True)
            weight_N = weight_Nk[cell_N, place_N]
            find = self.mixture.matrix or (lambda experts, expert: experts.gate_up_proj[expert])
            matrix = find(experts, expert).double()
            given_ND = hidden_ND[cell_N] * weight_N[:, None] if self.mixture.weights_input else hidden_ND[cell_N]
            both = given_ND.double() @ (matrix if self.mixture.transposed else matrix.T)
            if getattr(experts, "gate_up_proj_bias", None) is not None:
                both = both + experts.gate_up_proj_bias[expert].double()
            gate, up = (both[:, ::2], both[:, 1::2]) if self.mixture.interleaved else both.chunk(2, dim=-1)
            if self.mixture.formula is _relu_squared:
                gate = up = both
            activation, coefficient = (self.mixture.formula or _swiglu)(gate, up)
            output_weight_N = torch.ones_like(weight_N) if self.mixture.weights_input else weight_N
            yield Site(number, self.mixture.experts, expert, cell_N, weight_N, gate, activation, coefficient,
                       output_weight_N)  # fmt: skip

    def _experts_for_all(self, number: int, experts: Any) -> Iterator[Site]:
        hidden_ND, weight_NE = (given.reshape(-1, given.shape[-1]) for given in self._for_all[number])
        for expert, weight_N in enumerate(weight_NE.T):
            pre_NF, up_NF = (hidden_ND.double() @ matrix[expert].double().T
                             for matrix in (experts.gate_proj, experts.up_proj))  # fmt: skip
            yield Site(number, self.mixture.for_all, expert, torch.arange(len(weight_N)), weight_N, pre_NF,
                       *_swiglu(pre_NF, up_NF), weight_N)  # fmt: skip

    def _ordinary(self, number: int, network: str, num_cells: int) -> Site:
        product = self._products[number, network].reshape(num_cells, -1).double()
        pre_NF = product.chunk(2, dim=-1)[0] if self.mixture.fused else product
        read_NF = self._read[number, network].reshape(num_cells, -1).double()
        activation_NF, _ = (self.mixture.formula or _swiglu)(pre_NF, pre_NF)
        ones_N = torch.ones(num_cells)
        return Site(number, network, -1, torch.arange(num_cells), ones_N, pre_NF, activation_NF, read_NF, ones_N)
