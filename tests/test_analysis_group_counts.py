"""Counts by group out of a real store: empty groups, documents by group, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from neurotally.analysis.languages.counts import read_counts, read_group_counts
from neurotally.analysis.languages.jackknife import error_bars
from neurotally.analysis.languages.lape import Rule
from neurotally.analysis.languages.stability import stability
from neurotally.analysis.result import model_key, model_name
from neurotally.profiler import store
from neurotally.profiler.errors import InputError

L, F = 3, 63


def corpus(seed: int, tokens: list[int], documents: bool = True) -> store.Arrays:
    rng = np.random.default_rng(seed)
    rate_LF = rng.beta(0.3, 2, (L, F))
    arrays = {
        "tokens": np.array(tokens, np.uint64),
        "active": np.stack([rng.binomial(n, rate_LF) for n in tokens]).astype(np.uint64),
    }
    if documents:
        # Units 0, 1, 2, 3 go to groups 0, 1, 2, 0; document 5 was skipped.
        arrays |= {
            "unit_group": np.array([0, 1, 2, 0], np.uint16),
            "unit_tokens": np.array([1, 1, 1, 1], np.uint64),
            "document_unit": np.array([0, 0, 1, 2, 3, 3], np.uint32),
            "document_status": np.array([0, 0, 0, 0, 0, 2], np.uint8),
        }
    return arrays


def publish(path: Path, name: str, arrays: store.Arrays) -> None:
    store.write_arrays(path / ".run" / "fresh", arrays, {})
    store.publish(path, f"corpora/{name}", path / ".run" / "fresh")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    store.create_store(path, {"model": {"id": "org/model", "revision": "abc", "fingerprint": "f1"}})
    publish(path, "python", corpus(0, [1000, 2000, 1500]))
    publish(path, "C#", corpus(1, [0, 900, 0, 800, 700], documents=False))
    (path / ".run" / "corpora" / "go").mkdir(parents=True)
    return path


def test_groups_without_tokens_are_left_out_and_counted(made: Path) -> None:
    groups = read_group_counts(made)
    assert groups.corpora == ("C#", "python")
    assert groups.num_groups == {"C#": 3, "python": 3}
    assert groups.num_empty == {"C#": 2, "python": 0}
    assert groups.by_corpus["C#"].tokens_G.tolist() == [900, 800, 700]
    assert (groups.by_corpus["C#"].active_GLF == corpus(1, [0, 900, 0, 800, 700])["active"][[1, 3, 4]]).all()
    assert groups.left_out == {"go": "unfinished"}
    assert error_bars(groups).num_empty == {"C#": 2, "python": 0}


def test_documents_by_group(made: Path) -> None:
    groups = read_group_counts(made)
    assert groups.by_corpus["C#"].documents_G is None
    assert groups.by_corpus["python"].documents_G is not None
    assert groups.by_corpus["python"].documents_G.tolist() == [3, 1, 1]
    curve = stability(groups, Rule(per_corpus=5), num_samples=2, num_orders=2).curve
    assert np.isnan(curve.documents_KC[:, 0]).all()
    assert curve.documents_KC[-1, 1] == 5


def test_the_total_is_what_read_counts_reads(made: Path) -> None:
    total, counts = read_group_counts(made).total(), read_counts(made)
    assert (total.model, total.corpora, total.left_out) == (counts.model, counts.corpora, counts.left_out)
    assert (total.tokens_C == counts.tokens_C).all()
    assert total.tokens_C.dtype == total.active_CLF.dtype == np.uint64
    assert (total.active_CLF == counts.active_CLF).all()


def test_imported_counts_have_one_group(made: Path) -> None:
    publish(made, "imported", corpus(2, [5000], documents=False))
    groups = read_group_counts(made)
    for analyse, named in ((error_bars, "error bars need"), (lambda of: stability(of, Rule()), "stability need")):
        with pytest.raises(InputError, match=f"{named} at least two groups .* 'imported' has 1"):
            analyse(groups)


def test_counts_that_cannot_be(made: Path) -> None:
    wrong = corpus(3, [1000, 1000])
    wrong["active"][0, 0, 0] = 1001  # fewer than all groups' tokens, more than this group's
    publish(made, "zig", wrong)
    with pytest.raises(InputError, match="'zig' has neurons active at more tokens than a group has"):
        read_group_counts(made)


def test_arrays_that_disagree(made: Path) -> None:
    publish(made, "zig", corpus(3, [1000, 1000]) | {"tokens": np.array([2000], np.uint64)})
    with pytest.raises(InputError, match="zig: tokens has 1 along 'group', active has 2"):
        read_group_counts(made)


def test_corpora_of_other_shapes(made: Path) -> None:
    wide = {"tokens": np.array([9, 9], np.uint64), "active": np.ones((2, L, F + 1), np.uint64)}
    publish(made, "zig", wide)
    with pytest.raises(InputError, match=r"'zig' has 3 layers of 64 neurons, 'C#' has 3 layers of 63"):
        read_group_counts(made)


def test_model_in_documents() -> None:
    assert model_key(None) is None
    assert model_key({"id": "a/b", "fingerprint": "f", "dtype": "float32"}) == {"id": "a/b", "fingerprint": "f"}
    assert (model_name(None), model_name({"id": "a/b"})) == ("imported counts", "a/b")
