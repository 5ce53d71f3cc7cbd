"""Counts and the LAPE document out of a real store on disk, complete, unfinished or damaged."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotally.analysis.languages.counts import CorpusCounts, read_counts, read_group_counts, unfinished_corpora
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.masking.masks import read_mask
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

MODEL = {"id": "org/model", "revision": "abc", "dtype": "float32", "fingerprint": "f1"}
L, F, G = 4, 123, 3


def arrays(seed: int, num_groups: int = G, shape: tuple[int, int] = (L, F)) -> store.Arrays:
    rng = np.random.default_rng(seed)
    tokens_G = rng.integers(1000, 5000, num_groups).astype(np.uint64)
    rate_LF = rng.beta(0.3, 2, shape)
    return {"tokens": tokens_G, "active": rng.binomial(tokens_G[:, None, None].astype(int), rate_LF).astype(np.uint64)}


def publish(path: Path, name: str, corpus: store.Arrays) -> None:
    fresh = path / ".run" / "fresh"
    store.write_arrays(fresh, corpus, {"tokens": int(corpus["tokens"].sum())})
    store.publish(path, f"corpora/{name}", fresh)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store of three finished corpora, one of them in one group, and one in progress."""
    path = tmp_path / "store"
    store.create_store(path, {"model": MODEL})
    for seed, name in enumerate(["rust", "C#", "python"]):
        publish(path, name, arrays(seed, num_groups=1 if name == "rust" else G))
    (path / ".run" / "corpora" / "go").mkdir(parents=True)
    (path / ".run" / "corpora" / "rust").mkdir()  # left by a run that died right after its commit
    (path / ".run" / "corpora" / "a file").touch()
    return path


def test_counts_are_summed_over_groups(made: Path) -> None:
    counts = read_counts(made)
    assert counts.corpora == ("C#", "python", "rust")
    assert counts.model == MODEL
    assert counts.active_CLF.dtype == counts.tokens_C.dtype == np.uint64
    for c, seed in enumerate([1, 2, 0]):
        raw = arrays(seed, num_groups=1 if seed == 0 else G)
        assert counts.tokens_C[c] == raw["tokens"].sum()
        assert (counts.active_CLF[c] == raw["active"].sum(axis=0)).all()


def test_unfinished_corpora_are_left_out_and_named(made: Path) -> None:
    assert unfinished_corpora(made) == ["go"]
    assert read_counts(made).left_out == {"go": "unfinished"}


def test_a_corpus_without_tokens_is_left_out_and_named(made: Path) -> None:
    publish(made, "empty", {"tokens": np.zeros(G, np.uint64), "active": np.zeros((G, L, F), np.uint64)})
    counts = read_counts(made)
    assert counts.left_out == {"empty": "no tokens", "go": "unfinished"}
    assert counts.corpora == ("C#", "python", "rust")


def test_fewer_than_two_corpora(tmp_path: Path) -> None:
    path = tmp_path / "store"
    store.create_store(path, {"model": None})
    with pytest.raises(InputError, match="at least two finished ones, found none"):
        read_counts(path)
    publish(path, "go", arrays(0))
    (path / ".run" / "corpora" / "c").mkdir(parents=True)
    with pytest.raises(InputError, match="found go; c is left out: unfinished") as caught:
        read_counts(path)
    assert "\n" not in str(caught.value)


def test_corpora_of_other_shapes(made: Path) -> None:
    publish(made, "zig", arrays(5, shape=(L, F + 1)))
    with pytest.raises(InputError, match=r"'zig' has 4 layers of 124 neurons, 'C#' has 4 layers of 123 neurons"):
        read_counts(made)


def test_more_active_than_tokens(made: Path) -> None:
    wrong = arrays(5)
    wrong["active"][0, 0, 0] = wrong["tokens"].sum() + 1
    publish(made, "zig", wrong)
    with pytest.raises(InputError, match="'zig' has neurons active at more tokens than"):
        read_counts(made)


def test_a_store_that_lacks_an_array_or_is_none(made: Path, tmp_path: Path) -> None:
    publish(made, "zig", {"tokens": np.array([5], np.uint64)})
    with pytest.raises(InputError, match=r"corpora/zig of .* lacks active"):
        read_counts(made)
    with pytest.raises(InputError, match="is no store"):
        read_counts(tmp_path / "nothing")


def test_a_lost_chunk_is_an_error(made: Path) -> None:
    next(file for file in (made / "corpora" / "python" / "active" / "c").rglob("*") if file.is_file()).unlink()
    with pytest.raises(InputError, match="cut off"):
        read_counts(made)


@pytest.mark.parametrize(("select", "limit"), [("balanced", "per_corpus"), ("top", "top_rate")])
def test_document(made: Path, tmp_path: Path, select: Any, limit: str) -> None:
    counts = read_counts(made)
    selection = lape(counts, Rule(0.95, select, 7, 0.05))
    document = json.loads(json.dumps(lape_result(counts, selection).document, allow_nan=False))
    assert document["schema"] == 1
    assert document["model"] == {"id": "org/model", "fingerprint": "f1"}
    assert document["corpora"] == ["C#", "python", "rust"]
    assert (document["select"], document["quantile"], document["bar"]) == (select, 0.95, selection.threshold)
    assert document[limit] == {"per_corpus": 7, "top_rate": 0.05}[limit]
    assert not {"per_corpus", "top_rate"} - {limit} <= document.keys()
    for key in ("specific", "exclusive"):
        assert list(document[key]) == document["corpora"]
        assert all(pairs == sorted(pairs) for pairs in document[key].values())
    assert document["tokens"]["python"] == int(counts.tokens_C[1])
    assert document["left_out"] == {"go": "unfinished"}
    (tmp_path / "mask.json").write_text(json.dumps(document))
    mask = read_mask(tmp_path / "mask.json", "f1", L, F)
    assert {name: neurons_n2.tolist() for name, neurons_n2 in mask.items()} == document["specific"]


