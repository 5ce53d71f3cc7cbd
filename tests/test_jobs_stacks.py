"""Stores of encoders and encoder-decoders: made by any number of workers, killed and gone on with, read by studies."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import lay_out
from numpy.testing import assert_array_equal
from reference import everything
from stacks import DECODER_LAYERS, ENCODER_LAYERS, tiny_stacks
from stores import CORPORA, SETTINGS, kill_after_a_checkpoint, make_store

from neurotally.analysis import open_store
from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.networks import DECODER, ENCODER

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> dict[str, Path]:
    """CodeT5+'s and CodeBERT's layers."""
    folders = {}
    for name in ("t5, gated", "roberta"):
        folder = folders[name.partition(",")[0]] = tmp_path_factory.mktemp("models") / name
        tiny_stacks(name).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def made(models: dict[str, Path], corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    return {name: make_store(model, folder / name, corpora) for name, model in models.items()}


@pytest.mark.usefixtures("workers_share_this_process")
@pytest.mark.parametrize(("name", "workers"), [("t5", 3), ("roberta", 2)])
@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_bits(
    name: str, workers: int, models: dict[str, Path], corpora: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    again = make_store(models[name], tmp_path / "s", corpora, workers=workers)
    assert everything(again) == everything(made[name])


@pytest.mark.ray
def test_a_killed_run_goes_on_to_the_same_bits(
    models: dict[str, Path], corpora: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "killed"
    kill_after_a_checkpoint(models["t5"], path, corpora)
    assert everything(make_store(models["t5"], path, corpora)) == everything(made["t5"])


def test_each_stack_has_its_layers_and_denominators(made: dict[str, Path]) -> None:
    table = store.read_arrays(made["t5"] / "sites", schema=store.SITES_SCHEMA)
    assert table["site_stack"].tolist() == [ENCODER] * ENCODER_LAYERS + [DECODER] * DECODER_LAYERS
    assert table["site_layer"].tolist() == list(range(ENCODER_LAYERS + DECODER_LAYERS))
    assert table["site_name"][-1].startswith("decoder.block.2.")
    for corpus in CORPORA:
        arrays = store.read_corpus(made["t5"], corpus)
        of_encoder, of_decoder = arrays["site_tokens"][:, 0], arrays["site_tokens"][:, -1]
        assert_array_equal(of_encoder + of_decoder, arrays["tokens"])  # every token is read by one of them
        assert (of_encoder >= of_decoder).all()
        assert (of_decoder > 0.4 * arrays["tokens"]).all()
        special = arrays["site_special_tokens"]
        assert_array_equal(special[:, 0] + special[:, -1], arrays["special_tokens"])
        assert "site_weight" not in arrays
        assert "weighted_coefficient_sum" not in arrays
    table = store.read_arrays(made["roberta"] / "sites", schema=store.SITES_SCHEMA)
    assert table["site_stack"].tolist() == [ENCODER] * ENCODER_LAYERS
    assert "site_tokens" not in store.read_corpus(made["roberta"], "python")  # all tokens come by


@pytest.mark.slow
def test_the_decoder_reads_what_it_is_asked_to(
    models: dict[str, Path], corpora: Path, made: dict[str, Path], tmp_path: Path
) -> None:
    arrays = store.read_corpus(make_store(models["t5"], tmp_path / "s", corpora, decoder_reads="all"), "python")
    assert_array_equal(arrays["site_tokens"], np.repeat(arrays["tokens"][:, None], 5, axis=1))
    assert store.store_attributes(made["t5"])["config"]["decoder_reads"] == "second-half"
    with pytest.raises(InputError, match="decoder_reads"):
        make_store(models["t5"], shutil.copytree(made["t5"], tmp_path / "other"), corpora, decoder_reads="all")
    with pytest.raises(InputError, match=r"--decoder-reads all: .* is no encoder-decoder"):
        make_store(models["roberta"], tmp_path / "r", corpora, decoder_reads="all")


def test_lape_goes_by_the_tokens_that_a_stack_reads(made: dict[str, Path]) -> None:
    document = open_store(made["t5"]).lape(quantile=0.8, per_corpus=6).document
    rate_CLF = []
    for corpus in CORPORA:
        arrays = store.read_corpus(made["t5"], corpus)
        tokens_L = arrays["site_tokens"].sum(0)
        rate_CLF.append(arrays["active"].sum(0) / tokens_L[:, None])
    p_NC = np.stack(rate_CLF).reshape(2, -1).T
    threshold = np.sort(p_NC.ravel())[round(p_NC.size * 0.8) - 1]
    q_NC = p_NC / np.maximum(p_NC.sum(1, keepdims=True), 1e-300)
    entropy_N = -(q_NC * np.log(np.where(q_NC > 0, q_NC, 1))).sum(1)
    assert document["bar"] == threshold
    for c, corpus in enumerate(CORPORA):
        candidates = sorted((entropy_N[n], n) for n in range(len(p_NC)) if p_NC[n, c] > threshold)
        expected = sorted(divmod(n, 96) for _, n in candidates[:6])
        assert [tuple(pair) for pair in document["specific"][corpus]] == expected
        assert document["probability"][corpus] == [rate_CLF[c][neuron] for neuron in expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "roberta"])
def test_every_study_reads_it(
    name: str, made: dict[str, Path], models: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    path = shutil.copytree(made[name], tmp_path / "s")
    lape = ["--quantile", 0.8, "--per-corpus", 5]
    last = ENCODER_LAYERS + DECODER_LAYERS - 1 if name == "t5" else ENCODER_LAYERS - 1
    value_FK = store.read_corpus(path, "python")["trigger_value"][last]
    neuron = int(np.flatnonzero(~np.isnan(value_FK[:, 0]))[0])
    regex = tmp_path / "concepts.toml"
    regex.write_text("[concepts]\nloop = 'for'\n")
    for arguments in (
        ["lape", path, *lape, "--error-bars", "--out", tmp_path / "mask.json"],
        ["stability", path, *lape],
        ["sweep", path],
        ["profiles", path, *lape],
        ["activity", path],
        ["patterns", path],
        ["concepts", path, "--regex", regex],
        ["triggers", path, last, neuron],
        ["report", path, "--out", tmp_path / "report.html"],
        ["status", path],
    ):
        code, out, err = run(*arguments)
        assert code == 0, (arguments, err)
        assert out or arguments[0] == "report", arguments
    text = run("lape", path, *lape)[1]
    assert ("layers 0-1 are the encoder's, the others the decoder's" in text) == (name == "t5")
    assert "expert" not in text


@pytest.mark.slow
def test_neurons_of_both_stacks_are_ablated_by_the_decoders_loss(
    made: dict[str, Path], models: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    held_out = lay_out(tmp_path / "held_out", {"python": 6, "c++": 6}, seed=9)
    path = shutil.copytree(made["t5"], tmp_path / "s")
    code, out, err = run("ablate", models["t5"], path, "--corpora", held_out, "--quantile", 0.6, "--per-corpus", 4,
                         "--draws", 2, "--how", "mean", "--json")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["corpora"] == list(CORPORA)
    scored = store.read_arrays(path / "loss" / "ablate", ["scored", "document_tokens"])
    rows, rest = np.divmod(scored["document_tokens"], SETTINGS["row_tokens"])
    assert_array_equal(scored["scored"][:, 0], rows * (SETTINGS["row_tokens"] // 2) + rest // 2)
    code, _, err = run("ablate", models["roberta"], shutil.copytree(made["roberta"], tmp_path / "r"),
                       "--corpora", held_out, "--quantile", 0.6, "--per-corpus", 4)  # fmt: skip
    assert code == 2
    assert "is an encoder, trained to fill in masked tokens" in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "roberta"])
def test_languages_are_aligned_by_the_encoders_states(
    name: str, models: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    parallel = tmp_path / "parallel"
    for language in ("C", "Java", "Python"):
        (parallel / language).mkdir(parents=True)
        for number in range(8):
            (parallel / language / f"{number}.txt").write_text(
                f"{language} {number}: x = {number * 7} + y" * (1 + number)
            )
    code, _, err = run("embed", models[name], tmp_path / "s", "--parallel", parallel)
    assert code == 0, err
    code, out, err = run("mexa", tmp_path / "s", "--json")
    assert code == 0, err
    scores = json.loads(out)["scores"]
    assert len(scores["C"]["Java"]) == ENCODER_LAYERS + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5", "roberta"])
def test_what_has_no_meaning_is_refused_by_name(
    name: str, made: dict[str, Path], models: dict[str, Path], corpora: Path, tmp_path: Path, run: Run
) -> None:
    path = shutil.copytree(made[name], tmp_path / "s")
    code, _, err = run("agreement", models[name], path, "--corpora", corpora, "--max-files", 2)
    assert code == 2
    assert "is no causal language model: the lens, and the agreement of layers" in err.splitlines()[-1]
