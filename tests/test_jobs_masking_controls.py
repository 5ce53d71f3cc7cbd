"""`ablate`, `mask`, their pictures and the report on models built so that it is known what neurons are worth.

Two layers of 160 neurons read which corpus a word is of, and raise the logits of words that occur. In each layer 10
neurons fire on alpha only, 10 on beta only, 40 on both, 100 never: LAPE chooses the first two. In the `exchangeable`
model those that fire are all worth the same but for chance; in the `planted` one the chosen ones alone are worth
something.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from test_analysis_report import Page, rows_of, table_of
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from neurotally.analysis import studies
from neurotally.profiler import store

Run = Callable[..., tuple[int, str, str]]
WORDS = {"alpha": [f"a{number}" for number in range(20)], "beta": [f"b{number}" for number in range(20)]}
NEURONS, KINDS = 160, {"alpha": range(10), "beta": range(10, 20), "both": range(20, 60)}
ALPHA, BETA, RAISE, CODE = 0, 1, 2, slice(8, 16)
"""What the dimensions of the hidden state are for."""


def build_model(folder: Path, is_planted: bool) -> Path:
    vocabulary = ["<unk>", *WORDS["alpha"], *WORDS["beta"], *(f"never{number}" for number in range(40))]
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=NEURONS, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model, generator = LlamaForCausalLM(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        head.zero_()
        embedding.zero_()
        embedding[:, CODE] = 0.3 * torch.randn(len(vocabulary), 8, generator=generator)
        embedding[1:21, ALPHA] = embedding[21:41, BETA] = 3.0
        head[1:41, RAISE] = 1.0
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            mlp = layer.mlp
            for weight in (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight):
                weight.zero_()
            mlp.up_proj.weight[:, [ALPHA, BETA]] = 1.0
            mlp.gate_proj.weight[:, CODE] = 0.3 * torch.randn(NEURONS, 8, generator=generator)
            mlp.gate_proj.weight[:, [ALPHA, BETA]] = -3.0
            mlp.gate_proj.weight[KINDS["alpha"], ALPHA] = mlp.gate_proj.weight[KINDS["beta"], BETA] = 2.0
            mlp.gate_proj.weight[KINDS["both"]] = mlp.gate_proj.weight[KINDS["both"]].abs()
            mlp.gate_proj.weight[KINDS["both"], 0:2] = 2.0
            worth = 0.004 * torch.randn(NEURONS, generator=generator).abs()
            if is_planted:
                worth[list(KINDS["both"])] *= 0.05
            mlp.down_proj.weight[RAISE] = worth
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


def write_corpora(folder: Path, documents: int, seed: int) -> Path:
    rng = random.Random(seed)
    for name, words in WORDS.items():
        (folder / name).mkdir(parents=True)
        for number in range(documents):
            text = " ".join(rng.choices(words, k=rng.randrange(20, 110)))
            (folder / name / f"{number}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module", params=["exchangeable", "planted"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Its name, and a folder with a `model`, what to profile and what to evaluate on."""
    folder = tmp_path_factory.mktemp(request.param)
    build_model(folder / "model", request.param == "planted")
    write_corpora(folder / "profiled", 8, 0)
    write_corpora(folder / "heldout", 12, 1)
    return request.param, folder


