"""Stores of a mixture of experts: made by any number of workers, killed and gone on with, and read by every study."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from conftest import lay_out
from mixtures import EXPERTS, TOP, tiny_mixture
from numpy.testing import assert_allclose, assert_array_equal
from reference import everything
from stores import CORPORA, kill_after_a_checkpoint, make_store

from neurotally.analysis import open_store
from neurotally.profiler import store

Run = Callable[..., tuple[int, str, str]]


def save(name: str, folder: Path, tokenizer: Any) -> Path:
    tiny_mixture(name).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """DeepSeek-V3's layers: one dense, one with experts and a shared one, of another width."""
    return save("deepseek_v3", tmp_path_factory.mktemp("models") / "deepseek", tokenizer)


@pytest.fixture(scope="module")
def made(mixture: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(mixture, tmp_path_factory.mktemp("stores") / "s", corpora)


def sites(path: Path) -> list[dict[str, Any]]:
    """The table of sites, a row each."""
    arrays = store.read_arrays(path / "sites", schema=store.SITES_SCHEMA)
    return [{name: arrays[name][row] for name in arrays} for row in range(len(arrays["site_layer"]))]


@pytest.mark.usefixtures("workers_share_this_process")
@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(mixture: Path, corpora: Path, made: Path, tmp_path: Path) -> None:
    for workers in (2, 3):
        assert everything(make_store(mixture, tmp_path / f"{workers}", corpora, workers=workers)) == everything(made)


@pytest.mark.ray
def test_a_killed_run_goes_on_to_the_same_bits(mixture: Path, corpora: Path, made: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    kill_after_a_checkpoint(mixture, path, corpora)
    assert everything(make_store(mixture, path, corpora)) == everything(made)


def test_the_store_tells_where_neurons_are_and_what_came_by(made: Path) -> None:
    assert store.store_attributes(made)["schema"] == 2
    table = sites(made)
    assert [(int(of["site_layer"]), int(of["site_first"]), int(of["site_neurons"]), int(of["site_expert"]))
            for of in table] == [
        (0, 0, 96, -1),
        *((1, 24 * expert, 24, expert) for expert in range(EXPERTS)),
        (1, 24 * EXPERTS, 24, -1),
    ]  # fmt: skip
    for corpus in CORPORA:
        arrays = store.read_corpus(made, corpus)
        by_site, tokens = arrays["site_tokens"].sum(0), arrays["tokens"].sum()
        is_expert = np.array([of["site_expert"] >= 0 for of in table])
        assert by_site[is_expert].sum() == TOP * tokens
        assert (by_site[~is_expert] == tokens).all()
        assert_array_equal(arrays["site_special_tokens"][:, ~is_expert][:, 0], arrays["special_tokens"])
        assert_allclose(arrays["site_weight"][~is_expert], tokens)
        no_neuron = np.s_[..., 0, 96:]
        assert (arrays["active"][no_neuron] == 2**64 - 1).all()
        assert np.isnan(arrays["coefficient_sum"][no_neuron]).all()
        assert np.isnan(arrays["trigger_value"][0, 96:]).all()
        assert (arrays["trigger_document"][0, 96:] == 2**32 - 1).all()
        assert not np.isnan(arrays["coefficient_sum"][0, :96]).any()
        assert_array_equal(arrays["weighted_coefficient_sum"][0, :96], arrays["coefficient_sum"][0, :96])
    with xarray.open_zarr(made, group="corpora/python") as opened:
        assert opened["site_tokens"].dims == ("group", "site")
    with xarray.open_zarr(made, group="sites") as opened:
        assert opened["site_name"].values[0] == "layers.0.mlp.act_fn"


def rates(path: Path, corpus: str, joint: bool) -> dict[tuple[int, int], float]:
    """By (layer, neuron): the share of the tokens that came by, or of all, at which it is active."""
    arrays = store.read_corpus(path, corpus)
    found = {}
    for row, of in enumerate(sites(path)):
        tokens = int((arrays["tokens"] if joint else arrays["site_tokens"][:, row]).sum())
        for neuron in range(int(of["site_first"]), int(of["site_first"]) + int(of["site_neurons"])):
            active = int(arrays["active"][:, int(of["site_layer"]), neuron].sum())
            found[int(of["site_layer"]), neuron] = active / tokens if tokens else 0.0
    return found


@pytest.mark.parametrize("kind", ["conditional", "joint"])
def test_lape_goes_by_the_tokens_that_came_by(kind: str, made: Path, run: Run) -> None:
    by_corpus = [rates(made, corpus, kind == "joint") for corpus in CORPORA]
    all_rates = sorted(rate for of in by_corpus for rate in of.values())
    threshold = all_rates[round(len(all_rates) * 0.8) - 1]
    entropy = {}
    for neuron in by_corpus[0]:
        p = np.array([of[neuron] for of in by_corpus])
        if (p > threshold).any():
            q = p / p.sum()
            entropy[neuron] = -sum(one * np.log(one) for one in q if one)
    code, out, err = run("lape", made, "--quantile", 0.8, "--per-corpus", 7, "--rates", kind, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["bar"] == threshold
    assert document.get("rates", "conditional") == kind
    for corpus, of in zip(CORPORA, by_corpus, strict=True):
        candidates = sorted((entropy[neuron], neuron) for neuron in entropy if of[neuron] > threshold)
        expected = sorted(neuron for _, neuron in candidates[:7])
        assert [tuple(pair) for pair in document["specific"][corpus]] == expected
        assert document["probability"][corpus] == [of[neuron] for neuron in expected]


def test_routing_is_a_result(made: Path, run: Run, tmp_path: Path) -> None:
    code, out, err = run("routing", made, "--json", "--figure", tmp_path / "routing.png")
    assert code == 0, err
    assert (tmp_path / "routing.png").stat().st_size > 10_000
    (layer,) = json.loads(out)["layers"]
    counts = {corpus: store.read_corpus(made, corpus)["site_tokens"].sum(0)[1 : 1 + EXPERTS] for corpus in CORPORA}
    shares = {corpus: of / of.sum() for corpus, of in counts.items()}
    mean = sum(shares.values()) / len(shares)
    for corpus in CORPORA:
        assert layer["tokens"][corpus] == counts[corpus].tolist()
        expected = sum(share * np.log(share / at) for share, at in zip(shares[corpus], mean, strict=True) if share)
        assert layer["specialization"][corpus] == pytest.approx(expected, abs=1e-12)


def test_a_dense_store_has_no_routing(model_folder: Path, corpora: Path, tmp_path: Path, run: Run) -> None:
    path = make_store(model_folder, tmp_path / "dense", corpora)
    assert not (path / "sites").exists()
    code, _, err = run("routing", path)
    assert (code, err.count("\n")) == (2, 1)
    assert "a model without experts" in err


@pytest.mark.slow
def test_every_study_reads_it(made: Path, corpora: Path, run: Run, tmp_path: Path) -> None:
    lape = ["--quantile", 0.8, "--per-corpus", 5]
    value_FK = store.read_corpus(made, "python")["trigger_value"][1]
    expert_neuron = int(np.flatnonzero(~np.isnan(value_FK[: 24 * EXPERTS, 0]))[0])
    for arguments in (
        ["lape", made, *lape, "--error-bars", "--out", tmp_path / "mask.json"],
        ["stability", made, *lape],
        ["sweep", made],
        ["profiles", made, *lape],
        ["activity", made],
        ["patterns", made],
        ["triggers", made, 1, expert_neuron],
        ["report", made, "--out", tmp_path / "report.html"],
        ["status", made],
    ):
        code, out, err = run(*arguments)
        assert code == 0, (arguments, err)
        assert out or arguments[0] == "report", arguments
    document = json.loads((tmp_path / "mask.json").read_text())
    assert {layer for pairs in document["specific"].values() for layer, _ in pairs} <= {0, 1}
    assert all(neuron < 96 for pairs in document["specific"].values() for layer, neuron in pairs if layer == 0)
    activity = open_store(made).activity().document
    assert activity["by_layer"]["dead"]["python"][0] <= 96
    assert "Routing to experts" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_experts_neurons_are_ablated_with_controls(made: Path, mixture: Path, tmp_path: Path, run: Run) -> None:
    path = shutil.copytree(made, tmp_path / "s")
    held_out = lay_out(tmp_path / "held_out", {"python": 6, "c++": 6}, seed=9)
    for how in ("activation", "mean"):
        code, out, err = run("ablate", mixture, path, "--corpora", held_out, "--quantile", 0.6, "--per-corpus", 4,
                             "--draws", 2, "--how", how, "--name", how, "--json")  # fmt: skip
        assert code == 0, err
        sets = store.group_attributes(path, f"loss/{how}")["sets"]
        assert {one["kind"] for one in sets} >= {"none", "specific", "random"}
        assert json.loads(out)["corpora"] == list(CORPORA)


@pytest.mark.slow
def test_layers_of_several_networks_have_no_update_to_read(
    mixture: Path, made: Path, corpora: Path, tmp_path: Path, run: Run
) -> None:
    path = shutil.copytree(made, tmp_path / "s")
    arguments = ["agreement", mixture, path, "--corpora", corpora, "--max-files", 3]
    code, _, err = run(*arguments)
    assert (code, err.splitlines()[-1].count("several feed-forward networks")) == (2, 1)
    code, _, err = run(*arguments, "--variants", "residual-raw,residual-norm")
    assert code == 0, err


def test_a_store_of_the_first_schema_is_read_and_gone_on_with(model_folder: Path, tmp_path: Path, run: Run) -> None:
    text = lay_out(tmp_path / "text", {"python": 6, "c++": 6})
    path = make_store(model_folder, tmp_path / "s", text)
    before = everything(path)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["schema"] = 1
    (path / "zarr.json").write_text(json.dumps(root))
    assert run("lape", path, "--quantile", 0.6, "--per-corpus", 5)[0] == 0
    lay_out(tmp_path / "text", {"rust": 6})
    after = everything(make_store(model_folder, path, text))
    assert {name: after[name] for name in before} == before
    assert "rust/active" in after
    assert store.store_attributes(path)["schema"] == 1
