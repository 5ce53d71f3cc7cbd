"""`neurotally bench` on a tiny shape: every variant runs, and the document says what was measured."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_model
from mixtures import tiny_mixture
from stacks import tiny_stacks
from torch import Tensor, nn

from neurotally.jobs.bench.measure import _random_batch, bench
from neurotally.jobs.bench.models import random_model
from neurotally.jobs.bench.variants import variants_of
from neurotally.jobs.cli import _main
from neurotally.profiler.model.load import load_model

VARIANTS = {"bare", "bare_again", "head", "products", "eager_counts", "eager_everything", "counts", "moments", "full"}


@pytest.fixture(params=["llama", "gpt_neox"])
def shape(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = {
        "model_type": request.param, "vocab_size": 300, "hidden_size": 32, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.slow
def test_every_variant_is_measured(shape: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["bench", "--shape", str(shape), "--layers", "2", "--rows", "2", "--row-tokens", "32", "--rounds", "3"]
    assert _main([*arguments, "--csv", str(tmp_path / "results.csv"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seconds"].keys() >= VARIANTS
    assert all(seconds > 0 for seconds in document["seconds"].values())
    for name in VARIANTS - {"bare"}:
        assert document[f"ratio_{name}"] > 0
        assert document[f"ratio_{name}_se"] >= 0
    assert (document["rows"], document["row_tokens"], document["dtype"]) == (2, 32, "bfloat16")
    assert document["tokens_per_s"] == pytest.approx(64 / document["seconds"]["full"])
    assert document["kernels"].keys() == {"silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh"}
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {row["variant"] for row in rows} == document["seconds"].keys()
    assert {row["variant"]: float(row["seconds"]) for row in rows} == document["seconds"]


HOOKS = {"products", "eager_counts", "eager_everything"}


@pytest.mark.parametrize(
    ("make", "name", "hooks"),
    [
        (tiny_model, "zamba", HOOKS),
        (tiny_model, "lfm2", set()),
        (tiny_mixture, "mixtral", set()),
        (tiny_mixture, "longcat_flash", set()),
        (tiny_stacks, "bert", HOOKS),
        (tiny_stacks, "t5", HOOKS),
    ],
    ids=["no network in some layers", "functional", "experts", "networks and experts", "encoder", "encoder-decoder"],
)
@pytest.mark.slow
def test_every_kind_of_model_is_measured(
    make: Callable[[str], Any], name: str, hooks: set[str], tokenizer: Any, tmp_path: Path
) -> None:
    make(name).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    document = bench(str(tmp_path), rows=2, row_tokens=32, dtype="float32", device="cpu", rounds=2, on_terminal=False)
    assert document["seconds"].keys() - {"nnsight_counts"} == (VARIANTS - HOOKS) | hooks


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_products_alone_leave_out_activations_and_nothing_else(family: str, tokenizer: Any, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "cpu", "float32")
    run, state = variants_of(model, _random_batch(model, 2, 32))["products"]
    computed: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, part in model.blocks.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_hook(
                lambda _part, args, output, name=name: computed.setdefault(name, []).append((args[0], output))
            )
    with state():
        run()
    keys, down = {"llama": ("up_proj", "down_proj"), "gpt_neox": ("dense_h_to_4h", "dense_4h_to_h")}[family]
    linear = {name for name, part in model.blocks.named_modules() if isinstance(part, nn.Linear)}
    assert computed.keys() == linear - {f"1.mlp.{down}"}
    assert all(len(calls) == 1 for calls in computed.values())
    (_, given_BTF), (read_BTF, _) = computed[f"0.mlp.{keys}"][0], computed[f"0.mlp.{down}"][0]
    assert torch.equal(read_BTF, given_BTF)


def test_a_shape_cut_short_keeps_its_name(shape: Path) -> None:
    assert random_model("llama-3m", 1, "bfloat16", "cpu")[1] == "llama-3m-1-layers"
    assert random_model("llama-3m", None, "bfloat16", "cpu")[1] == "llama-3m"
    assert random_model(str(shape), 2, "bfloat16", "cpu")[1] == "config-2-layers"


def test_a_row_beyond_the_context_is_refused(shape: Path, capsys: pytest.CaptureFixture) -> None:
    assert _main(["bench", "--shape", str(shape), "--row-tokens", "65"]) == 2
    assert "--row-tokens 65: the model takes at most 64" in capsys.readouterr().err
