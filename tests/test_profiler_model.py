"""Loading a model: whole or not at all, of a kind that can be read, and refused with the true reason."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_llama
from families import tiny_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.config import auto_class, forward_config, refuse_other_kinds, row_limits
from neurotally.profiler.model.load import load_model, prepare_model
from neurotally.profiler.model.stacks import find_decoder, stack_layers


def save_gpt2(folder: Path, tokenizer: Any) -> Path:
    """Its head is its embedding, and isn't in the checkpoint."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("save", [lambda *to: save_llama(*to, seed=0), save_gpt2], ids=["llama", "gpt2, tied head"])
@pytest.mark.slow
def test_a_checkpoint_without_any_one_of_its_weights_is_refused_by_name(
    save: Callable[[Path, Any], Path], tokenizer: Any, tmp_path: Path
) -> None:
    folder = save(tmp_path, tokenizer)
    whole = load_file(folder / "model.safetensors")
    assert len(whole) > 20
    load_model(str(folder), "cpu")
    for name in whole:
        rest = {key: value for key, value in whole.items() if key != name}
        save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
        message = refusal(lambda: load_model(str(folder), "cpu"))
        # Where the head is the embedding, without the one both are missing.
        expected = "lm_head.weight, transformer.wte.weight" if name == "transformer.wte.weight" else name
        assert f"lacks {expected}, without which" in message


def test_further_missing_weights_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    folder = save_llama(tmp_path, tokenizer, seed=0)
    whole = load_file(folder / "model.safetensors")
    rest = {key: value for key, value in whole.items() if "layers.1." not in key}
    save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
    named = "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "
    assert f"lacks {named}model.layers.1.mlp.gate_proj.weight and 6 more, without" in refusal(
        lambda: load_model(str(folder), "cpu")
    )


def test_a_weight_of_another_shape_is_refused_by_name(tokenizer: Any, tmp_path: Path) -> None:
    folder = save_llama(tmp_path, tokenizer, seed=0)
    whole = load_file(folder / "model.safetensors")
    whole["model.layers.1.mlp.up_proj.weight"] = torch.zeros(47, 32)
    save_file(whole, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(lambda: load_model(str(folder), "cpu"))
    assert "model.layers.1.mlp.up_proj.weight" in message
    assert "expected shape [48, 32], it has [47, 32]" in message


def test_weights_that_the_model_makes_no_use_of_are_warned_about(tokenizer: Any, tmp_path: Path) -> None:
    folder = save_llama(tmp_path, tokenizer, seed=0)
    assert load_model(str(folder), "cpu").facts.warnings == ()
    edit_config(folder, num_hidden_layers=1)
    (warning,) = load_model(str(folder), "cpu").facts.warnings
    assert "LlamaForCausalLM makes no use of model.layers.1.input_layernorm.weight" in warning
    assert "and 6 more in the checkpoint" in warning


def edit_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def small(name: str, **settings: Any) -> Any:
    """A config of a family, of two layers."""
    made = {"num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 608, "num_attention_heads": 4, **settings}
    return CONFIG_MAPPING[name](**made)


def test_experts_of_an_unknown_kind_are_refused_before_weights_are_read() -> None:
    config = small("doge", num_experts=16, num_experts_per_tok=2, is_moe=True)
    message = refusal(lambda: refuse_other_kinds(config, "some/model"))
    assert "some/model (doge) is a mixture of experts (model.layers.0.mlp" in message
    assert "of a kind that isn't known: not supported yet" in message


@pytest.mark.parametrize(
    "name", ["mixtral", "qwen3_moe", "gpt_oss", "olmoe", "granitemoe", "phimoe", "jetmoe", "llama4_text"]
)
def test_a_mixture_of_experts_isnt_refused_for_being_one(name: str) -> None:
    refuse_other_kinds(small(name), "some/model")


@pytest.mark.parametrize(
    "config",
    [
        small("doge", num_experts=16, is_moe=False),
        small("granitemoehybrid", num_local_experts=0, layer_types=["full_attention"] * 2),
        small("nemotron_h", layers_block_type=["mlp", "full_attention"]),
    ],
    ids=lambda config: config.model_type,
)
def test_a_dense_model_of_a_family_of_mixtures_is_no_mixture(config: Any) -> None:
    refuse_other_kinds(config, "some/model")


def test_a_model_without_networks_is_refused_for_what_it_lacks(tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    config = small("nemotron_h", layers_block_type=["full_attention"] * 2, num_key_value_heads=4)
    message = refusal(
        lambda: prepare_model(AutoModelForCausalLM.from_config(config).eval(), tokenizer, "m", None, "float32")
    )
    assert "expected feed-forward networks, found none in any layer (layer 0 (layers.0): " in message


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava", "glm4v", "idefics3"])
def test_a_vision_language_model_is_loaded_whole(name: str) -> None:
    config = CONFIG_MAPPING[name]()
    refuse_other_kinds(config, "some/model")
    assert auto_class(config) is AutoModelForImageTextToText
    assert auto_class(CONFIG_MAPPING["llama"]()) is AutoModelForCausalLM


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("whisper", {}, "transformers' AutoModelForSeq2SeqLM has no entry for whisper"),
        ("llama", {"architectures": ["LlamaForMaskedLM"]}, "AutoModelForMaskedLM has no entry for llama"),
        ("musicgen_decoder", {}, "AutoModelForCausalLM has no entry for musicgen_decoder"),
        ("bigbird_pegasus", {}, "depends on the length to which a row is padded"),
        ("mra", {}, "depends on the length to which a row is padded"),
        ("reformer", {"is_decoder": True}, "depends on the length to which a row is padded"),
        ("big_bird", {"is_decoder": True}, "depends on the length to which a row is padded"),
    ],
)
def test_other_kinds_are_refused_with_the_reason(name: str, settings: dict[str, Any], message: str) -> None:
    assert message in refusal(lambda: refuse_other_kinds(CONFIG_MAPPING[name](**settings), "some/model"))


def test_a_config_without_a_number_of_layers_is_refused(tokenizer: Any) -> None:
    model = tiny_model("llama")
    model.config = AutoConfig.for_model("blt")
    assert "says num_hidden_layers=None, expected 1 or more" in refusal(
        lambda: prepare_model(model, tokenizer, "m", None, "float32")
    )


def test_a_config_with_absurdly_many_layers_is_refused_before_they_are_made(model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**12}))
    assert "num_hidden_layers=1000000000000, expected 10000 or fewer" in refusal(
        lambda: load_model(str(tmp_path / "m"))
    )


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", 5])
def test_an_index_of_weights_elsewhere_is_refused(name: object, model_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(model_folder, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"names the weight file {name!r}" in refusal(lambda: load_model(str(tmp_path / "m")))


def test_a_body_that_runs_its_layers_on_more_than_the_tokens_is_refused(tokenizer: Any) -> None:
    from transformers import ProphetNetConfig, ProphetNetForCausalLM

    config = ProphetNetConfig(
        vocab_size=608, hidden_size=64, num_decoder_layers=2, num_encoder_layers=2, num_decoder_attention_heads=4,
        decoder_ffn_dim=96, max_position_embeddings=128, is_decoder=True, is_encoder_decoder=False,
    )  # fmt: skip
    model = ProphetNetForCausalLM(config).eval()
    message = refusal(lambda: prepare_model(model, tokenizer, "prophet", None, "float32"))
    assert "it is given (2, 120, 96) pre-activations of a batch of (2, 40) tokens" in message


def test_a_head_called_decoder_is_not_taken_for_the_decoder() -> None:
    model = tiny_model("modernbert-decoder")
    assert isinstance(model.get_decoder(), nn.Linear)
    assert find_decoder(model, 2) is model.model


def test_a_decoder_that_get_decoder_misses_is_found_by_its_layers() -> None:
    from transformers import MllamaForCausalLM
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig

    config = MllamaTextConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, cross_attention_layers=[], pad_token_id=2,
    )  # fmt: skip
    model = MllamaForCausalLM(config)
    assert model.get_decoder() is model
    assert find_decoder(model, 2) is model.model


def test_of_two_stacks_of_equal_depth_none_is_picked() -> None:
    whole = T5Model(T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=2, num_heads=2))
    with pytest.raises(UnsupportedModelError, match=r"several lists of 2 layers \(encoder.block, decoder.block\)"):
        stack_layers(whole, 2)
    assert stack_layers(whole.decoder, 2) is whole.decoder.block


