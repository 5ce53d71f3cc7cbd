"""The pictures say what the numbers say, at every size they are made for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Rule, Selection
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.parts import Chart, Grid, Panel, Series
from neurotally.analysis.render.charts import draw, save_figure

NAMES = ["C#", "C++", "c", "$cuda_1$", "english", "a name that is much longer than its panel", *"ghijklm"]


def neurons(seed: int, num_layers: int, number: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, num_layers, number), rng.integers(0, 1000, number)], axis=1)


def all_text(figure: Any) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def check_png(path: Path) -> None:
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    assert width > 600
    assert height > 400


def selection(num_corpora: int, num_layers: int, number: int = 40) -> tuple[CorpusCounts, Selection]:
    """Made-up sets, every third neuron exclusive; the counts don't matter."""
    names = tuple(NAMES[:num_corpora])
    specific = {name: neurons(seed, num_layers, number) for seed, name in enumerate(names)}
    every = dict.fromkeys(names, number)
    exclusive = {name: neurons_n2[::3] for name, neurons_n2 in specific.items()}
    entropy_LF = np.zeros((num_layers, 1000))
    chosen = Selection(
        names,
        Rule(0.9, per_corpus=number),
        0.5,
        entropy_LF.size,
        entropy_LF,
        every,
        every,
        specific,
        exclusive,
        dict.fromkeys(names, 0),
    )
    counts = CorpusCounts(None, names, np.full(num_corpora, 9), np.zeros((num_corpora, num_layers, 1000)), {})
    return counts, chosen


@pytest.mark.parametrize(("num_corpora", "num_layers"), [(1, 1), (2, 4), (5, 6), (13, 80)])
@pytest.mark.slow
def test_layers(tmp_path: Path, num_corpora: int, num_layers: int) -> None:
    counts, chosen = selection(num_corpora, num_layers)
    figure = lape_result(counts, chosen).of("org/$model_1$", counts.corpora).figure()
    panels: list[Any] = [panel for panel in figure.axes if panel.get_visible()]
    assert len(panels) == num_corpora
    for panel, name in zip(panels, counts.corpora, strict=True):
        outer, inner = (patch.get_data().values for patch in panel.patches)
        assert outer.tolist() == np.bincount(chosen.specific[name][:, 0], minlength=num_layers).tolist()
        assert inner.tolist() == np.bincount(chosen.exclusive[name][:, 0], minlength=num_layers).tolist()
        assert panel.get_ylim()[1] >= outer.max()
    text = all_text(figure)
    for part in (
        "Where each",
        "org/$model_1$",
        "layer, from the input",
        "neurons in the layer",
        "exclusive",
        "40 / 14",
    ):
        assert part in text
    save_figure(figure, tmp_path / "layers.png")
    check_png(tmp_path / "layers.png")


def test_layers_with_an_empty_corpus(tmp_path: Path) -> None:
    figure = lape_result(*selection(2, 2, number=0)).figure()
    assert "no neuron\nabove the threshold" in all_text(figure)
    save_figure(figure, tmp_path / "layers.svg")
    assert b"<svg" in (tmp_path / "layers.svg").read_bytes()


def lines(chart: Chart, order: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Colour and marker by the label in the legend."""
    handles = draw(chart, "m", order).legends[0].legend_handles
    return {str(handle.get_label()): (handle.get_color(), handle.get_marker()) for handle in handles}


def test_a_name_has_one_colour_in_every_figure() -> None:
    """Whatever else is shown, in whatever order, and however it is spelt; no two of 25 look the same."""
    names = [f"language {number}" for number in range(25)]
    chart = Chart("c", "t", [Panel("", [Series(name, [0, 1], corpus=name) for name in reversed(names)])])
    looks = lines(chart, names)
    assert len(set(looks.values())) == 25
    some = Chart("c", "t", [Panel("", [Series(name, [1, 2], corpus=name.title()) for name in names[3:20:4]])])
    assert all(look == looks[name] for name, look in lines(some, names).items())


@pytest.mark.parametrize("mark", ["line", "steps", "filled", "bars", "points", "crosses", "band", "level"])
def test_every_mark_is_drawn_and_in_the_legend(mark: Any) -> None:
    values = [5.0] if mark == "level" else [1.0, 5.0, 2.0]
    low = [0.5, 4.0, 1.0] if mark in ("line", "points", "band") else []
    series = Series("$a_1$", values, mark=mark, low=low, high=[2.0, 6.0, 3.0] if low else [])
    figure = draw(Chart("c", "t", [Panel("p", [series])], y="count"))
    (panel,) = figure.axes
    panel.relim()
    assert panel.get_ylim()[0] <= 1
    assert panel.get_ylim()[1] >= 5
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["$a_1$"]
    assert not figure.legends[0].get_texts()[0].get_parse_math()


@pytest.mark.parametrize("size", [1, 2, 5, 13])
@pytest.mark.slow
def test_heat_maps(tmp_path: Path, size: int) -> None:
    """Every cell says its value and its error with as many digits as give the largest three."""
    names = NAMES[:size]
    rng = np.random.default_rng(0)
    value_RC = rng.normal(size=(size, size)).clip(-2, 2)
    value_RC[0, 0] = -1.5
    framed = [(at, at) for at in range(size)]
    grids = [
        Grid("with errors", names, names, value_RC.tolist(), is_signed=True, framed=framed, scale="nats per token",
             errors=abs(value_RC / 4).tolist()),
        Grid("z", names, names, value_RC.tolist(), is_signed=True, digits=1, high=4.0,
             above=[f"above {name}" for name in names]),
    ]  # fmt: skip
    figure = draw(Chart("c", "t", grids, notes=["0 of 1 sets", "word " * 100]), "org/$model$")
    for axes, decimals in zip(figure.axes, (2, 1), strict=False):
        shown = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(shown) == size**2
        for (row, column), value in np.ndenumerate(value_RC):
            text, _, error = shown[column, row].partition("\n± ")
            assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.51 * 10**-decimals)
            assert re.match("[+−]", text)
            assert (float(error) == pytest.approx(abs(value / 4), abs=0.0051)) if decimals == 2 else not error
        low, high = axes.images[0].get_clim()
        assert -low == high == (np.abs(value_RC).max() if decimals == 2 else 4.0)
    assert len([patch for patch in figure.axes[0].patches if patch.get_visible()]) == size
    text = all_text(figure)
    for part in ("nats per token", "org/$model$", "0 of 1 sets", "above C#"):
        assert part in text
    save_figure(figure, tmp_path / "maps.png")
    check_png(tmp_path / "maps.png")


@pytest.mark.parametrize(
    ("largest", "shown"),
    [(0.0, "+0.00"), (0.00312, "+0.00312"), (0.25, "+0.250"), (3.0, "+3.00"), (25.0, "+25.0"), (1234.0, "+1,234")],
)
def test_cells_have_three_digits(largest: float, shown: str) -> None:
    grid = Grid("", ["a", "b"], ["a", "b"], [[largest, 0.0], [None, 0.0]], is_signed=True)
    texts = [text.get_text() for text in draw(Chart("c", "t", [grid])).axes[0].texts]
    assert (texts[0], texts[2]) == (shown, "−")


def test_a_heat_map_of_nothing() -> None:
    draw(Chart("c", "t", [Grid("", ["a"], ["a"], [[None]])]))
