"""`neurotally inspect`: what it says of a model is what loading and profiling it give."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixtures import tiny_mixture
from stacks import STACKS, tiny_stacks
from test_jobs_cli import refused
from transformers import AutoConfig

from neurotally.jobs import inspect
from neurotally.jobs.inspection import networks_by_layers
from neurotally.profiler import store
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.load import load_model
from neurotally.profiler.model.outline import outline_model

Run = Callable[..., tuple[int, str, str]]


def tiny(name: str) -> Any:
    return tiny_stacks(name) if name in STACKS else tiny_mixture(name)


def save(model: Any, folder: Path, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_it_says_is_what_loading_finds(run: Run, model_folder: Path) -> None:
    code, out, err = run("inspect", model_folder, "--json", "--device", "cpu")
    document = json.loads(out)
    assert (code, err, document["supported"]) == (0, "", True)
    model = load_model(str(model_folder), "cpu")
    assert document["neurons"] == sum(point.width for point in model.hook_points) == 2 * 48
    assert (document["layers"], document["hidden_size"]) == (2, 32)
    assert document["networks_by_layers"] == {"0-1": "one network of 48"}
    assert document["weights"]["bytes"] == sum(p.numel() * p.element_size() for p in model.model.parameters())
    assert document["weights"]["checkpoint_bytes"] == (model_folder / "model.safetensors").stat().st_size
    assert document["speed"] is None
    code, out, _ = run("inspect", model_folder, "--device", "cpu")
    assert "llama, LlamaForCausalLM) is supported, as far as its config tells." in out
    assert "0-1       one network of 48" in out
    again = inspect(str(model_folder), device="cpu").document
    assert again | {"devices": None} == document | {"devices": None}


def test_no_weight_is_read(run: Run, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    code, out, _ = run("inspect", tmp_path, "--json", "--device", "cpu", "--dtype", "bfloat16")
    document = json.loads(out)
    assert code == 0
    assert document["weights"]["checkpoint_bytes"] is None
    assert document["weights"]["bytes"] == 2 * document["weights"]["number"]


@pytest.mark.slow
def test_layers_of_several_widths_are_told_in_a_few_words(tmp_path: Path) -> None:
    """DeepSeek-V3 at its own size: 671 billion weights, none of which is made."""
    AutoConfig.for_model("deepseek_v3", architectures=["DeepseekV3ForCausalLM"]).save_pretrained(tmp_path)
    outline = outline_model(str(tmp_path), "cpu", "bfloat16")
    assert networks_by_layers(outline) == {
        "0-2": "one network of 18,432",
        "3-60": "256 experts of 2,048 + a shared one of 2,048",
    }
    assert outline.num_neurons == 3 * 18432 + 58 * 257 * 2048
    assert outline.experts_per_token == 8
    hidden, experts = 7168, 58 * 257 * 3 * 2048 * 7168
    assert experts < outline.num_weights < experts + 61 * 30 * hidden**2 + 2 * 129280 * hidden
    assert outline.weight_bytes == 2 * outline.num_weights


def test_layers_that_alternate_are_told_together(tokenizer: Any, tmp_path: Path) -> None:
    folder = save(tiny_mixture("jamba"), tmp_path, tokenizer)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    assert networks_by_layers(outline_model(str(folder), "cpu")) == {
        "0, 2, 4": "one network of 96", "1, 3, 5": "6 experts of 96",
    }  # fmt: skip


def test_stacks_are_told_apart(tokenizer: Any, tmp_path: Path) -> None:
    folder = save(tiny_stacks("bart"), tmp_path, tokenizer)
    assert networks_by_layers(outline_model(str(folder), "cpu")) == {
        "0-1": "one network of 96 (encoder)", "2-4": "one network of 80",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "groups", "triggers"),
    [
        ("llama", 10, 32),
        ("llama", 3, 0),
        ("deepseek_v3", 10, 32),
        ("deepseek_v3", 3, 5),
        ("gpt_oss", 2, 0),
        ("t5", 3, 5),
    ],
)
@pytest.mark.slow
def test_a_store_is_as_large_as_it_says(
    name: str, groups: int, triggers: int, run: Run, model_folder: Path, tokenizer: Any, make_corpora: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    folder = model_folder if name == "llama" else save(tiny(name), tmp_path / "model", tokenizer)
    settings = ("--groups", groups, "--triggers", triggers, "--device", "cpu")
    document = json.loads(run("inspect", folder, *settings, "--json")[1])
    corpora = make_corpora({"python": 6})
    code, _, err = run("profile", folder, tmp_path / "s", "--corpora", corpora, "--row-tokens", 64, *settings)
    assert code == 0, err
    arrays = store.read_corpus(tmp_path / "s", "python")
    by_document = ("document_", "unit_")
    size = sum(values.nbytes for array, values in arrays.items() if not array.startswith(by_document))
    assert document["store_bytes_per_corpus"] == size
    assert document["neurons"] == np.count_nonzero(arrays["active"][0] != np.uint64(2**64 - 1))


@pytest.mark.parametrize("name", ["mixtral", "t5"])
@pytest.mark.slow
def test_a_probe_tells_the_speed(
    name: str, run: Run, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("neurotally.jobs.inspection._PROBE_S", 0.1)
    folder = save(tiny(name), tmp_path, tokenizer)
    code, out, _ = run("inspect", folder, "--probe", "--json", "--device", "cpu")
    speed = json.loads(out)["speed"]
    assert code == 0
    assert speed["tokens_per_s"] > 0
    assert speed["hours_per_billion"] == pytest.approx(1e9 / speed["tokens_per_s"] / 3600)


@pytest.mark.parametrize("name", ["mamba", "hrm_text"])
def test_what_isnt_supported_is_refused_as_loading_refuses_it(
    name: str, run: Run, tokenizer: Any, tmp_path: Path
) -> None:
    from families import tiny_config
    from mixtures import _SMALL
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(tiny_config(name, {}, _SMALL)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError) as loading:
        load_model(str(tmp_path), "cpu")
    refused(run("inspect", tmp_path, "--device", "cpu"), str(loading.value))


@pytest.mark.parametrize(
    ("model", "message"),
    [("no/such/folder", "no such model folder: no/such/folder"), (".", "is no model folder: it has no config.json")],
)
def test_bad_input_is_one_line(
    run: Run, model: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("inspect", model), message)