def test_lists_within_layers_and_lists_of_norms_are_no_stacks() -> None:
    block = nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)]), "act": nn.ReLU()})
    blocks = nn.ModuleList([block, nn.ModuleDict({"fc": nn.Linear(2, 2), "act": nn.ReLU()})])
    norms = nn.ModuleList([nn.LayerNorm(2), nn.LayerNorm(2)])
    projections = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    decoder = nn.ModuleDict({"norms": norms, "projections": projections, "blocks": blocks})
    assert stack_layers(decoder, 2) is blocks


def test_rope_factors_that_depend_on_the_width_bound_the_rows() -> None:
    longrope = {"rope_type": "longrope", "original_max_position_embeddings": 100, "short_factor": [1.0], "factor": 4}
    config = small("llama", max_position_embeddings=400)
    nowhere = nn.Module()
    assert row_limits(config, nowhere) == (400, 400)
    config.rope_parameters = longrope
    assert row_limits(config, nowhere) == (100, 100)
    config.rope_parameters = {"full_attention": longrope, "sliding_attention": {"rope_type": "default"}}
    assert row_limits(config, nowhere) == (100, 100)
    config.rope_parameters = {**longrope, "rope_type": "yarn"}
    assert row_limits(config, nowhere) == (100, 400)


def test_what_decides_the_forward_pass_is_kept_and_the_rest_is_not() -> None:
    def kept(**settings: Any) -> dict[str, Any]:
        return forward_config(small("llama", **settings), nn.Module())

    first = kept()
    assert json.loads(json.dumps(first)) == first
    for settings in (
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"num_attention_heads": 8, "head_dim": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
        {"attention_bias": True},
        {"max_position_embeddings": 64},
        {"tie_word_embeddings": True},
    ):
        assert kept(**settings) != first, settings
    for settings in (
        {"bos_token_id": 7, "pad_token_id": 3},
        {"initializer_range": 0.5},
        {"attention_dropout": 0.5},
        {"use_cache": False, "output_attentions": True},
        {"id2label": {0: "a"}, "architectures": ["X"], "dtype": "bfloat16"},
    ):
        assert kept(**settings) == first, settings


def test_the_pad_token_counts_where_positions_begin_after_it() -> None:
    model = tiny_model("roberta")
    assert forward_config(model.config, model.base_model)["pad_token_id"] == 2
    assert "pad_token_id" not in forward_config(model.config, nn.Module())