def texts_of(figure: Any) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.slow
def test_all_outputs_say_whether_the_chosen_neurons_matter(case: tuple[str, Path], run: Run) -> None:
    name, folder = case
    model, place = folder / "model", folder / "store"
    assert run("profile", model, place, "--corpora", folder / "profiled")[0] == 0
    assert run("lape", place, "--per-corpus", 20, "--quantile", 0.65, "--out", folder / "lape.json")[0] == 0
    chosen = json.loads((folder / "lape.json").read_text())["specific"]
    for corpus in WORDS:
        assert chosen[corpus] == [[layer, neuron] for layer in (0, 1) for neuron in KINDS[corpus]]

    heldout = ("--corpora", folder / "heldout")
    ablate = ("ablate", model, place, *heldout, "--per-corpus", 20, "--quantile", 0.65)
    code, table, _ = run(*ablate, "--figure", folder / "ablation.png", "--out", folder / "ablation.json")
    assert code == 0
    ablation = json.loads((folder / "ablation.json").read_text())
    mask = ("mask", model, place, *heldout, "--neurons", folder / "lape.json")
    code, mask_table, _ = run(*mask, "--figure", folder / "mask.png", "--out", folder / "mask.json")
    assert code == 0
    masked = json.loads((folder / "mask.json").read_text())
    assert run("report", place, "--out", folder / "report.html")[0] == 0
    page = Page((folder / "report.html").read_text()).root

    for document in (ablation, masked):
        assert [one["candidates_drawn_from"] for one in document["controls"].values()] == ["layers", "layers"]
        for verdict in document["verdict"].values():
            assert verdict["z"] > 2.5  # the same layers' silent neurons cost nothing in either model
            assert verdict["z_stricter"] == min(verdict["z"], verdict["z_candidates"])
            assert verdict["costs_more"] == (name == "planted")
            assert (verdict["z_candidates"] > 2.5) if name == "planted" else (abs(verdict["z_candidates"]) < 1.96)
    for row in range(2):
        assert ablation["in_standard_errors"][row][row] > 5  # what was published before

    if name == "planted":
        says = "2 of 2 sets cost their own text more than random neurons of the same layers and random neurons above"
        also = ": alpha, beta"
    else:
        verdict = ablation["verdict"]["alpha"]
        says = "0 of 2 sets cost their own text more than random neurons of the same layers and random neurons above"
        also = (
            f"not more than random: alpha (z {verdict['z']:+.1f} over the same layers, {verdict['z_candidates']:+.1f} "
        )
    section_texts = [page.one("section", id=f"loss-{one}").text for one in ("ablate", "mask")]
    pictures = [texts_of(studies.run("losses", place, name=one, form=one).figure()) for one in ("ablate", "mask")]
    for text in (table, mask_table, *section_texts, *(" ".join(picture.split()) for picture in pictures)):
        assert says in text
    for text in (table, section_texts[0], " ".join(pictures[0].split())):
        assert also in text
    answer = "yes" if name == "planted" else "no"
    for corpus in WORDS:
        z = ablation["verdict"][corpus]
        (line,) = [line for line in table.splitlines() if line.startswith(corpus) and line.endswith(answer)]
        assert f"{z['z']:+.1f}" in line.split()
        assert f"{z['z_candidates']:+.1f}" in line.split()
        cells = rows_of(table_of(page.one("section", id="loss-ablate"), "What each corpus's own held-out text"))[corpus]
        assert cells[6] == f"{z['z']:+.1f}".replace("-", "−")
        assert cells[8:] == [f"{z['z_candidates']:+.1f}".replace("-", "−"), answer]
        # Of `mask`, the row of the set on its own corpus, with both z.
        z = masked["verdict"][corpus]
        (line,) = [line for line in mask_table.splitlines() if line.split()[:2] == [corpus, corpus]]
        own = studies.run("losses", place, name="mask", form="mask").frame("own").set_index("on").loc[corpus]
        assert [own["z same layers"], own["z above threshold"]] == [z["z"], z["z_candidates"]]
        assert {f"{z['z']:+.1f}", f"{z['z_candidates']:+.1f}", answer} <= set(line.split())
        assert masked["effects"][corpus]["corpora"][corpus]["z_stricter"] == z["z_stricter"]


@pytest.mark.slow
def test_too_few_candidates_are_no_number(case: tuple[str, Path], run: Run, tmp_path: Path) -> None:
    """60 of the 100 neurons above the threshold in each corpus are switched off: 40 are left."""
    _, folder = case
    model, place = folder / "model", tmp_path / "store"
    assert run("profile", model, place, "--corpora", folder / "profiled")[0] == 0
    chosen = {name: [[layer, one] for layer in (0, 1) for one in [*KINDS[name], *range(20, 40)]] for name in WORDS}
    (tmp_path / "m.json").write_text(json.dumps({"model": None, "specific": chosen, "bar": 0.0}))
    options = ("--corpora", folder / "heldout", "--neurons", tmp_path / "m.json", "--draws", 3)
    code, table, _ = run("ablate", model, place, *options, "--out", tmp_path / "a.json")
    assert code == 0
    document = json.loads((tmp_path / "a.json").read_text())
    over = document["random_candidates"]
    for key in ("random", "change_over_random", "in_standard_errors", "z"):
        assert over[key] == [[None, None]] * 2
    reason = "40 others above the threshold for 60 in the set"
    assert over["not_judged"] == [[reason] * 2] * 2
    assert document["z_stricter"] == [[None, None]] * 2
    for row, corpus in enumerate(WORDS):
        assert document["z"][row][row] is not None
        assert document["verdict"][corpus]["costs_more"] is None
        (line,) = [line for line in table.splitlines() if line.split()[:3] == [corpus, "60", "12"]]
        assert line.split()[-3:] == ["-", "-", "-"]
    assert f"no random neurons above the threshold to judge by for alpha, beta ({reason})" in table
    assert "cost their own text more than" not in table
    picture = texts_of(studies.run("losses", place, name="ablate").figure())
    for text in (table, " ".join(picture.split())):
        assert f"can't be judged: alpha, beta (above the threshold: {reason})" in text


