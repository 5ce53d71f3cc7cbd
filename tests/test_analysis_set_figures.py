"""The pictures of sets say what their documents say, at every size they are made for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from group_counts import active_of, made_up_groups

from neurotally.analysis.languages.compare import compare
from neurotally.analysis.languages.counts import GroupCounts
from neurotally.analysis.languages.jackknife import error_bars
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.languages.profiles import profiles
from neurotally.analysis.languages.stability import stability
from neurotally.analysis.languages.stability_study import stability_result
from neurotally.analysis.languages.sweep import sweep
from neurotally.analysis.render.charts import save_figure

RULE = Rule(per_corpus=20)
SIZES = [pytest.param(2, 4, id="2 corpora, 4 layers"), pytest.param(6, 80, id="6 corpora, 80 layers")]


def made(num_corpora: int, num_layers: int, empty: bool = True, seed: int = 0) -> GroupCounts:
    groups = made_up_groups(4, num_corpora, (num_layers, 63), seed=seed)
    if empty and num_corpora > 2:
        active_of(groups)[1][:] //= 10_000
    return groups


def shown(figure: Any) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text) if text.get_visible())


def panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_visible()]


def saved(figure: Any, folder: Path) -> None:
    save_figure(figure, folder / "figure.png")
    assert (folder / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    loaded: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return loaded


@pytest.mark.parametrize(("num_corpora", "num_layers"), SIZES)
@pytest.mark.slow
def test_error_bars(tmp_path: Path, num_corpora: int, num_layers: int) -> None:
    groups = made(num_corpora, num_layers)
    counts = groups.total()
    result = lape_result(counts, lape(counts, RULE), error_bars(groups)).of("org/model", groups.corpora)
    document, figure = plain(result.document), result.figure("error-bars")
    for panel, name in zip(panels(figure), groups.corpora, strict=True):
        of = document["error_bars"]["specific"][name]
        if of["entropy"]:
            points = [pair for line in panel.lines[:2] for pair in zip(*line.get_data(), strict=True)]
            assert sorted(float(x) for x, _ in points) == sorted(
                value for value, error in zip(of["entropy"], of["entropy_standard_error"], strict=True) if error
            )
            flagged = sum(map(bool, of["entropy_flags"]))
            assert f"clear, {flagged} flagged" in panel.get_title(loc="right")
        else:
            assert "no neuron\nabove the threshold" in shown(panel)
    assert "org/model" in shown(figure)
    assert "95 % interval (nats)" in shown(figure)
    saved(figure, tmp_path)


@pytest.mark.parametrize(("num_corpora", "num_layers"), SIZES)
@pytest.mark.slow
def test_stability(tmp_path: Path, num_corpora: int, num_layers: int) -> None:
    groups = made(num_corpora, num_layers)
    result = stability_result(groups, stability(groups, RULE, num_samples=4, num_orders=2))
    document, figure = plain(result.document), result.figure()
    curve = document["curve"]
    for panel, name in zip(panels(figure), groups.corpora, strict=True):
        if not document["specific"][name]:
            assert "no neuron\nabove the threshold" in shown(panel)
            continue
        recovered, agreement, _ = panel.lines
        assert recovered.get_xdata().tolist() == curve["tokens"][name]
        assert recovered.get_ydata().tolist() == curve["recovered"][name]["mean"]
        assert list(agreement.get_ydata())[:2] == curve["agreement"][name][:2]
        core = len(document["core"][name]) / len(document["specific"][name])
        assert f"core {100 * core:.0f} %" in panel.get_title(loc="right")
    assert "tokens of the corpus" in shown(figure)
    saved(figure, tmp_path)


@pytest.mark.parametrize("kinds", ["both", "balanced", "top"])
@pytest.mark.slow
def test_sweep(tmp_path: Path, kinds: str) -> None:
    counts = made(4, 5).total()
    result = sweep(
        counts,
        (0.9, 0.95),
        per_corpus=() if kinds == "top" else (5, 20, 40),
        top_rates=() if kinds == "balanced" else (0.01, 0.05),
        base=RULE,
    )
    document, figure, curves = plain(result.document), result.figure(), result.figure("profiles")
    assert len(figure.axes) == len(curves.axes) == (4 if kinds == "both" else 2)
    first = document["settings"][0]
    assert f"{first['distinct']:,}\n" in shown(figure.axes[0])
    assert len(figure.axes[0].patches) == (kinds != "top")  # the base is framed
    profile = curves.axes[0].lines[0].get_ydata()
    at_default = next(of for of in document["settings"] if of["quantile"] == 0.95)
    count_L = np.sum(list(at_default["by_layer"]["specific"].values()), axis=0)
    np.testing.assert_allclose(profile, count_L / count_L.sum())
    assert "quantile 0.95" in shown(figure)
    saved(figure, tmp_path)
    saved(curves, tmp_path)


@pytest.mark.parametrize(("num_corpora", "num_layers"), SIZES)
@pytest.mark.slow
def test_profiles(tmp_path: Path, num_corpora: int, num_layers: int) -> None:
    counts = made(num_corpora, num_layers).total()
    result = profiles(counts, RULE)
    document, figure = plain(result.document), result.figure()
    by_layer = document["by_layer"]
    for panel, total_L in zip(panels(figure), [by_layer["distinct"], *by_layer["specific"].values()], strict=True):
        tops = np.zeros(num_layers)
        for bar in panel.patches:
            layer = round(bar.get_x() + bar.get_width() / 2)
            tops[layer] = max(tops[layer], bar.get_y() + bar.get_height())
        assert tops.tolist() == total_L
    assert "exclusive to one" in shown(figure)
    assert ("shared by 5 and more" in shown(figure)) == (num_corpora > 5)
    saved(figure, tmp_path)


@pytest.mark.parametrize(("num_corpora", "num_layers"), SIZES)
@pytest.mark.slow
def test_overlap(tmp_path: Path, num_corpora: int, num_layers: int) -> None:
    counts = made(num_corpora, num_layers).total()
    result = profiles(counts, RULE)
    document, figure = plain(result.document), result.figure("overlap")
    cells = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    for row, column in np.ndindex(num_corpora, num_corpora):
        count, value = (document["overlap"][key][row][column] for key in ("count", "jaccard"))
        expected = f"{count:,}" if row == column else f"{value:.2f}\n{count:,}"
        assert cells[column, row] == expected
    saved(figure, tmp_path)


@pytest.mark.parametrize("other_layers", [4, 6])
@pytest.mark.slow
def test_compare(tmp_path: Path, other_layers: int) -> None:
    one, other = made(4, 4).total(), made(4, other_layers, empty=other_layers == 4, seed=1).total()
    result = compare([one, other], ["$a_1$", "b"], RULE)
    document, figure = plain(result.document), result.figure()
    for panel, name in zip(panels(figure), document["corpora"], strict=True):
        if not any(any(store["by_layer"]["specific"][name]) for store in document["stores"]):
            assert "no neuron\nabove the threshold" in shown(panel)
            continue
        for store, stairs in zip(document["stores"], panel.patches, strict=True):
            count_L = np.array(store["by_layer"]["specific"][name])
            values, edges, _ = stairs.get_data()
            assert len(values) == len(count_L)
            if count_L.sum():  # both as densities and as shares
                assert (values * np.diff(edges)).sum() == pytest.approx(1)
    assert ("depth, from" in shown(figure)) == (other_layers == 6)
    english = "above the threshold" if other_layers == 4 else "no neuron in one of them"
    assert english in shown(figure)
    assert "$a_1$ (4 layers of 63)" in shown(figure)
    saved(figure, tmp_path)
