"""The pictures say what the numbers say, at every size they are made for."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotally.analysis.figures.losses import draw_ablation
from neurotally.analysis.languages.counts import CorpusCounts
from neurotally.analysis.languages.lape import Selection
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.render.charts import draw, save_figure
from neurotally.analysis.result import Chart, Panel, Series

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
        names, "balanced", 0.9, number, 0.5, entropy_LF, every, every, specific, exclusive, dict.fromkeys(names, 0)
    )
    counts = CorpusCounts(None, names, np.full(num_corpora, 9), np.zeros((num_corpora, num_layers, 1000)), {})
    return counts, chosen


@pytest.mark.parametrize(("num_corpora", "num_layers"), [(1, 1), (2, 4), (5, 6), (13, 80)])
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


def ablation(change: Any, names: Sequence[str] = ("a", "b"), **more: Any) -> dict[str, Any]:
    """What `draw_ablation` reads; without `more` no random neurons were drawn."""
    return {"corpora": list(names), "how": "coefficient", "draws": 0, "change": change, "verdict": {}, **more}


@pytest.mark.parametrize("size", [1, 2, 5, 13])
def test_ablation(tmp_path: Path, size: int) -> None:
    rng = np.random.default_rng(0)
    value_PRC = rng.normal(size=(6, size, size)).clip(-2, 2)
    value_PRC[:, 0, 0] = -1.5
    change, over_random, over_candidates, z_stricter, z, z_candidates = value_PRC.tolist()
    verdict = {"costs_more": False, "z": 8.6, "z_candidates": -0.2, "not_judged": None}
    document = ablation(
        change, NAMES[:size], draws=3, change_over_random=over_random, z=z, z_stricter=z_stricter,
        random_candidates={"change_over_random": over_candidates, "z": z_candidates},
        verdict=dict.fromkeys(NAMES[:size], verdict),
    )  # fmt: skip
    figure = draw_ablation(document)
    for axes, value_RC in zip(figure.axes[:6], value_PRC, strict=True):
        shown = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(shown) == size**2
        for (row, column), value in np.ndenumerate(value_RC):
            decimals = 1 if axes.get_title().startswith("z") else 2
            assert float(shown[column, row].replace("−", "-")) == pytest.approx(value, abs=0.51 * 10**-decimals)
            assert re.match("[+−]", shown[column, row])
        low, high = axes.images[0].get_clim()
        assert -low == high == (4.0 if axes.get_title().startswith("z") else np.abs(value_RC).max())
        assert len([patch for patch in axes.patches if patch.get_visible()]) == size  # the frames of the diagonal
    text = all_text(figure)
    for part in (
        "nats per token", "change over random of the same layers", "change over random above the threshold",
        "z, the smaller of both", "corpus's neurons costs (coefficient)", f"0 of {size} sets cost their own text more",
        "C# (z +8.6 over the same layers, -0.2",
    ):  # fmt: skip
        assert part in text
    save_figure(figure, tmp_path / "ablation.png")
    check_png(tmp_path / "ablation.png")


@pytest.mark.parametrize(
    ("largest", "shown"),
    [(0.0, "+0.00"), (0.00312, "+0.00312"), (0.25, "+0.250"), (3.0, "+3.00"), (25.0, "+25.0"), (1234.0, "+1234")],
)
def test_cells_have_three_digits(largest: float, shown: str) -> None:
    figure = draw_ablation(ablation([[largest, 0.0], [0.0, 0.0]]))
    assert figure.axes[0].texts[0].get_text() == shown


def test_ablation_with_nothing_measured_in_a_cell(tmp_path: Path) -> None:
    figure = draw_ablation(ablation([[1.0, None], [None, -3.0]]))
    assert [text.get_text() for text in figure.axes[0].texts] == ["+1.00", "n/a", "n/a", "−3.00"]
    save_figure(figure, tmp_path / "ablation.png")
    draw_ablation(ablation([[None, None], [None, None]]))
