"""What a lens says of token sets: the size and the power of their ranks, and lenses from before there were any."""

from typing import Any

import numpy as np
import pytest
import torch
from test_profiler_token_sets import Letters

from neurotally.analysis.layers.lens import LensResult, PromptLens, lens_document
from neurotally.analysis.layers.lens_study import lens_result
from neurotally.profiler.corpus.token_sets import TokenSets, find_token_sets
from neurotally.profiler.errors import InputError
from neurotally.profiler.passes.lens_reading import DrawColumns, SetColumns, read_logits

VOCABULARY, SEEDS = 2000, 200
MEMBERS = [3, 8, 20, 30, 90, 200, 400, 401, 700, 1500]


def logits_of(seed: int) -> torch.Tensor:
    """[8, V]: tokens are the likelier the more frequent they are, and most of the probability lies on a few."""
    rng = np.random.default_rng(seed)
    own_V = -np.log(np.arange(1, VOCABULARY + 1)) + 2 * rng.normal(size=VOCABULARY)
    return torch.from_numpy(own_V + rng.normal(size=(8, VOCABULARY))).float()


def sets_of(members: list[int], seed: int) -> TokenSets:
    """The set `A` of these tokens beside another language's; w1 is the most frequent token."""
    keywords = {"A": [f"w{token}" for token in members], "B": [f"w{token}" for token in range(10, 300, 37)]}
    texts = [" ".join(f"w{token}" for token in range(1, last)) for last in (50, 200, 500, 1000, VOCABULARY)]
    return find_token_sets(Letters(VOCABULARY), keywords, None, texts, seed=seed)


def result(sets: TokenSets, logits_NV: torch.Tensor) -> LensResult:
    """A lens of one layer and one prompt, as the store would hold it."""
    one = sets.sets[0]
    read = read_logits(logits_NV, torch.ones(len(logits_NV), 1, dtype=torch.int64), SetColumns([one.ids], VOCABULARY))
    drawn = DrawColumns([one.draws_Dm], VOCABULARY).read(logits_NV, *read[:2])
    mean_4D = [table.double().mean(0).numpy() for table in drawn]
    by_set = dict(zip(("mass", "mass_top", "rank_top"), (float(table.float().mean()) for table in read[4:]),
                      strict=True))  # fmt: skip
    arrays = {
        "language": np.array(["C", "Lua"], object), "set": np.array(["A"], object),
        "prompt_source": np.array([0]), "prompt_target": np.array([1]), "prompt_positions": np.array([len(logits_NV)]),
        **{f"prompt_{name}": np.ones((1, 1)) for name in ("gold_probability", "gold_rank", "gold_top",
                                                          "gold_probability_top", "gold_rank_top")},
        **{f"prompt_{name}": np.full((1, 1, 1), value) for name, value in {**by_set, "hit": 0.0}.items()},
        **{f"control_{name}": mean_D.mean().reshape(1, 1, 1)
           for name, mean_D in zip(("mass", "mass_top", "rank_top", "hit"), mean_4D, strict=True)},
        "draw_mass": mean_4D[0].reshape(1, 1, 1, -1), "draw_mass_pooled": mean_4D[0].reshape(1, 1, 1, -1),
    }  # fmt: skip
    about = {"entries": one.entries, "single": one.single, "tokens": len(one.ids), "share": one.share,
             "drawn_share": one.drawn_share}  # fmt: skip
    attributes: dict[str, Any] = {
        "paper": False, "sets": {"A": about}, "empty_sets": {}, "skipped": {}, "pairs": [["C", "Lua"]],
        "draws": sets.draws, "vocabulary": VOCABULARY,
    }  # fmt: skip
    return LensResult(arrays, attributes, {"id": "m", "fingerprint": "f"})


def ranks(lift: float, seeds: int) -> np.ndarray:
    """The rank of a draw that plays the language, for each seed, its tokens' logits raised by `lift`."""
    found = []
    for seed in range(seeds):
        played = sets_of(MEMBERS, seed).sets[0].draws_Dm[0].tolist()
        logits_NV = logits_of(seed)
        logits_NV[:, played] += lift
        document = lens_document(result(sets_of(played, seed + 1000), logits_NV))
        found.append(document["all"]["sets"]["A"]["mean_rank"])
    return np.array(found)


