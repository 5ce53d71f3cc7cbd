"""Small random models of transformers' dense causal language models, and where each keeps its projections.

The places are written down from each family's own modeling file, so that what plain hooks see there owes nothing to
how sites are found. `keys` gives the pre-activations (with the up projection's result beside them in one product,
where `split` says so), `down` reads the coefficients.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY, LAYERS, CONTEXT = 608, 2, 128


@dataclass(frozen=True)
class Family:
    """Where one family's feed-forward networks are, and how its model is made small."""

    layers: str
    """The list of decoder layers, by its name in the causal language model."""
    keys: str
    """Of several, separated by " + ", the pre-activations are the sum of what those give that a layer has."""
    down: str
    gated: bool = False
    split: str = ""
    """"halves": gate and up are the first and the second half of what `keys` gives."""
    act: str = ""
    """Where the config doesn't name the activation."""
    family: str = ""
    """Its name in transformers, where the one in the table is of a variant."""
    config: tuple[tuple[str, Any], ...] = ()
    """Further settings."""
    is_composite: bool = False
    """Whether it is a vision-language model, of which the text decoder is read."""
    context: int = CONTEXT
    """Longest row that its positions allow."""


def each(names: str, value: Any) -> dict[str, Any]:
    """The value under each of some names."""
    return dict.fromkeys(names.split(), value)


