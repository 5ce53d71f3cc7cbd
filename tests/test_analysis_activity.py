"""How often neurons are active, against counting them one by one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_analysis_counts import MODEL, publish

from neurotally.analysis import open_store
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

TOKENS = {"a": (500, 500), "b": (400, 0), "empty": (0, 0)}
"""Of the corpora's groups."""


@pytest.fixture(scope="module")
def counts() -> dict[str, np.ndarray]:
    """uint64 [G, L, F]; some neurons dead in one corpus, one in all, some at the edge of rare and frequent."""
    rng = np.random.default_rng(0)
    made = {}
    for name, tokens in TOKENS.items():
        tokens_G = np.array(tokens, np.uint64)
        made[name] = rng.integers(0, tokens_G[:, None, None] + 1, (2, 3, 40), np.uint64)
        made[name][:, :, :20] //= 100
        made[name][:, 1, 25:] = 0
    made["b"][:, 2, :] = 0
    made["a"][:, 0, 0] = (1, 0)  # 1 of 1,000: not fewer than a thousandth
    made["a"][:, 0, 1] = (500, 0)  # 500 of 1,000: not more than half
    return made


@pytest.fixture(scope="module")
def made(counts: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("activity") / "s"
    store.create_store(path, {"model": MODEL})
    for name, tokens in TOKENS.items():
        publish(path, name, {"tokens": np.array(tokens, np.uint64), "active": counts[name]})
    return path


@pytest.mark.parametrize(("rare", "frequent"), [(0.001, 0.5), (0.01, 0.9)])
def test_equals_counting_one_by_one(made: Path, counts: dict[str, np.ndarray], rare: float, frequent: float) -> None:
    document = open_store(made).activity(rare=rare, frequent=frequent).document
    expected: dict[str, dict[str, list[float]]] = {"mean_rate": {}, "dead": {}, "rare": {}, "frequent": {}}
    for name in ("a", "b"):
        tokens = sum(TOKENS[name])
        rates = [[sum(int(counts[name][g][layer][neuron]) for g in range(2)) / tokens for neuron in range(40)]
                 for layer in range(3)]  # fmt: skip
        expected["mean_rate"][name] = [sum(of_layer) / 40 for of_layer in rates]
        expected["dead"][name] = [sum(rate == 0 for rate in of_layer) for of_layer in rates]
        expected["rare"][name] = [sum(0 < rate < rare for rate in of_layer) for of_layer in rates]
        expected["frequent"][name] = [sum(rate > frequent for rate in of_layer) for of_layer in rates]
    assert sum(expected["dead"]["b"]) > sum(expected["dead"]["a"]) > 0
    found = document["by_layer"]
    for name in ("a", "b"):
        assert found["mean_rate"][name] == pytest.approx(expected["mean_rate"][name], rel=1e-12)
    assert {kind: found[kind] for kind in ("dead", "rare", "frequent")} == {
        kind: expected[kind] for kind in ("dead", "rare", "frequent")
    }
    everywhere = [
        sum(all(not counts[name][:, layer, neuron].any() for name in ("a", "b")) for neuron in range(40))
        for layer in range(3)
    ]
    assert found["dead_everywhere"] == everywhere
    assert document["tokens"] == {"a": 1000, "b": 400}
    assert document["left_out"] == {"empty": "no tokens"}


def test_the_edges_are_neither_rare_nor_frequent(made: Path, counts: dict[str, np.ndarray]) -> None:
    by_layer = open_store(made).activity().document["by_layer"]
    rate_LF = counts["a"].sum(axis=0) / 1000
    assert rate_LF[0, 0] == 0.001
    assert rate_LF[0, 1] == 0.5
    assert by_layer["rare"]["a"][0] == np.count_nonzero((rate_LF[0] > 0) & (rate_LF[0] < 0.001))
    assert by_layer["frequent"]["a"][0] == np.count_nonzero(rate_LF[0] > 0.5)


@pytest.mark.slow
def test_the_command_and_its_choice_of_corpora(
    made: Path, tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    code, out, _ = run("activity", made, "--corpus", "b", "--figure", tmp_path / "a.png")
    assert code == 0
    assert "b" in out
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert json.loads(run("activity", made, "--corpus", "b", "--json")[1])["corpora"] == ["b"]
    code, _, err = run("activity", made, "--corpus", "x")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no corpus 'x'; it has a, b, empty" in err
    for options, says in (
        (("--corpus", "empty"), "corpus 'empty' was asked for and can't be used: no tokens"),
        (("--rare", 0.9), "rare is 0.9, expected no more than frequent, 0.5"),
    ):
        code, _, err = run("activity", made, *options)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err


def test_only_the_corpora_that_were_read_are_spoken_of(made: Path) -> None:
    found = open_store(made).activity(corpus=["b", "a"])
    assert found.document["corpora"] == ["a", "b"]
    assert found.findings[0].endswith("are active at no token of these 2 corpora.")
    assert open_store(made).activity(corpus=["b"]).findings[0].endswith("are active at no token of b.")


def test_counts_of_two_models_and_counts_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for name, shape, active in (("shapes", (1, 4, 40), 0), ("counts", (1, 3, 40), 501)):
        path = tmp_path / name
        store.create_store(path, {"model": None})
        publish(path, "a", {"tokens": np.array([500], np.uint64), "active": np.zeros((1, 3, 40), np.uint64)})
        publish(path, "b", {"tokens": np.array([500], np.uint64), "active": np.full(shape, active, np.uint64)})
        with pytest.raises(InputError, match=r"they aren't counts of one model|active at more tokens than a group has"):
            open_store(path).activity()