def test_imported_counts_have_no_model(tmp_path: Path) -> None:
    store.create_store(tmp_path / "store", {"model": None})
    for seed, name in enumerate("ab"):
        publish(tmp_path / "store", name, arrays(seed, num_groups=1))
    counts = read_counts(tmp_path / "store")
    selection = lape(counts)
    assert lape_result(counts, selection).document["model"] is None
    assert "LAPE of imported counts" in lape_result(counts, selection).text()


def test_table_names_everything(made: Path) -> None:
    publish(made, "english", {"tokens": np.array([10**6], np.uint64), "active": np.ones((1, L, F), np.uint64)})
    counts = read_counts(made)
    selection = lape(counts, Rule(per_corpus=7))
    table = lape_result(counts, selection).text()
    lines = table.splitlines()
    assert "org/model, 4 layers of 123 neurons" in lines[0]
    assert lines[0].endswith("the 7 candidates of lowest entropy of every corpus, quantile 0.95")
    rows = [line.split() for line in lines if line.startswith(("C# ", "python ", "rust ", "english "))]
    assert [row[0] for row in rows] == ["C#", "english", "python", "rust"]
    assert rows[0][4] == "7"
    assert rows[1][1:6] == ["1,000,000", "0", "0", "0", "-"]
    assert "english: no neuron above the threshold" in lines
    assert "left out: go (unfinished)" in lines
    assert lape_result(counts, selection).document["without_candidates"] == ["english"]
    assert max(map(len, lines)) <= 120


def test_table_says_when_fewer_than_asked_for_pass(made: Path) -> None:
    counts = read_counts(made)
    selection = lape(counts, Rule(select="top", top_rate=0.9))
    assert "fewer than asked for" in lape_result(counts, selection).text()
    selection = lape(counts, Rule(select="top"))
    assert "fewer than asked for" not in lape_result(counts, selection).text()


def test_table_says_where_ties_were_cut() -> None:
    active_CLF = np.zeros((2, 2, 50), np.uint64)
    active_CLF[0, :, :3] = 9
    counts = CorpusCounts(None, ("a", "b"), np.array([10, 10]), active_CLF, {})
    selection = lape(counts, Rule(0.9, per_corpus=2))
    assert "a: 4 more candidates tie with the last one chosen" in lape_result(counts, selection).text()
    assert lape_result(counts, selection).document["tied_out"] == {"a": 4, "b": 0}


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_table_of_few_layers(num_layers: int) -> None:
    active_CLF = arrays(0, num_groups=2, shape=(num_layers, 50))["active"]
    counts = CorpusCounts(None, ("a", "b"), np.array([5000, 5000]), active_CLF, {})
    lines = lape_result(counts, lape(counts)).text().splitlines()
    shares = [line.split("  ")[-1].strip() for line in lines if line.startswith("a ")]
    assert all(share == "-" or 99 <= sum(map(int, share.split("/"))) <= 101 for share in shares)


@pytest.mark.slow
def test_analysis_loads_no_torch_ray_transformers_or_pyplot() -> None:
    root = Path(__file__).parent.parent
    files = [path.relative_to(root).with_suffix("") for path in (root / "analysis").rglob("*.py")]
    modules = [".".join(("neurotally", *path.parts)).removesuffix(".__init__") for path in files]
    code = (
        f"import sys, {', '.join(modules)}\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'matplotlib.pyplot') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_only_the_corpora_asked_for(made: Path) -> None:
    """The threshold is a quantile of the rates of those alone, so that the sets differ from those of all."""
    for counts in (read_counts(made, ["rust", "python"]), read_group_counts(made, ["rust", "python"]).total()):
        assert counts.corpora == ("python", "rust")
        assert counts.left_out == {"C#": "not asked for", "go": "unfinished"}
        rates = np.concatenate([arrays(seed, 1 if seed == 0 else G)["active"].sum(axis=0).ravel()
                                / arrays(seed, 1 if seed == 0 else G)["tokens"].sum() for seed in (2, 0)])  # fmt: skip
        selection = lape(counts)
        assert selection.threshold == np.sort(rates)[round(0.95 * rates.size) - 1]


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["python", "perl"], r"has no corpus 'perl'; it has C#, python, rust$"),
        (["python", "go"], r"corpus 'go' was asked for and can't be used: unfinished$"),
        (["python"], r"needs at least two finished ones, found python; C# is left out: not asked for"),
    ],
    ids=["unknown", "unfinished", "one"],
)
def test_corpora_asked_for_that_cannot_be_had(made: Path, only: list[str], message: str) -> None:
    for read in (read_counts, read_group_counts):
        with pytest.raises(InputError, match=message):
            read(made, only)
