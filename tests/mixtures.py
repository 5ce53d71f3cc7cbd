"""Small random mixtures of experts, and what each of their networks computes, by plain hooks and the formulas.

Where a family keeps its experts and its other networks is written down from its own modeling file. An expert's
pre-activations are computed anew, in float64, from its own matrix and the hidden states of the tokens that the router
sends to it. What its products gave and read in float32, as the model computes them, is taken from the products
themselves, and held against that.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from families import LAYERS, SMALL, each, randomised, tiny_config
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
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
    products: tuple[str, str] = ("gate_up_proj", "down_proj")
    """The matrices of all experts whose products give pre-activations, and read coefficients."""
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
        experts="ffn.experts", layers="transformer.blocks", matrix=_dbrx, products=("mlp.w1", "mlp.w2")),
    "jetmoe": Mixture(
        {}, experts="mlp", router="mlp.router", logits=4, weights=lambda logits_Nk: logits_Nk.softmax(-1),
        products=("input_linear.weight", "output_linear.weight"),
        matrix=lambda experts, expert: experts.input_linear.weight[expert]),
    "longcat_flash": Mixture(
        {"head_dim": 8, "zero_expert_num": 2, "num_experts_per_tok": TOP},
        others=(("mlps.0", "gate_proj", "down_proj"), ("mlps.1", "gate_proj", "down_proj"))),
    "nemotron_h": Mixture(
        {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "num_key_value_heads": 4},
        experts="mixer.experts", formula=_relu_squared, matrix=lambda experts, expert: experts.up_proj[expert],
        products=("up_proj", "down_proj"),
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


def mixture_config(name: str) -> Any:
    """The config of `tiny_mixture`."""
    return tiny_config(name, MIXTURES[name].config, _SMALL)


def tiny_mixture(name: str) -> Any:
    """A model of `MIXTURES`, random: the same each time."""
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if MIXTURES[name].is_composite else AutoModelForCausalLM
    return randomised(auto.from_config(mixture_config(name)).eval())


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
    """float64: of experts by a product in float64."""
    activation_NF: Tensor
    """float64: by the formula, of pre-activations that the model computed in float32."""
    coefficient_NF: Tensor
    """float32: what the model's down projection reads."""
    output_weight_N: Tensor
    """By what the expert's output is multiplied."""


class Products(TorchDispatchMode):
    """Keeps what products with some matrices of experts read and gave: a bias is added to that in its place."""

    def __init__(self, matrices: Iterable[Tensor]):
        super().__init__()
        self._seen: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {_address(matrix): [] for matrix in matrices}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _PRODUCTS:
            read, matrix, *_ = args
            if _address(matrix) in self._seen:
                self._seen[_address(matrix)].append((read, matrix, result))
        return result

    def of(self, matrices: Tensor, expert: int, cell_N: Tensor, rows_E: list[int]) -> tuple[Tensor, Tensor]:
        """What an expert's product read and gave: a row for each of its tokens, in an order of the family's own."""
        for read, matrix, gave in self._seen[_address(matrices)]:
            if matrix.dim() == 2:  # of one expert
                if matrix.storage_offset() == expert * matrix.numel():
                    return read, gave
            elif read.dim() == 3:  # every expert computes every token
                return read[expert, cell_N], gave[expert, cell_N]
            else:
                return read.split(rows_E)[expert], gave.split(rows_E)[expert]
        raise KeyError(f"no product with the matrix of expert {expert}")


_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten._grouped_mm.default)


def _address(tensor: Tensor) -> int:
    """Of the memory that it is a view of."""
    return tensor.untyped_storage().data_ptr()


