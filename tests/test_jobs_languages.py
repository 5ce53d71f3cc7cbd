"""The commands about sets of neurons say on stderr, in their documents and tables where a set wasn't chosen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_analysis_counts import MODEL, publish
from test_analysis_lape import few_candidates
from test_analysis_report import Page, rows_of, table_of

from neurotally.analysis import studies
from neurotally.analysis.concat_rows import concat_rows
from neurotally.analysis.render.html import section
from neurotally.analysis.report.contents import corpora
from neurotally.profiler import store

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """16 candidates of C, 14 of D; half of the tokens in each of two groups; units laid out as `concat` does."""
    path = tmp_path / "store"
    store.create_store(path, {"model": MODEL, "config": {"layout": "concat", "row_tokens": 64}})
    for name, active_LF in zip(("C", "D"), few_candidates(), strict=True):
        active_GLF = np.stack([active_LF // 2, active_LF - active_LF // 2]).astype(np.uint64)
        units = np.array([130, 64, 6, 800], np.uint64)
        publish(path, name, {"tokens": np.array([500, 500], np.uint64), "active": active_GLF, "unit_tokens": units,
                             "unit_group": np.array([0, 1, 0, 1], np.uint16)})  # fmt: skip
    return path


@pytest.mark.parametrize("command", [("lape",), ("profiles",), ("stability", "--samples", 2, "--orders", 2)])
def test_too_few_candidates_are_warned_about(command: tuple[Any, ...], run: Run, made: Path) -> None:
    code, out, errors = run(command[0], made, *command[1:], "--json", "--per-corpus", 16)
    assert (code, errors.count("warning: fewer candidates than 16, so all were taken and none chosen: D 14")) == (0, 1)
    json.loads(out)
    assert "fewer candidates" not in run(command[0], made, *command[1:], "--per-corpus", 14)[2]


def test_the_document_the_table_and_report_mark_them(run: Run, made: Path) -> None:
    document = json.loads(run("lape", made, "--json", "--per-corpus", 16)[1])
    assert document["too_few_candidates"] == {"D": {"candidates": 14, "taken": 14}}
    assert document["proportionate_per_corpus"] == 1
    table = run("lape", made, "--per-corpus", 16)[1]
    rows = {line.split()[0]: line.split() for line in table.splitlines() if line.startswith(("C ", "D "))}
    assert (rows["C"][4], rows["D"][4]) == ("16", "14*")
    assert "* fewer candidates than 16" in table
    page = Page(section(studies.run("lape", made, per_corpus=16)).html).root
    cells = rows_of(table_of(page, "Specific neurons by corpus"))
    assert [cells[name][3] for name in "CD"] == ["16", "14*"]
    assert page.all("li")[0].text.startswith("fewer candidates than 16")


def test_a_sweep_compares_with_the_base_that_is_asked_for(run: Run, made: Path) -> None:
    grid = ("--quantile", 0.95, "--per-corpus", 10, "--top-rate", 0.05, "--json")
    document = json.loads(run("sweep", made, *grid)[1])
    assert document["default"] == {"select": "balanced", "quantile": 0.95, "per_corpus": 400}
    assert document["default_too_few_candidates"] == {"C": 16, "D": 14}
    document = json.loads(run("sweep", made, *grid, "--base-per-corpus", 10, "--base-quantile", 0.95)[1])
    assert document["default"]["per_corpus"] == 10
    assert document["default_too_few_candidates"] == {}
    assert [of["jaccard"] for of in document["settings"][0]["with_default"].values()] == [1, 1]
    document = json.loads(run("sweep", made, *grid, "--base-select", "top", "--base-top-rate", 0.05)[1])
    assert document["default"] == {"select": "top", "quantile": 0.95, "top_rate": 0.05}
    assert [of["jaccard"] for of in document["settings"][1]["with_default"].values()] == [1, 1]


def test_concat_rows_are_those_that_are_laid_out() -> None:
    from neurotally.profiler.corpus.batches import lay_out

    rng = np.random.default_rng(0)
    units = [[rng.integers(9, size=length).tolist() for length in rng.integers(0, 90, 7)] for _ in range(5)]
    rows = []
    for unit in units:
        bounds = lay_out(list(enumerate(unit)), frozenset(), "concat", 32).bounds_R2
        rows.append(np.diff(bounds, axis=1)[:, 0])
    whole = lay_out(
        [(0, [token for unit in units for ids in unit for token in ids])], frozenset(), "concat", 32
    ).bounds_R2
    lengths = np.concatenate(rows)
    found = concat_rows(np.array([sum(map(len, unit)) for unit in units], np.uint64), 32)
    assert found == {"rows": len(lengths), "extra_rows": len(lengths) - len(whole),
                     "short_row_tokens": lengths[lengths < 32].sum()}  # fmt: skip


def test_status_and_report_say_how_far_concat_is_from_one_run(run: Run, made: Path) -> None:
    """3 + 1 + 1 + 13 rows instead of 16; 2 + 6 + 32 tokens in the shorter ones."""
    document = json.loads(run("status", made, "--json")[1])
    assert document["corpora"]["C"]["concat"] == {"rows": 18, "extra_rows": 2, "short_row_tokens": 40}
    said = "18 rows, 2 more than in one run over the corpus; 40 of 1,000 tokens are in shorter last rows"
    assert run("status", made)[1].count(said) == 2
    assert sum(said in note for note in corpora(made).notes) == 2