_LLAMA = Family("model.layers", "mlp.gate_proj", "mlp.down_proj", gated=True)
_FUSED = Family("model.layers", "mlp.gate_up_proj", "mlp.down_proj", gated=True, split="halves")
_UP_DOWN = Family("model.layers", "mlp.up_proj", "mlp.down_proj")
_BART = Family(
    "model.decoder.layers", "fc1", "fc2", config=(("is_decoder", True), ("is_encoder_decoder", False))
)  # fmt: skip
_BERT = Family("bert.encoder.layer", "intermediate.dense", "output.dense", config=(("is_decoder", True),))
_ROBERTA = replace(_BERT, layers="roberta.encoder.layer", context=CONTEXT - 3)  # positions come after the pad's, 2
_GPT2 = Family("transformer.h", "mlp.c_fc", "mlp.c_proj")
_CODEGEN = Family("transformer.h", "mlp.fc_in", "mlp.fc_out")
_NEOX = Family("gpt_neox.layers", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
_PHI = Family("model.layers", "mlp.fc1", "mlp.fc2")

_ZAMBA = (
    ("num_hidden_layers", 4), ("layers_block_type", ["linear_attention", "hybrid"] * 2), ("num_key_value_heads", 4),
    ("attention_hidden_size", 128), ("n_mamba_heads", 2), ("mamba_d_state", 8), ("mamba_dt_rank", 4),
)  # fmt: skip
_ZAMBA2_KEYS = "shared_transformer.feed_forward.gate_up_proj" + "".join(
    f" + shared_transformer.feed_forward.gate_up_proj_adapter_list.{number}" for number in range(2)
)

_LLAMA_LIKE = (
    "cohere cohere2 cwm diffllama doge ernie4_5 exaone4 gemma gemma2 gemma3_text gemma4_unified_text granite "
    "granite_swa helium hunyuan_v1_dense hyperclovax llama minicpm3 ministral ministral3 mistral olmo olmo2 olmo3 "
    "olmo_hybrid qwen2 qwen3 qwen3_5_text seed_oss smollm3 stablelm vaultgemma"
)

FAMILIES: dict[str, Family] = {
    **each(_LLAMA_LIKE, _LLAMA),
    "youtu": replace(_LLAMA, config=(("head_dim", 8),)),
    **each("glm glm4 phi3", _FUSED),
    **each("apertus arcee jais2", _UP_DOWN),
    "nemotron": replace(_UP_DOWN, config=(("num_key_value_heads", 2),)),
    **each("bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp opt pegasus plbart", _BART),
    **each("trocr whisper", _BART),
    **each("bert bert-generation megatron-bert", _BERT),
    "big_bird": replace(_BERT, config=(("is_decoder", True), ("attention_type", "original_full"))),
    **{name: replace(_BERT, layers=f"{name}.encoder.layer") for name in
       ["electra", "ernie", "rembert", "roc_bert", "roformer"]},
    **each("camembert roberta xlm-roberta xlm-roberta-xl", _ROBERTA),
    "roberta-prelayernorm": replace(_ROBERTA, layers="roberta_prelayernorm.encoder.layer"),
    "data2vec-text": replace(_ROBERTA, layers="data2vec_text.encoder.layer"),
    **each("gpt2 gpt_bigcode", _GPT2),
    "openai-gpt": replace(_GPT2, act="gelu_new"),
    "gpt_neo": replace(_GPT2, config=(
        ("attention_types", [[["global", "local"], 1]]), ("attention_layers", ["global", "local"]))),
    **each("codegen gptj", _CODEGEN),
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": replace(_NEOX, layers="gpt_neox_japanese.layers", act="gelu"),
    "bloom": replace(_NEOX, layers="transformer.h", act="gelu_new", context=2**31 - 1),  # ALiBi, of any length
    "falcon": replace(_NEOX, layers="transformer.h"),
    "persimmon": replace(_NEOX, layers="model.layers"),
    "fuyu": replace(_NEOX, layers="model.language_model.layers"),
    **each("phi nanochat", _PHI),
    "starcoder2": replace(_GPT2, layers="model.layers"),
    "xglm": replace(_BART, layers="model.layers", config=()),
    "biogpt": replace(_BART, layers="biogpt.layers", config=()),
    "ctrl": Family("transformer.h", "ffn.0", "ffn.2", act="relu"),
    "mpt": Family("transformer.blocks", "ffn.up_proj", "ffn.down_proj", act="gelu"),
    "moshi": Family("model.layers", "mlp.fc1", "mlp.fc2", gated=True, split="halves"),
    "modernbert-decoder": Family("model.layers", "mlp.Wi", "mlp.Wo", gated=True, split="halves"),
    **each("mistral3 llava qwen3_vl", replace(_LLAMA, layers="model.language_model.layers", is_composite=True)),
    "idefics3": replace(_LLAMA, layers="model.text_model.layers", is_composite=True),
    "bamba": replace(_LLAMA, keys="feed_forward.gate_proj", down="feed_forward.down_proj", config=(
        ("attn_layer_indices", [1]), ("mamba_n_heads", 8), ("mamba_d_head", 16))),
    "recurrent_gemma": replace(_LLAMA, keys="mlp_block.gate_proj", down="mlp_block.down_proj", context=2**31 - 1),
    "gemma4_text": _LLAMA,
    "falcon_h1": replace(_LLAMA, keys="feed_forward.gate_proj", down="feed_forward.down_proj", config=(
        ("mamba_d_ssm", 128), ("mamba_n_heads", 8), ("mamba_d_head", 16), ("mamba_d_state", 8))),
    "gemma3n_text": replace(_LLAMA, config=(
        ("activation_sparsity_pattern", [0.0, 0.0]), ("hidden_size_per_layer_input", 16), ("laurel_rank", 8))),
    **each("internlm3 iquestcoder qwen3_5", _LLAMA),
    "cohere_compass_text": replace(_LLAMA, config=(("rope_parameters", {"full_attention": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]}}),)),
    "emu3": replace(_LLAMA, layers="model.text_model.layers", is_composite=True, config=(("vocabulary_map", {
        "<image>": 600, "<|extra_200|>": 601, "<|visual token 000000|>": 602}),
        ("vq_config", {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_resolutions": []}))),
    "gpt-sw3": _GPT2,
    "phi4_multimodal": replace(_FUSED, config=(("num_hidden_layers", 3),)),  # its vision tower has 2
    "xlstm": Family("backbone.blocks", "ffn.proj_up_gate", "ffn.proj_down", gated=True, act="silu", context=2**31 - 1,
                    config=(("embedding_dim", 64), ("chunk_size", 16), ("qk_dim_factor", 1.0), ("num_blocks", LAYERS))),
    **each("gemma3 gemma4 gemma4_unified got_ocr2 moss_transcribe_diarize",
           replace(_LLAMA, layers="model.language_model.layers")),
    "bitnet": replace(_LLAMA, down="mlp.ffn_sub_norm"),
    "xmod": replace(_ROBERTA, config=(("is_decoder", True), ("default_language", "en_XX"))),
    **each("lfm2 lfm3", replace(_LLAMA, keys="feed_forward.w1", down="feed_forward.w2", act="silu")),
    "rwkv": Family("rwkv.blocks", "feed_forward.key", "feed_forward.value", act="relu2", config=(
        ("attention_hidden_size", 64), ("context_length", CONTEXT))),
    # some layers of these have no network
    "zamba": replace(_LLAMA, keys="shared_transf.feed_forward.gate_proj", down="shared_transf.feed_forward.down_proj",
                     config=(*_ZAMBA, ("attention_head_dim", 32))),
    "zamba2": replace(_LLAMA, keys=_ZAMBA2_KEYS, down="shared_transformer.feed_forward.down_proj", split="halves",
                      config=(*_ZAMBA, ("hybrid_layer_ids", [1, 3]), ("mamba_headdim", 64), ("adapter_rank", 8))),
    # variants
    "nemotron_h, dense": replace(
        _UP_DOWN, keys="mixer.up_proj", down="mixer.down_proj", act="relu2", family="nemotron_h", config=(
            ("layers_block_type", ["linear_attention", "mlp", "full_attention", "mlp"]), ("num_key_value_heads", 4),
            ("mamba_num_heads", 8), ("mamba_head_dim", 16), ("ssm_state_size", 8), ("n_groups", 1))),
    "granitemoehybrid, dense": Family(
        "model.layers", "shared_mlp.input_linear", "shared_mlp.output_linear", gated=True, split="halves",
        family="granitemoehybrid", config=(
            ("num_local_experts", 0), ("layer_types", ["full_attention"] * LAYERS), ("mamba_n_heads", 8),
            ("mamba_d_head", 16)),
    ),
    "falcon, alibi": replace(_NEOX, layers="transformer.h", family="falcon", config=(
        ("alibi", True), ("multi_query", False), ("parallel_attn", False), ("num_kv_heads", 4))),
    "gpt_neox, sequential": replace(_NEOX, family="gpt_neox", config=(("use_parallel_residual", False),)),
    "llama, biases": replace(_LLAMA, family="llama", config=(("mlp_bias", True), ("attention_bias", True))),
    "opt, norms after": replace(_BART, family="opt", config=(
        ("do_layer_norm_before", False), ("word_embed_proj_dim", 32))),
    "stablelm, parallel": replace(_LLAMA, family="stablelm", config=(("use_parallel_residual", True),)),
}  # fmt: skip

SMALL: dict[str, Any] = {
    **each("hidden_size d_model n_embd embedding_size word_embed_proj_dim input_embedding_size", 64),
    **each("pronunciation_embed_dim shape_embed_dim output_embedding_size", 64),
    **each("num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers", LAYERS),
    **each("num_attention_heads n_head n_heads num_heads decoder_attention_heads", 4),
    **each("encoder_attention_heads linear_num_key_heads linear_num_value_heads", 4),
    **each("num_key_value_heads num_kv_heads", 2),
    **each("head_dim v_head_dim qk_nope_head_dim kv_lora_rank global_head_dim", 16),
    **each("linear_key_head_dim linear_value_head_dim query_pre_attn_scalar", 16),
    **each("intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dff n_inner", 96),
    **each("ffn_hidden_size shared_intermediate_size", 96),
    **each("vocab_size decoder_vocab_size vocab_size_per_layer_input unpadded_vocab_size", VOCABULARY),
    **each("max_position_embeddings n_positions n_ctx max_seq_len max_target_positions", CONTEXT),
    **each("max_source_positions original_max_position_embeddings", CONTEXT),
    **each("sliding_window window_size", 48),
    **each("qk_rope_head_dim rotary_dim", 8), "q_lora_rank": 32, "num_codebooks": 2,
    "dim_model_base": 32, "num_kv_shared_layers": 0, "qk_head_dim": 24, "num_mel_bins": 16,
    "pronunciation_vocab_size": 32, "shape_vocab_size": 32,
    "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1, "sep_token_id": 1, "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
}  # fmt: skip
_OF_THE_CLASS = (
    "architectures", "transformers_version", "_name_or_path", "model_type", "dtype", "qk_head_dim", "per_layer_config",
)  # fmt: skip


def tiny_model(name: str) -> Any:
    """A model of `FAMILIES`, random: the same each time. No scale is 1, no bias 0."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if family.is_composite else AutoModelForCausalLM
    return randomised(auto.from_config(tiny_config(family.family or name, dict(family.config))).eval())


def randomised(model: Any) -> Any:
    """The model with noise on every weight."""
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.05 if parameter.dim() < 2 else 0.5 / parameter.shape[-1] ** 0.5
            parameter.add_(torch.randn(parameter.shape) * scale)
    return model


def tiny_config(name: str, settings: dict[str, Any], small: dict[str, Any] = SMALL) -> Any:
    """A family's own config with small sizes, and `settings` in it, or in a part of it."""
    made = _shrunk(CONFIG_MAPPING[name]().to_dict(), small)
    within = {key: {**made[key], **value} for key, value in settings.items() if key.endswith("config") and key in made}
    return CONFIG_MAPPING[name](**{**made, **settings, **within})


def _shrunk(values: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    depth = next((values[key] for key in ("num_hidden_layers", "n_layer") if isinstance(values.get(key), int)), None)
    made = {}
    for key, value in values.items():
        if key in _OF_THE_CLASS:
            continue
        if isinstance(value, dict) and key.endswith("config"):
            made[key] = _shrunk(value, small)
        elif isinstance(value, list) and len(value) == depth:  # a value for each layer: the first and the last kind
            made[key] = [value[0], value[-1]]
        else:
            is_set = value is not None or key in ("head_dim", "n_inner")
            made[key] = small[key] if key in small and is_set else value
    if values.get("num_key_value_heads") == values.get("num_attention_heads") and "num_key_value_heads" in made:
        made["num_key_value_heads"] = made["num_attention_heads"]
    return made


class TwoNetworks(nn.Module):
    """Two feed-forward networks beside one another, where a layer has one."""

    def __init__(self, mlp: nn.Module):
        super().__init__()
        self.one, self.other = mlp, copy.deepcopy(mlp)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.one(hidden_BTD) + self.other(hidden_BTD)


@dataclass(frozen=True)
class Seen:
    """What plain hooks see of a layer in one pass over a rectangle."""

    pre_BTF: Tensor
    activation_BTF: Tensor
    """float64, by the formula."""
    coefficient_BTF: Tensor


class PlainHooks:
    """Forward hooks on a bare model's own projections."""

    def __init__(self, model: Any, name: str):
        self.model = model
        self.family = FAMILIES[name]
        self._keys: dict[int, Tensor] = {}
        self._coefficients: dict[int, Tensor] = {}
        self._activations: list[nn.Module] = []
        for number, layer in enumerate(model.get_submodule(self.family.layers)):
            parts = dict(layer.named_modules())
            for name in self.family.keys.split(" + "):
                if name in parts:
                    parts[name].register_forward_hook(self._keep_keys(number))
            if self.family.down in parts:
                parts[self.family.down].register_forward_pre_hook(self._keep_coefficients(number))
            self._activations.append(layer)

    def _keep_keys(self, number: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self._keys[number] = self._keys[number] + output if number in self._keys else output

        return hook

    def _keep_coefficients(self, number: int) -> Any:
        def hook(_module: nn.Module, args: Any) -> None:
            self._coefficients[number] = args[0]

        return hook

    def run(self, ids_BT: Tensor) -> dict[int, Seen]:
        """The whole model over a rectangle; what each layer did that has a network."""
        self._keys.clear()
        with torch.no_grad():
            self.model(input_ids=ids_BT, use_cache=False)
        seen = {}
        for number, layer in enumerate(self._activations):
            if number not in self._keys:
                continue
            keys = self._keys[number].reshape(*ids_BT.shape, -1)
            pre_BTF = keys.chunk(2, dim=-1)[0] if self.family.split else keys
            coefficient_BTF = self._coefficients[number].reshape(pre_BTF.shape)
            seen[number] = Seen(pre_BTF, self._formula(layer)(pre_BTF.double()), coefficient_BTF)
        return seen

    def _formula(self, layer: nn.Module) -> Any:
        name = self.family.act or activation_name(self.model.config.get_text_config())
        return _xielu(layer.mlp.act_fn) if name == "xielu" else _FORMULAS[name]


def activation_name(config: Any) -> str:
    """As the config has it."""
    keys = ("hidden_activation", "activation_function", "hidden_act", "activation", "dense_act_fn")
    name: str = next(value for key in keys if isinstance(value := getattr(config, key, None), str))
    return name


def _gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


_FORMULAS = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
}


def _xielu(module: Any) -> Any:
    """arXiv 2411.13010, equation 8, with its two learnt slopes."""
    alpha_p, alpha_n = functional.softplus(module.alpha_p), module.beta + functional.softplus(module.alpha_n)

    def formula(x: Tensor) -> Tensor:
        negative = alpha_n * (torch.expm1(x.clamp(max=float(module.eps))) - x)
        return torch.where(x > 0, alpha_p * x**2, negative) + module.beta * x

    return formula
