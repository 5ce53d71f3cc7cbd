"""A store is one model's: the same weights under another config are refused by every pass, by the value's name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr
from conftest import Run
from test_profiler_model import edit_config

from neurotally.profiler import store

OPTIONS = ("--row-tokens", "64", "--groups", "2", "--triggers", "4", "--workers", "1", "--device", "cpu")

# One that changes no weight's shape, what it becomes, and what is said of it.
EDITS = {
    "rms_norm_eps": ({"rms_norm_eps": 1e-3}, "rms_norm_eps is 0.001, the store has 1e-06"),
    "rope theta": (
        {"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
        "rope_parameters.rope_theta is 500.0, the store has 10000.0",
    ),
    "hidden_act": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', the store has 'silu'"),
    "num_attention_heads": (
        {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
        "num_attention_heads is 8, the store has 4",
    ),
    "num_hidden_layers": ({"num_hidden_layers": 1}, "fingerprint"),
}


@pytest.fixture
def profiled(
    run: Run, model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path
) -> tuple[Path, Path, Path]:
    """(a copy of the model, a finished store of it, the corpora)."""
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    corpora = make_corpora({"c++": 6, "python": 6})
    code, _, errors = run("profile", model, tmp_path / "store", "--corpora", corpora, *OPTIONS)
    assert code == 0, errors
    return model, tmp_path / "store", corpora


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.slow
def test_the_same_weights_under_another_config_are_another_model(
    edit: str, run: Run, profiled: tuple[Path, Path, Path], make_corpora: Callable[..., Path]
) -> None:
    model, path, corpora = profiled
    values, message = EDITS[edit]
    edit_config(model, **values)
    # A finished store, one with a further corpus to do, and a pass beside it.
    commands: list[tuple[Any, ...]] = [
        ("profile", model, path, "--corpora", corpora, *OPTIONS),
        ("profile", model, path, "--corpora", make_corpora({"go": 3}), *OPTIONS),
        ("agreement", model, path, "--corpora", corpora, "--workers", "1", "--device", "cpu"),
    ]
    for command in commands:
        code, out, errors = run(*command)
        assert (code, out) == (2, "")
        assert "is a store of another model: " in errors
        assert message in errors
    assert store.committed_corpora(path) == ["c++", "python"]


@pytest.mark.slow
def test_neurons_are_not_switched_off_in_a_model_of_another_config(
    run: Run, profiled: tuple[Path, Path, Path], make_corpora: Callable[..., Path], tmp_path: Path
) -> None:
    model, path, _ = profiled
    edit_config(model, hidden_act="gelu")
    held_out = tmp_path / "held-out"
    shutil.move(make_corpora({"c++": 4, "python": 4}, seed=1), held_out)
    neurons = {
        "model": {"fingerprint": store.store_attributes(path)["model"]["fingerprint"]},
        "specific": {"a": [[0, 1]]},
    }
    (tmp_path / "neurons.json").write_text(json.dumps(neurons))
    options = ("--corpora", held_out, "--workers", "1", "--device", "cpu")
    for command in (
        ("ablate", model, path, *options, "--per-corpus", "3", "--quantile", "0.5"),
        ("mask", model, path, *options, "--neurons", tmp_path / "neurons.json"),
    ):
        code, _, errors = run(*command)
        assert code == 2
        assert "another model: its config's hidden_act is 'gelu', the store has 'silu'" in errors


@pytest.mark.slow
def test_what_decides_no_hidden_state_is_no_other_model(run: Run, profiled: tuple[Path, Path, Path]) -> None:
    model, path, corpora = profiled
    edit_config(model, initializer_range=0.7, attention_dropout=0.5, eos_token_id=3, architectures=["Other"])
    code, out, errors = run("profile", model, path, "--corpora", corpora, *OPTIONS)
    assert code == 0, errors
    assert "is complete" in out


def test_a_key_that_only_one_version_of_transformers_has_is_no_difference(
    run: Run, profiled: tuple[Path, Path, Path]
) -> None:
    model, path, corpora = profiled
    attributes = store.store_attributes(path)
    del attributes["model"]["config"]["mlp_bias"]
    del attributes["model"]["config"]["rope_parameters"]["rope_type"]
    store.replace_attributes(path, attributes)
    code, _, errors = run("profile", model, path, "--corpora", corpora, *OPTIONS)
    assert code == 0, errors


def test_weights_without_a_use_are_told_and_noted(
    run: Run, model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    edit_config(model, num_hidden_layers=1)
    code, _, errors = run("profile", model, tmp_path / "store", "--corpora", make_corpora({"go": 3}), *OPTIONS)
    assert code == 0
    assert "warning: LlamaForCausalLM makes no use of model.layers.1.input_layernorm.weight" in errors
    (noted,) = zarr.open_group(tmp_path / "store").attrs["model"]["warnings"]
    assert "and 6 more in the checkpoint" in noted


def test_fresh_weights_need_no_checkpoint_but_a_model_that_can_be_read(
    run: Run, model_folder: Path, make_corpora: Callable[..., Path], tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (model / "model.safetensors").unlink()
    command = ("profile", model, tmp_path / "store", "--corpora", make_corpora({"go": 3}), *OPTIONS)
    code, _, errors = run(*command, "--random-init", "1")
    assert code == 0, errors
    edit_config(model, hidden_act="gelu")
    code, _, errors = run(*command, "--random-init", "1")
    assert code == 2
    assert "hidden_act is 'gelu', the store has 'silu'" in errors
    edit_config(model, model_type="whisper", architectures=["WhisperForConditionalGeneration"], is_encoder_decoder=True)
    code, _, errors = run("profile", model, tmp_path / "other", *command[3:], "--random-init", "1")
    assert code == 2
    assert "AutoModelForSeq2SeqLM has no entry for whisper" in errors
