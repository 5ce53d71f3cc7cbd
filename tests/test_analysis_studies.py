"""A study is one file and one line: its command, section, document, table, figure and method follow from these."""

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import click
import numpy as np
import pytest
from test_analysis_counts import MODEL, publish
from test_analysis_report import Element, Page

from neurotally.analysis import options, studies
from neurotally.analysis.languages.lape import DEFAULT, Rule
from neurotally.analysis.options import Group, Option, arguments, parameters, signature
from neurotally.analysis.parts import Chart, Column, Example, Panel, Series, Table, Value
from neurotally.analysis.render.html import result_html, section
from neurotally.analysis.render.numbers import cell_text
from neurotally.analysis.result import Result
from neurotally.jobs.cli import cli
from neurotally.profiler import store

Run = Callable[..., tuple[int, str, str]]


def study(
    store: Path,
    corpus: options.OnlyCorpora = (),
    rule: Annotated[Rule, Group("chosen")] = DEFAULT,
    times: Annotated[int, Option("How often.", "N", min=1)] = 2,
    share: Annotated[float | None, Option("Of what.", share=True)] = None,
    way: Annotated[Literal["up", "down"], Option("Where to.")] = "up",
    loud: Annotated[bool, Option("Louder.")] = False,
) -> Result:
    """A study of nothing.

    Example:
      neurotally nothing my.store
    """
    document = {"corpus": list(corpus), "rule": rule.as_json(), "times": times, "share": share, "way": way,
                "loud": loud, "nothing": np.nan}  # fmt: skip
    table = Table("t", "A table", [Column("name"), Column("value", "signed", 2)], [["<b>", Value(-1.5, 0.25, "*")]])
    long = Table("l", "A long one", [Column("name"), Column("n", "count")], [["x", 1234]], is_long=True)
    chart = Chart("c", "A chart", [Panel("p", [Series("s", [1.0, 2.0])])])
    more = Chart("m", "More", [Panel("p", [Series("s", [3.0, 4.0])])])
    return Result("nothing", document, "It is nothing.", [table, long], [chart, more], ["a note"], ["a warning"])


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The study above, as a file of its own and a line in the registry."""
    file: Any = ModuleType("neurotally.analysis.made_up")
    file.study, file.FIGURES = study, {"m": "Draw more."}
    monkeypatch.setitem(sys.modules, file.__name__, file)
    monkeypatch.setitem(studies.STUDIES, "nothing", studies.Study("made_up", "Nothing at all"))  # type: ignore[arg-type]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    store.create_store(tmp_path / "s", {"model": MODEL})
    publish(tmp_path / "s", "a", {"tokens": np.array([9], np.uint64), "active": np.zeros((1, 2, 3), np.uint64)})
    return tmp_path / "s"


def test_a_file_and_a_line_make_a_command(run: Run, nothing: None, made: Path, tmp_path: Path) -> None:
    asked = ("--corpus", "a", "--corpus", "b", "--chosen-select", "top", "--chosen-top-rate", 0.5, "--times", 3,
             "--way", "down", "--loud")  # fmt: skip
    files = [tmp_path / name for name in ("d.json", "c.png", "m.svg")]
    code, out, err = run("nothing", made, *asked, "--json", "--out", files[0], "--figure", files[1], "--m-figure",
                         files[2])  # fmt: skip
    assert (code, err) == (0, "warning: a warning\n")
    assert json.loads(out) == json.loads(files[0].read_text()) == {
        "corpus": ["a", "b"], "rule": {"select": "top", "quantile": 0.95, "top_rate": 0.5}, "times": 3, "share": None,
        "way": "down", "loud": True, "nothing": None,
    }  # fmt: skip
    assert files[1].read_bytes()[:4] == b"\x89PNG"
    assert "org/model" in files[2].read_text()
    short, full = run("nothing", made)[1], run("nothing", made, "--full")[1]
    assert short.splitlines()[0] == "It is nothing."
    assert "-1.50 ± 0.25*" in short
    assert "with --full: A long one" in short
    assert "1,234" not in short
    assert "1,234" in full


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (("--times", 0), "0 is not in the range"),
        (("--share", 0), "0.0 is not in the range"),
        (("--share", "nan"), "'nan' is not in the range 0 to 1"),
        (("--way", "left"), "'left' is not one of"),
        (("--chosen-quantile", 2), "2.0 is not in the range"),
        (("--figure", "x.gif"), "expected a name that ends in .png or .pdf or .svg"),
        (("--out", "no/such/folder.json"), "there is no folder no/such"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    asked: tuple[Any, ...], says: str, run: Run, nothing: None, made: Path
) -> None:
    code, out, err = run("nothing", made, *asked)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_the_help_says_what_the_signature_does(nothing: None) -> None:
    context = click.Context(cli)
    command = cli.get_command(context, "nothing")
    assert command is not None
    text = command.get_help(click.Context(command, info_name="nothing"))
    for part in ("--times N", "How often.", "default: 2", "--chosen-per-corpus N", "[up|down]", "--m-figure",
                 "\n  Example:\n    neurotally nothing"):  # fmt: skip
        assert part in text
    assert "nothing" in cli.list_commands(context)
    assert "Nothing at all" in cli.get_help(context)


def test_groups_are_taken_apart_and_put_together() -> None:
    names = [parameter.name for parameter in parameters(study)]
    assert names == ["corpus", "chosen_quantile", "chosen_select", "chosen_per_corpus", "chosen_top_rate",
                     "chosen_rates", "times", "share", "way", "loud"]  # fmt: skip
    assert arguments(study, {"chosen_per_corpus": 7})["rule"] == Rule(per_corpus=7)
    assert arguments(study, {})["rule"] == DEFAULT
    with pytest.raises(TypeError, match="unexpected argument per_corpus"):
        arguments(study, {"per_corpus": 7})
    shown = signature(study)
    assert list(shown.parameters) == names
    assert shown.parameters["times"].default == 2
    assert shown.parameters["chosen_quantile"].annotation is float


def test_a_result_is_a_section_a_frame_and_html(nothing: None, made: Path) -> None:
    result = studies.run("nothing", made)
    assert (result.model, result.corpora) == (MODEL["id"], ("a",))
    frame = result.frame()
    assert frame.columns.tolist() == ["name", "value", "value error"]
    assert frame.iloc[0].tolist() == ["<b>", -1.5, 0.25]
    assert result.frame("l")["n"].tolist() == [1234]
    with pytest.raises(KeyError, match="no table 'x' here; there are: t, l"):
        result.frame("x")
    for html in (result_html(result), result._repr_html_()):
        assert "It is nothing." in html
        assert "&lt;b&gt;" in html
        assert "<b>" not in html
        assert "−1.50 ± 0.25*" in html
    parts = Page(section(result).html).root.one("section").children
    tags = [part.tag for part in parts if isinstance(part, Element)]
    assert tags == ["h2", "p", "ul", "figure", "figure", "div", "details", "ul"]
    assert "It is nothing." in repr(result)
    assert str(result) == result.text()


def test_nothing_is_sorted_last_and_places_are_cut_and_harmless() -> None:
    columns = [Column("name"), Column("value", "number")]
    places = [Example("f.py:1:2", "b" * 999, "\u202e\n", "a\n"), Example("f.py  token 3", reason="gone")]
    table = Table("t", "T", columns, [["a", np.nan], ["b", None], ["c", -1.5]], details=[places, "none", []])
    page = Page(section(Result("s", {}, "", [table], examples=places)).html).root
    cells = [cell for cell in page.all("td") if "data-v" in cell.attributes]
    assert [(cell.text, cell.attributes["data-v"]) for cell in cells] == [("–", ""), ("–", ""), ("−1.5", "-1.5")]
    assert [one.text for one in page.all("mark")] == ["‹U+202E›⏎\n"] * 2  # in the table, and after it
    assert page.all("code")[1].text == f"…{'b' * 280}‹U+202E›⏎\na"
    assert [one.text for one in page.all("p", **{"class": "none"})] == ["no text: gone", "none", "no text: gone"]
    assert [one.text for one in page.all("option")] == ["all", "a", "b", "c"]


@pytest.mark.parametrize(
    ("column", "cell", "text"),
    [
        (Column("", "count"), 1234567, "1,234,567"),
        (Column("", "count"), None, "-"),
        (Column("", "index"), 14336, "14336"),
        (Column("", "share"), 0.0149, "1 %"),
        (Column("", "share", 1), 0.0149, "1.5 %"),
        (Column("", "number"), 12345.6, "1.235e+04"),
        (Column("", "number", 2), 12345.6, "12,345.60"),
        (Column("", "number", 2), float("nan"), "-"),
        (Column("", "number", 2), Value(1.5, float("nan")), "1.50"),
        (Column("", "signed", 3), Value(0.5, 0.25), "+0.500 ± 0.250"),
        (Column("", "signed", 1), Value(None, 0.25), "-"),
        (Column("", "text"), "a-b", "a-b"),
    ],
)
def test_cells(column: Column, cell: Any, text: str) -> None:
    assert cell_text(column, cell) == text


def test_every_study_states_its_parameters() -> None:
    """What has no Option could be asked for by nobody; every option says something."""
    for name in studies.STUDIES:
        function = studies.study(name)
        stated = {parameter.field[0] if parameter.field else parameter.name for parameter in parameters(function)}
        assert {"store", *stated} == {*inspect.signature(function).parameters} - {"progress"}, name
        assert all(parameter.option.help for parameter in parameters(function)), name
        assert ">>>" in (function.__doc__ or ""), name
