"""What a model's config alone tells of it, held against the same models loaded with their weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model
from mixtures import MIXTURES, TOP, tiny_mixture
from stacks import STACKS, tiny_stacks
from transformers import AutoConfig

from neurotally.profiler.errors import InputError
from neurotally.profiler.model.config import auto_class, empty_model, weight_bytes
from neurotally.profiler.model.hooking import hook_model
from neurotally.profiler.model.load import load_model
from neurotally.profiler.model.outline import _by_structure, outline_model

OF_STACKS = [f"stacks of {name}" for name in STACKS]


def tiny(name: str) -> Any:
    if name in OF_STACKS:
        return tiny_stacks(name.removeprefix("stacks of "))
    return tiny_mixture(name) if name in MIXTURES else tiny_model(name)


NEEDS_VALUES = ("dbrx", "jetmoe")
"""No pass without values goes through them, so structure and config tell their networks."""
IN_FLOAT32 = {
    "beam": ("found none: layers.0.mlp.act_fn: no weight matrix", "found none: layers.0.mlp.act_fn: no weight matrix"),
    "xlstm": ("expected m1 and m2 to have the same dtype", "can't be told without its weights"),
}
"""Refused in 16 bits, by loading and without weights: Beam takes its activations in float32, and xLSTM's code mixes
dtypes."""
IN_BOTH = ("llama", "phi3", "mixtral", "deepseek_v3", "stacks of t5", *IN_FLOAT32)
"""Tried in float32 and bfloat16; the others in bfloat16, most checkpoints' own."""
CHOSEN = {"zaya": 1}
"""Experts of each token, where not TOP."""


@pytest.mark.parametrize("name", [*FAMILIES, *MIXTURES, *OF_STACKS])
@pytest.mark.slow
def test_a_config_tells_what_the_loaded_model_is(name: str, tokenizer: Any, tmp_path: Path) -> None:
    bare = tiny(name)
    for dtype in ("float32", "bfloat16")[name not in IN_BOTH :]:
        folder = tmp_path / dtype
        bare.to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if name in IN_FLOAT32 and dtype != "float32":
            for look, why in zip((load_model, outline_model), IN_FLOAT32[name], strict=True):
                with pytest.raises(InputError, match=why):
                    look(str(folder), "cpu", dtype)
        else:
            check_outline(name, folder, dtype)


def check_outline(name: str, folder: Path, dtype: str) -> None:
    model = load_model(str(folder), "cpu", dtype)
    for weights in folder.glob("*.safetensors"):
        weights.rename(weights.with_suffix(".elsewhere"))
    outline = outline_model(str(folder), "cpu", dtype)
    assert bool(outline.pass_failed) is (name in NEEDS_VALUES)
    networks = tuple(point.network for point in model.hook_points)
    if name in NEEDS_VALUES:
        networks = tuple(replace(one, name=told.name) for one, told in zip(networks, outline.networks, strict=True))
    assert outline.networks == networks
    assert outline.num_neurons == sum(point.width for point in model.hook_points)
    assert outline.widest_layer == model.num_neurons
    if name not in NEEDS_VALUES:
        assert outline.experts_per_token == (CHOSEN.get(name, TOP) if name in MIXTURES else None)
    facts = model.facts
    assert (outline.architecture, outline.num_layers, outline.hidden_size) == (
        facts.architecture, facts.num_layers, facts.width,
    )  # fmt: skip
    assert (outline.attention, outline.dtype, outline.checkpoint_dtype) == (facts.attention, dtype, dtype)
    assert (outline.row_tokens, outline.max_row_tokens) == (facts.row_tokens, facts.max_row_tokens)
    assert outline.vocabulary == model.vocabulary
    parameters = list(model.model.parameters())
    assert outline.num_weights == sum(parameter.numel() for parameter in parameters)
    assert outline.weight_bytes == sum(parameter.numel() * parameter.element_size() for parameter in parameters)


@pytest.mark.parametrize("name", ["llama", "opt", "gpt_neox", "mixtral", "qwen3_moe", "gpt_oss"])
def test_where_no_pass_goes_through_structure_and_config_tell_the_widths(name: str) -> None:
    model = tiny(name)
    hooked = hook_model(model, name)
    found = [(one.layer, one.first, one.neurons, one.experts) for one in _by_structure(hooked.stacks, model.config)]
    expected = [point.network for point in hooked.hook_points]
    assert found == [(one.layer, one.first, one.neurons, one.experts) for one in expected]


def test_a_pass_that_needs_values_is_said(model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaModel):
    def forward(self, input_ids, **kwargs):
        return super().forward(input_ids.new_tensor(input_ids.tolist()), **kwargs)
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = OwnModel(config)
        self.post_init()
"""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "needing"
    shutil.copytree(model_folder, folder)
    (folder / "modeling_own.py").write_text(code)
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own", "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    outline = outline_model(str(folder), "cpu", trust_remote_code=True)
    assert "tolist" in outline.pass_failed or "meta" in outline.pass_failed
    model = load_model(str(folder), "cpu", trust_remote_code=True)
    assert outline.num_neurons == sum(point.width for point in model.hook_points)
    with pytest.raises(InputError, match="pass --trust-remote-code"):
        outline_model(str(folder), "cpu")


def test_a_model_without_weights_is_made_once(model_folder: Path) -> None:
    config, again, other = (AutoConfig.from_pretrained(model_folder) for _ in range(3))
    other.intermediate_size += 1
    model = empty_model(config, False, torch.float32)
    assert empty_model(again, False, torch.float32) is model
    assert empty_model(again, False, torch.bfloat16) is not model
    assert empty_model(other, False, torch.float32).model.layers[0].mlp.gate_proj.out_features == 49


@pytest.mark.parametrize("name", ["gpt_oss", "stacks of t5"])
def test_weights_that_stay_in_float32_are_counted(name: str, tmp_path: Path) -> None:
    """Some of a float16 model's, if its family says so."""
    bare = tiny(name)
    bare.half().save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    loaded = auto_class(config).from_pretrained(tmp_path, dtype=torch.float16)
    parameters = list(loaded.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float16, torch.float32}
    expected = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    assert weight_bytes(empty_model(config, False, torch.float16)) == expected
