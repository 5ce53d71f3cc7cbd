"""Models larger than their device, and models with code of their own: read as if they were neither."""

import json
import shutil
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from mixtures import tiny_mixture
from reference import unit_arrays
from test_profiler_interventions import tallied
from test_profiler_loss import one_batch
from test_profiler_sites import tiny

from neurotally.profiler.errors import InputError, UnsupportedModelError
from neurotally.profiler.model.config import empty_model, weight_bytes
from neurotally.profiler.model.load import load_model, prepare_model
from neurotally.profiler.model.offloading import is_offloaded
from neurotally.profiler.passes.loss import LossReader


def offloaded(model: Any, kind: str, folder: Path) -> Any:
    if kind == "cpu":
        return accelerate.cpu_offload(model, torch.device("cpu"))
    return accelerate.disk_offload(model, folder, torch.device("cpu"))


@pytest.mark.parametrize("kind", ["cpu", "disk"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "opt"])
@pytest.mark.slow
def test_offloaded_layers_are_read_as_others_are(family: str, kind: str, tokenizer: Any, tmp_path: Path) -> None:
    expected = prepare_model(tiny(family), tokenizer, family, None, "float32")
    model = prepare_model(offloaded(tiny(family), kind, tmp_path), tokenizer, family, None, "float32")
    assert is_offloaded(model.model)
    assert not is_offloaded(expected.model)
    assert model.facts == expected.facts
    assert {device.type for device in model.devices} == {"cpu"}
    ours, theirs = unit_arrays(tallied(model)), unit_arrays(tallied(expected))
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    for mine, its in zip(model.hook_points, expected.hook_points, strict=True):
        assert torch.equal(mine.key_bias(), its.key_bias())
    nats = [LossReader(one).read(one_batch()).nats_N for one in (model, expected)]
    np.testing.assert_array_equal(*nats)
    assert is_offloaded(model.model)


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_experts_that_are_offloaded_are_refused_by_name(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    model = offloaded(tiny_mixture("mixtral"), kind, tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"^layer 0 \(.*experts\): experts .* \(offloaded\) .*$"):
        prepare_model(model, tokenizer, "mixtral", None, "float32")


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def own_code(model_folder: Path, tmp_path: Path) -> Path:
    """The tiny Llama under a class of its own, whose code lies beside it."""
    folder = tmp_path / "own"
    shutil.copytree(model_folder, folder)
    (folder / "modeling_own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_model_with_code_of_its_own_loads_and_is_measured_only_if_it_is_trusted(
    own_code: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(InputError, match=r"custom code.* If you trust it, pass --trust-remote-code"):
        load_model(str(own_code), device="cpu")
    own = AutoConfig.from_pretrained(own_code, trust_remote_code=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        empty_model(own, False, torch.bfloat16)
    model = load_model(str(own_code), device="cpu", trust_remote_code=True)
    assert model.facts.architecture == "OwnForCausalLM"
    num_bytes = sum(parameter.numel() for parameter in model.model.parameters()) * 2
    assert weight_bytes(empty_model(own, True, torch.bfloat16)) == num_bytes
    assert weight_bytes(empty_model(AutoConfig.from_pretrained(model_folder), False, torch.bfloat16)) == num_bytes