@pytest.mark.slow
def test_few_documents_and_empty_sets_in_mask(case: tuple[str, Path], run: Run, tmp_path: Path) -> None:
    _, folder = case
    for number in range(4):
        (tmp_path / "heldout/alpha").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"heldout/alpha/{number}.txt").write_text((folder / f"heldout/alpha/{number}.txt").read_text())
    neurons = tmp_path / "m.json"
    neurons.write_text(json.dumps({"model": None, "specific": {"alpha": [[0, 1], [1, 2]], "nothing": []}}))
    options = ("--corpora", tmp_path / "heldout", "--neurons", neurons, "--draws", 3, "--figure", tmp_path / "m.png")
    code, table, _ = run("mask", folder / "model", tmp_path / "store", *options, "--out", tmp_path / "mask.json")
    assert code == 0
    document = json.loads((tmp_path / "mask.json").read_text())
    effect = document["effects"]["alpha"]["corpora"]["alpha"]
    assert effect["change"] is not None
    assert [effect[key] for key in ("standard_error", "in_standard_errors", "z")] == [None] * 3
    assert effect["not_judged"] == "fewer than 5 documents"
    lines = [line.split() for line in table.splitlines() if line.startswith(("alpha", "nothing"))]
    assert [line[:3] for line in lines] == [["alpha", "alpha", "4"]]
    result = studies.run("losses", tmp_path / "store", name="mask", form="mask")
    (own,) = [dict(zip([column.name for column in result.tables[0].columns], row, strict=True))
              for row in result.tables[0].rows]  # fmt: skip
    assert own["change"].error is own["z same layers"] is own["z above threshold"] is None
    assert "no neuron to switch off: nothing" in table
    assert "the store has no corpus that tells which neurons are above LAPE's threshold" in table
    assert "nothing" not in [label.get_text() for axes in result.figure().axes for label in axes.get_yticklabels()]


@pytest.mark.slow
def test_of_random_sets_as_many_are_found_as_the_level_says(run: Run, tmp_path: Path) -> None:
    """200 sets of 8 neurons in each layer drawn at random, so that neither control is any different from them."""
    model = build_model(tmp_path / "model", is_planted=False)
    assert run("profile", model, tmp_path / "store", "--corpora", write_corpora(tmp_path / "profiled", 4, 0))[0] == 0
    (tmp_path / "heldout").mkdir()
    write_corpora(tmp_path / "written", 8, 1)
    (tmp_path / "written/alpha").rename(tmp_path / "heldout/alpha")
    rng = np.random.default_rng(0)
    specific = {
        f"set {seed}": [[layer, int(one)] for layer in (0, 1) for one in rng.choice(NEURONS, 8, replace=False)]
        for seed in range(200)
    }
    (tmp_path / "m.json").write_text(json.dumps({"model": None, "specific": specific, "bar": 0.0}))
    options = ("--neurons", tmp_path / "m.json", "--corpora", tmp_path / "heldout", "--out", tmp_path / "mask.json")
    assert run("mask", model, tmp_path / "store", *options, "--draws", 3)[0] == 0
    assert store.group_attributes(tmp_path / "store", "loss/mask")["not_drawn"] == {"random": {}, "candidates": {}}
    effects = json.loads((tmp_path / "mask.json").read_text())["effects"]
    own = [effects[name]["corpora"]["alpha"] for name in specific]
    for control in (own, [one["candidates"] for one in own]):
        z_N = np.array([one["z"] for one in control], float)
        # 99.9 % of binomial samples of 200 lie within 2 to 20 at 5 %, and below 9 at 1 %.
        assert 2 <= np.count_nonzero(abs(z_N) > 1.960) <= 20
        assert np.count_nonzero(abs(z_N) > 2.576) <= 8
    held_fixed = np.array([one["in_standard_errors"] for one in own])
    assert np.mean(abs(held_fixed) > 1.960) > 0.5
