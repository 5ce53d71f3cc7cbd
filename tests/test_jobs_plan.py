"""Which corpora a run takes, and how a difference between what was asked for and what a store has is named."""

from pathlib import Path
from typing import Any

import pytest

from neurotally.jobs.corpora import find_corpora
from neurotally.profiler.differences import first_difference
from neurotally.profiler.errors import InputError

A, B = "a" * 64, "b" * 64
SETS = ["none", "specific C++", "random C++ 0", "random C++ 1"]


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"how": "mean"}, {"how": "mean", "extra": 1}, None),
        ({"how": "mean", "means": None}, {"how": "mean"}, None),
        ({"rows": 3, "how": "mean"}, {"rows": 2, "how": "x"}, "rows is 3, the store has 2"),
        ({"parallel": A, "ids": 40}, {"parallel": B, "ids": 30}, "ids is 40, the store has 30"),
        ({"parallel": A, "ids": 40}, {"parallel": B, "ids": 40}, "parallel is 'aaaaaaaaaaaa…, the store has 'bbbb"),
        (
            {"corpora": {"go": {"manifest": A, "documents": 40}}},
            {"corpora": {"go": {"manifest": B, "documents": 30}}},
            "corpora.go.documents is 40, the store has 30",
        ),
        ({"corpora": {"c": {"n": 1}, "go": {"n": 2}}}, {"corpora": {"c": {"n": 1}}}, "corpora.go is new, the store ha"),
        ({"corpora": {"c": {"n": 1}}}, {"corpora": {"c": {"n": 1}, "go": {"n": 2}}}, "corpora.go is in the store, and"),
        (
            {"sets": [*SETS, "random C++ 2", "random C++ 3"]},
            {"sets": SETS},
            "sets has 6 entries, the store 4: 'random C++ 2' and 1 more are new",
        ),
        ({"sets": SETS[:3]}, {"sets": SETS}, "sets has 3 entries, the store 4: 'random C++ 1' is gone"),
        ({"sets": SETS[::-1]}, {"sets": SETS}, "sets has 4 entries, the store 4, in another order"),
        ({"concepts": [["a", "x"]]}, {"concepts": [["a", "y"]]}, "1 entries, the store 1: ['a', 'x'] is new"),
    ],
)
def test_the_first_difference(ours: dict[str, Any], theirs: dict[str, Any], message: str | None) -> None:
    found = first_difference(ours, theirs)
    assert found is None if message is None else message in (found or "")


def test_a_difference_fits_a_line() -> None:
    many = [f"random language {number}" for number in range(500)]
    shots = {"Python": ["def f(x):" * 30] * 5}
    for ours, theirs in (({"sets": many}, {"sets": many[:2]}), ({"few_shot": shots}, {"few_shot": {"Python": ["x"]}}),
                         ({"text": "x" * 999}, {"text": "y" * 999})):  # fmt: skip
        assert len(first_difference(ours, theirs) or "") < 160


def test_a_corpus_that_is_a_link_is_refused_by_name(tmp_path: Path) -> None:
    for folder in ("elsewhere", "corpora/python"):
        (tmp_path / folder).mkdir(parents=True)
    assert list(find_corpora(tmp_path / "corpora", ())) == ["python"]
    (tmp_path / "corpora" / "linked").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"linked is a link.*--corpus 'linked={tmp_path / 'elsewhere'}'"):
        find_corpora(tmp_path / "corpora", ())