@pytest.mark.slow
def test_a_random_set_that_plays_the_language_has_any_rank_as_often() -> None:
    """p = rank / 21 is at most 0.05 for rank 1 alone, in 9.5 of 200 on average; 2 to 20 hold 99.8 % of the time."""
    rank = ranks(0, SEEDS)
    assert 2 <= (rank / 21 <= 0.05).sum() <= 20
    assert 2 <= ((22 - rank) / 21 <= 0.05).sum() <= 20
    times = np.bincount(rank, minlength=22)[1:]
    assert ((times - SEEDS / 21) ** 2 / (SEEDS / 21)).sum() < 45.3  # chi-square's 0.1 % of 20 degrees of freedom


@pytest.mark.slow
def test_a_set_that_is_likelier_than_its_frequency_says_is_found() -> None:
    assert (ranks(4, 40) == 1).mean() > 0.8


def test_the_figure_has_the_draws_and_what_uniform_tokens_expect() -> None:
    found = lens_result(result(sets_of(MEMBERS, 0), logits_of(0)))
    document = found.document
    panel = found.figure("panels").axes[1]
    assert document["sets"]["A"]["uniform"] == pytest.approx(10 / VOCABULARY)
    assert any(list(line.get_ydata()) == [10 / VOCABULARY] * 2 for line in panel.lines)
    low, high = panel.collections[0].get_datalim(panel.transData).intervaly
    draws = [draw[0] for draw in document["all"]["sets"]["A"]["control"]["draws"]]
    assert (low, high) == pytest.approx((min(draws), max(draws)))
    rank = document["all"]["sets"]["A"]["mean_rank"]
    assert panel.get_title("right") == f"10 tokens, rank {rank} of 21"


def named(*names: str) -> LensResult:
    """A lens of one pair, C to Lua, with these sets, all alike."""
    one = result(sets_of(MEMBERS, 0), logits_of(0))
    arrays = {
        name: np.repeat(values, len(names), axis=2) if values.ndim > 2 else values
        for name, values in one.arrays.items()
    }
    arrays["set"] = np.array(names, object)
    return LensResult(arrays, {**one.attributes, "sets": dict.fromkeys(names, one.attributes["sets"]["A"])}, one.model)


def test_the_one_panel_figure_has_the_gold_token_english_and_each_language() -> None:
    lens = named("C", "C++", "English", "Lua", "all")
    shown = lens_result(lens)
    (panel,) = shown.figure().axes
    labels = [text.get_text() for text in shown.figure().legends[0].get_texts()]
    assert labels == ["gold token", "C keywords", "English", "Lua keywords", "all keywords"]
    assert list(panel.lines[0].get_ydata()) == shown.document["all"]["gold_probability"]
    assert list(panel.lines[3].get_ydata()) == shown.document["all"]["sets"]["Lua"]["mass"]
    assert shown.frame("sets")["set"].tolist() == ["C", "English", "Lua", "all"]
    assert shown.frame("other-sets")["set"].tolist() == ["C++"]
    asked = lens_result(lens, ["C++"])
    assert asked.frame("sets")["set"].tolist() == ["C++"]
    assert asked.document == shown.document
    with pytest.raises(InputError, match=r"--set 'Perl': expected a set of tokens; there are: C, C\+\+, English"):
        lens_result(lens, ["Perl"])


def test_ranks_of_keywords() -> None:
    shown = lens_result(named("C", "Lua"))
    of = shown.document["all"]["sets"]["Lua"]
    assert shown.frame("ranks").iloc[1].tolist() == ["Lua", of["rank_top10"][0], of["hit"][0]]
    assert list(shown.figure("ranks").axes[1].lines[1].get_ydata()) == of["rank_top10"]


@pytest.mark.parametrize(("positions", "maps"), [(5, 1), (45, 3), (90, 3)])
@pytest.mark.slow
def test_a_prompt_is_cut_to_what_can_be_read(positions: int, maps: int) -> None:
    rng = np.random.default_rng(0)
    tokens = [f" t{number}\n" for number in range(positions)]
    prompt = PromptLens("C-Lua", "$7$", tokens, [*tokens[1:], "end"], [["a\tb", "longer than that"]] * positions,
                        rng.random((positions, 2)))  # fmt: skip
    found = lens_result(named("C", "Lua"), prompt=prompt)
    figure = found.figure()
    panels = [axes for axes in figure.axes if len(axes.images) and axes.texts]
    assert len(panels) == maps
    assert figure.get_figwidth() < 20
    shown = {text.get_position(): text.get_text() for text in panels[0].texts}
    assert (shown[0, 1], shown[0, 0]) == ("a⇥b", "longe…")  # the first layer lies lowest
    assert panels[0].images[0].get_array()[0, 3] == prompt.probability_nL[3, 1]
    assert ("the first 60 of 90 positions" in found.charts[0].title) == (positions == 90)
