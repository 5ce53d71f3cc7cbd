"""Stores of a model some of whose layers have no feed-forward network, read by every study."""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lay_out
from families import LAYERS, tiny_model
from numpy.testing import assert_array_equal
from stores import CORPORA, make_store

from neurotally.analysis import open_store
from neurotally.profiler import store

Run = Callable[..., tuple[int, str, str]]
NETWORKS = {1: 96, 3: 96}
"""Neurons by layer; layers 0 and 2 are Mamba and attention."""


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    folder = tmp_path_factory.mktemp("models") / "nemotron_h"
    tiny_model("nemotron_h, dense").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(hybrid: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(hybrid, tmp_path_factory.mktemp("stores") / "s", corpora)


@pytest.mark.slow
def test_layers_without_a_network_hold_fill_values(made: Path) -> None:
    sites = store.read_arrays(made / "sites", schema=store.SITES_SCHEMA)
    assert dict(zip(sites["site_layer"].tolist(), sites["site_neurons"].tolist(), strict=True)) == NETWORKS
    without, within = [0, 2], list(NETWORKS)
    for corpus in CORPORA:
        arrays = store.read_corpus(made, corpus)
        for name in ("active", "active_special"):
            assert (arrays[name][:, without] == 2**64 - 1).all()
            assert (arrays[name][:, within] <= arrays["tokens"][:, None, None]).all()
        for name in ("activation_sum", "coefficient_sum", "coefficient_max", "coefficient_min", "trigger_value"):
            assert np.isnan(arrays[name][without]).all()
        assert not np.isnan(arrays["coefficient_sum"][within]).any()
        assert (arrays["trigger_document"][without] == 2**32 - 1).all()


@pytest.mark.slow
def test_every_study_leaves_them_out(hybrid: Path, made: Path, corpora: Path, run: Run, tmp_path: Path) -> None:
    untrained = make_store(hybrid, tmp_path / "untrained", corpora, random_init=0)
    lape = ["--quantile", 0.8, "--per-corpus", 5]
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for arguments in (
            ["lape", made, *lape, "--error-bars", "--out", tmp_path / "mask.json"],
            ["stability", made, *lape],
            ["sweep", made],
            ["profiles", made, *lape, "--figure", tmp_path / "profiles.png"],
            ["activity", made, "--figure", tmp_path / "activity.png"],
            ["compare", made, made, *lape],
            ["patterns", made],
            ["patterns", made, "--null", untrained, "--by-layer"],
            ["triggers", made, 1, 3],
            ["report", made, "--out", tmp_path / "report.html"],
            ["status", made],
        ):
            code, out, err = run(*arguments)
            assert code == 0, (arguments, err)
            assert out or arguments[0] == "report", arguments
    document = json.loads((tmp_path / "mask.json").read_text())
    assert {layer for pairs in document["specific"].values() for layer, _ in pairs} <= set(NETWORKS)
    code, _, err = run("triggers", made, 0, 3)
    assert (code, err.count("no neuron 3 in layer 0: that layer of")) == (2, 1)


def test_rates_are_over_neurons_alone(made: Path) -> None:
    result = open_store(made).activity()
    arrays = store.read_corpus(made, "python")
    rate_LF = arrays["active"].sum(0)[list(NETWORKS)] / arrays["tokens"].sum()
    by_layer = result.document["by_layer"]["mean_rate"]["python"]
    assert [by_layer[0], by_layer[2]] == [None, None]
    np.testing.assert_allclose([by_layer[layer] for layer in NETWORKS], rate_LF.mean(axis=1))
    frame = result.frame("corpora")
    assert frame[frame["corpus"] == "python"]["mean rate"].item() == pytest.approx(rate_LF.mean())
    assert_array_equal(sorted(set(result.frame("layers")["layer"])), list(NETWORKS))
    assert len(NETWORKS) == LAYERS


@pytest.mark.slow
def test_their_neurons_are_no_controls_either(hybrid: Path, made: Path, tmp_path: Path, run: Run) -> None:
    path = shutil.copytree(made, tmp_path / "s")
    held_out = lay_out(tmp_path / "held_out", {"python": 6, "c++": 6}, seed=9)
    code, _, err = run("ablate", hybrid, path, "--corpora", held_out, "--quantile", 0.6, "--per-corpus", 4,
                       "--draws", 2, "--json")  # fmt: skip
    assert code == 0, err
    code, _, err = run("agreement", hybrid, path, "--corpora", held_out, "--max-files", 3)
    assert (code, err.count("none or several feed-forward networks")) == (2, 1)
    code, _, err = run("agreement", hybrid, path, "--corpora", held_out, "--max-files", 3, "--variants",
                       "residual-raw,residual-norm")  # fmt: skip
    assert code == 0, err