class Exact(NamedTuple):
    """A product in float64, [N, F], and how far one in float32 may be from it."""

    values: Tensor
    bound: Tensor

    @classmethod
    def product(cls, given_ND: Tensor, matrix_DF: Tensor, bias: Tensor | float = 0.0) -> "Exact":
        """D products, D + 1 additions at most."""
        given_ND, matrix_DF = given_ND.double(), matrix_DF.double()
        magnitude = given_ND.abs() @ matrix_DF.abs() + abs(bias)
        return cls(given_ND @ matrix_DF + bias, (len(matrix_DF) + 1) * 2**-24 * magnitude)

    def order_of(self, rounded: Tensor) -> Tensor:
        """int64 [N]: which rows of a product in float32 these are; AssertionError where one isn't among them."""
        values, bound = (of[:, : rounded.shape[1]] for of in self)
        order_N = torch.cdist(values, rounded.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        assert ((rounded[order_N] - values).abs() <= bound).all()
        return order_N


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
        self._matrices: list[Tensor] = []
        for number, layer in enumerate(self._layers):
            parts = dict(layer.named_modules())
            if self.mixture.experts in parts:
                self._matrices += map(parts[self.mixture.experts].get_parameter, self.mixture.products)
                if self.mixture.router:
                    parts[self.mixture.router].register_forward_hook(self._keep_routing(number))
                else:
                    parts[self.mixture.experts].register_forward_pre_hook(self._keep_inputs(number), with_kwargs=True)
            if self.mixture.for_all and self.mixture.for_all in parts:
                self._matrices += (parts[self.mixture.for_all].gate_proj, parts[self.mixture.for_all].up_proj)
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
            with Products(self._matrices) as products:
                self.model(input_ids=ids_BT, use_cache=False)
            for number, layer in enumerate(self._layers):
                if number in self._inputs:
                    yield from self._experts(number, layer.get_submodule(self.mixture.experts), products)
                if number in self._for_all:
                    yield from self._experts_for_all(number, layer.get_submodule(self.mixture.for_all), products)
                for network, *_ in self.mixture.others:
                    if (number, network) in self._read:
                        yield self._ordinary(number, network, ids_BT.numel())

    def _experts(self, number: int, experts: Any, products: Products) -> Iterator[Site]:
        mixture, formula = self.mixture, self.mixture.formula or _swiglu
        hidden_ND, index_Nk, weight_Nk = self._inputs[number]
        hidden_ND = hidden_ND.reshape(len(index_Nk), -1)
        rows_E = torch.bincount(index_Nk.flatten(), minlength=EXPERTS).tolist()
        first, second = map(experts.get_parameter, mixture.products)
        for expert in range(EXPERTS):
            cell_N, place_N = (index_Nk == expert).nonzero(as_tuple=True)
            weight_N = weight_Nk[cell_N, place_N]
            find = mixture.matrix or (lambda experts, expert: experts.gate_up_proj[expert])
            matrix = find(experts, expert)
            given_ND = hidden_ND[cell_N] * weight_N[:, None] if mixture.weights_input else hidden_ND[cell_N]
            bias = experts.gate_up_proj_bias[expert] if hasattr(experts, "gate_up_proj_bias") else 0.0
            exact = Exact.product(given_ND, matrix if mixture.transposed else matrix.T, bias)
            pre_NF, up_NF = self._halves(exact.values)
            _, expected_NF = formula(pre_NF, up_NF)
            rounded_NF, coefficient_NF = pre_NF, expected_NF.float()
            if len(cell_N):
                _, gave = products.of(first, expert, cell_N, rows_E)
                read_NF, _ = products.of(second, expert, cell_N, rows_E)
                order_N = exact.order_of(gave)
                rounded = gave[order_N].double()
                rounded_NF = rounded if rounded.shape == pre_NF.shape else self._halves(rounded)[0]
                coefficient_NF = read_NF[order_N]
                # Some ten times float32's rounding of them: of another row, neuron or formula far more differs.
                assert (coefficient_NF - expected_NF).abs().max() <= 1e-5 * expected_NF.abs().max()
            output_weight_N = torch.ones_like(weight_N) if mixture.weights_input else weight_N
            yield Site(number, mixture.experts, expert, cell_N, weight_N, pre_NF, formula(rounded_NF, rounded_NF)[0],
                       coefficient_NF, output_weight_N)  # fmt: skip

    def _halves(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations and `up` of an expert's product."""
        if self.mixture.formula is _relu_squared:
            return both, both
        if self.mixture.interleaved:
            return both[:, ::2], both[:, 1::2]
        return both.chunk(2, dim=-1)

    def _experts_for_all(self, number: int, experts: Any, products: Products) -> Iterator[Site]:
        hidden_ND, weight_NE = (given.reshape(-1, given.shape[-1]) for given in self._for_all[number])
        cell_N, matrices = torch.arange(len(weight_NE)), (experts.gate_proj, experts.up_proj)
        for expert, weight_N in enumerate(weight_NE.T):
            pre, up = (Exact.product(hidden_ND, matrix[expert].T) for matrix in matrices)
            rounded_NF, rounded_up_NF = (products.of(matrix, expert, cell_N, [])[1] for matrix in matrices)
            rounded_NF, rounded_up_NF = rounded_NF[pre.order_of(rounded_NF)], rounded_up_NF[up.order_of(rounded_up_NF)]
            # The down projection reads this times the weight.
            coefficient_NF = functional.silu(rounded_NF) * rounded_up_NF
            yield Site(number, self.mixture.for_all, expert, cell_N, weight_N, pre.values,
                       functional.silu(rounded_NF.double()), coefficient_NF, weight_N)  # fmt: skip

    def _ordinary(self, number: int, network: str, num_cells: int) -> Site:
        product = self._products[number, network].reshape(num_cells, -1).double()
        pre_NF = product.chunk(2, dim=-1)[0] if self.mixture.fused else product
        read_NF = self._read[number, network].reshape(num_cells, -1)
        activation_NF, _ = (self.mixture.formula or _swiglu)(pre_NF, pre_NF)
        ones_N = torch.ones(num_cells)
        return Site(number, network, -1, torch.arange(num_cells), ones_N, pre_NF, activation_NF, read_NF, ones_N)
