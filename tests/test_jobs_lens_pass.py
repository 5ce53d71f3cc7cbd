"""The lens over translation prompts, end to end, on a model trained for the purpose: against a naive forward."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally.analysis import studies
from neurotally.analysis.layers.lens import lens_document, read_lens, read_prompt
from neurotally.jobs import lens
from neurotally.jobs.commands.results import pass_command
from neurotally.jobs.demo import model as demo_model
from neurotally.jobs.passes.lens import directed_pairs
from neurotally.jobs.passes.lens_worker import STATUS, LensWorker
from neurotally.jobs.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.corpus.parallel import read_parallel
from neurotally.profiler.corpus.prompts import build_prompt, read_few_shot, tokenise_prompts
from neurotally.profiler.corpus.token_sets import find_token_sets
from neurotally.profiler.errors import InputError

LANGUAGES = {
    "C": ("int {0} = {1};\nreturn {0};", "c", ["int x = 1;", "struct S {};"]),
    "C#": ("var {0} = {1};\nConsole.Write({0});", "c#", ["var x = 1;", "class S {}"]),
    "Python": ("{0} = {1}\nprint({0})", "python", ["x = 1", "class S:"]),
}
KEYWORDS = {"C": ["int", "return", "struct"], "Python": ["print", "class", "def", "not in"], "Odd": ["else if"]}
TOO_LONG, EMPTY = "7", "5"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A parallel corpus of 8 ids in 3 languages, few-shot lines, keywords."""
    folder = tmp_path_factory.mktemp("lens")
    (folder / "few").mkdir()
    rng = np.random.default_rng(0)
    words = [["count", "size", "name", "index"][rng.integers(4)] + str(number) for number in range(8)]
    for language, (line, name, shots) in LANGUAGES.items():
        (folder / "parallel" / language).mkdir(parents=True)
        (folder / "few" / f"{name}_fewshot.txt").write_text("\n".join(f"{shot}  " for shot in shots))
        for number, word in enumerate(words):
            text = line.format(word, number) + "\n"
            if str(number) == TOO_LONG and language == "C":
                text *= 40
            if str(number) == EMPTY and language == "Python":
                text = " \n"
            (folder / "parallel" / language / f"{number}.txt").write_text(text)
    (folder / "keywords").mkdir()
    for name, entries in KEYWORDS.items():
        (folder / "keywords" / f"{name}.json").write_text(json.dumps({"name": name, "keywords": entries}))
    (folder / "words.txt").write_text("the\nprint\nname\n7\n")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A Llama of 4 layers, trained a few steps on programs of the corpus's languages."""
    rng = np.random.default_rng(1)
    for language, (line, name, _) in LANGUAGES.items():
        (data / "train" / name).mkdir(parents=True)
        for number in range(20):
            texts = [line.format(f"v{rng.integers(99)}", rng.integers(999)) for _ in range(30)]
            (data / "train" / name / f"{number}.txt").write_text(f"{language}\n" + "\n".join(texts))
    demo_model.train(data / "train", data / "model", steps=25, progress=False)
    return data / "model"


def run_pass(model: Path, path: Path, data: Path, **options: Any) -> dict[str, Any]:
    workers = options.pop("workers", 1)
    keywords = options.pop("keywords", KEYWORDS)
    return lens(
        str(model), path, parallel=read_parallel(data / "parallel"), few_shot=data / "few", keywords=keywords,
        english=["the", "print", "name"], device="cpu", workers=workers, progress=Progress(quiet=True), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(trained: Path, data: Path) -> Path:
    run_pass(trained, data / "store", data)
    return data / "store"


def naive(model: Any, ids: list[int]) -> np.ndarray:
    """float64 [L, T, V]: every layer's logits, all at once."""
    with torch.no_grad():
        output = model(torch.tensor([ids]), output_hidden_states=True)
        residuals = [*output.hidden_states[1:-1]]
        logits = [model.lm_head(model.model.norm(hidden_BTD))[0] for hidden_BTD in residuals]
    return torch.stack([*logits, output.logits[0]]).double().numpy()


@pytest.mark.slow
def test_equals_a_naive_forward_that_keeps_everything(trained: Path, done: Path, data: Path) -> None:
    group = store.read_group(done, "lens/translation")
    attributes = store.group_attributes(done, "lens/translation")
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    parallel = read_parallel(data / "parallel")
    texts = [text for language in parallel.languages for text in parallel.texts[language].values()]
    sets = find_token_sets(tokenizer, KEYWORDS, ["the", "print", "name"], texts)
    assert attributes["sets"]["C"]["share"] == sets.sets[0].share
    assert group["set"].tolist() == sets.names == list(attributes["sets"])
    assert attributes["empty_sets"] == sets.empty
    assert sets.empty["Odd"] == 1
    position, masses = 0, []
    expected_pairs = [(a, b) for a in LANGUAGES for b in LANGUAGES if a != b]
    for prompt, (source, target, id_) in enumerate((a, b, id_) for a, b in expected_pairs for id_ in parallel.ids):
        shots = [read_few_shot(data / "few", language) for language in (source, target)]
        built = build_prompt(source, target, *shots, parallel.texts[source][id_], parallel.texts[target][id_])
        (tokens,) = tokenise_prompts(tokenizer, [built], frozenset({0}), paper=False)
        assert group["prompt_id"][prompt] == id_
        assert group["language"][group["prompt_source"][prompt]] == source
        assert group["prompt_tokens"][prompt] == len(tokens.ids)
        if len(tokens.ids) > 256 or not tokens.rows:
            assert group["prompt_positions"][prompt] == 0
            reason = "no target token" if not tokens.rows else "longer than the context"
            assert STATUS[group["prompt_status"][prompt]] == reason
            assert id_ in attributes["skipped"][f"{source}-{target}"][reason]
            assert np.isnan(group["prompt_mass"][prompt]).all()
            continue
        logits_LTV = naive(model, tokens.ids)
        probability_LTV = np.exp(logits_LTV) / np.exp(logits_LTV).sum(-1, keepdims=True)
        first = position
        for index in tokens.rows[0].gold:
            gold = tokens.ids[index]
            assert group["position_prompt"][position] == prompt
            assert group["gold_index"][position] == index
            assert group["gold_id"][position] == gold
            assert group["input_id"][position] == tokens.ids[index - 1]
            for layer in range(4):
                logits_V, probability_V = logits_LTV[layer, index - 1], probability_LTV[layer, index - 1]
                found = group["top_id"][position, layer]
                top = np.argsort(-logits_V, kind="stable")[:10]
                near = np.diff(logits_V[top]) > -1e-4  # rounding may swap these
                assert near.any() or found.tolist() == top.tolist()
                np.testing.assert_allclose(group["top_probability"][position, layer], probability_V[top], rtol=1e-4)
                np.testing.assert_allclose(group["gold_probability"][position, layer], probability_V[gold], rtol=1e-4)
                close = int((np.abs(logits_V - logits_V[gold]) < 1e-4).sum()) - 1
                assert abs(int(group["gold_rank"][position, layer]) - 1 - (logits_V > logits_V[gold]).sum()) <= close
                for number, one in enumerate(sets.sets):
                    mass = probability_V[one.ids].sum()
                    np.testing.assert_allclose(group["mass"][position, layer, number], mass, rtol=1e-4)
            position += 1
        check_means(group, prompt, slice(first, position), sets, probability_LTV, tokens.rows[0].positions)
        at = probability_LTV[:, tokens.rows[0].positions]
        draw_nLSD = np.stack([at[..., one.draws_Dm].sum(-1) for one in sets.sets], axis=2).swapaxes(0, 1)
        masses.append((expected_pairs.index((source, target)), draw_nLSD))
    assert position == len(group["gold_id"])
    for pair in range(len(expected_pairs)):
        of_pair = [draw_nLSD for place, draw_nLSD in masses if place == pair]
        of_snippets = np.mean([draw_nLSD.mean(0) for draw_nLSD in of_pair], axis=0)
        np.testing.assert_allclose(group["draw_mass"][pair], of_snippets, rtol=1e-4)
        np.testing.assert_allclose(group["draw_mass_pooled"][pair], np.concatenate(of_pair).mean(0), rtol=1e-4)
    assert group["draw_token"].tolist() == np.concatenate([one.draws_Dm for one in sets.sets], axis=1).tolist()


def check_means(
    group: store.Arrays, prompt: int, here: slice, sets: Any, probability_LTV: np.ndarray, positions: list[int]
) -> None:
    """A prompt's means, from its positions."""
    ids, top = group["top_id"][here], group["top_probability"][here]
    assert group["prompt_positions"][prompt] == len(positions)
    rank, probability = group["gold_rank"][here], group["gold_probability"][here]
    for name, values in {
        "gold_probability": probability, "gold_rank": rank, "gold_top": rank <= 10,
        "gold_probability_top": probability * (rank <= 10), "gold_rank_top": np.minimum(rank, 11),
    }.items():  # fmt: skip
        np.testing.assert_allclose(group[f"prompt_{name}"][prompt], values.mean(0), rtol=1e-5)
    for number, one in enumerate(sets.sets):
        for kind, draws in (("prompt", [one.ids]), ("control", one.draws_Dm)):
            means: dict[str, list[np.ndarray]] = {"mass": [], "mass_top": [], "rank_top": [], "hit": []}
            for members in draws:
                inside = np.isin(ids, members)
                place = np.where(inside, np.arange(1, 11), 11).min(-1)
                mass_nL = probability_LTV[:, positions][:, :, members].sum(-1).T
                for of, values in zip(means.values(), (mass_nL, (top * inside).sum(-1), place, place <= 10),
                                      strict=True):  # fmt: skip
                    of.append(values.mean(0))
            for name, of in means.items():
                found = group[f"{kind}_{name}"][prompt, :, number]
                np.testing.assert_allclose(found, np.mean(of, axis=0), rtol=1e-4, atol=1e-9, err_msg=name)


@pytest.mark.ray
def test_goes_on_where_it_stopped_and_on_two_workers_to_the_same_bits(
    trained: Path, done: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute: Callable[..., Any] = LensWorker.compute
    calls = []

    def until_the_fourth(self: Any, *args: Any) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return compute(self, *args)

    monkeypatch.setattr(LensWorker, "compute", until_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_pass(trained, tmp_path / "s", data)
    monkeypatch.undo()
    assert store.committed(tmp_path / "s", "lens") == []
    assert len(list((tmp_path / "s" / ".run" / "lens").rglob("*.npz"))) == 3
    with pytest.raises(InputError, match="paper is True, the store has False"):
        run_pass(trained, tmp_path / "s", data, paper=True)
    run_pass(trained, tmp_path / "s", data, workers=2)
    ours, theirs = (store.read_group(path, "lens/translation") for path in (tmp_path / "s", done))
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values, equal_nan=values.dtype.kind == "f"), name


@pytest.mark.slow
def test_the_document_is_the_mean_of_snippets_then_pairs(done: Path) -> None:
    group = store.read_group(done, "lens/translation")
    document = lens_document(read_lens(done, "translation"))
    json.dumps(document, allow_nan=False)
    pair_P = [
        f"{group['language'][a]}-{group['language'][b]}"
        for a, b in zip(group["prompt_source"], group["prompt_target"], strict=True)
    ]
    means = {}
    for pair in dict.fromkeys(pair_P):
        of = [n for n, name in enumerate(pair_P) if name == pair and group["prompt_positions"][n]]
        means[pair] = np.mean([group["prompt_gold_probability"][n].astype(float) for n in of], axis=0)
        found = document["pairs"][pair]
        assert found["snippets"] == len(of)
        assert found["positions"] == sum(int(group["prompt_positions"][n]) for n in of)
        np.testing.assert_allclose(found["gold_probability"], means[pair])
        mass = np.mean([group["prompt_mass"][n, :, 0].astype(float) for n in of], axis=0)
        np.testing.assert_allclose(found["sets"]["C"]["mass"], mass)
        check_ranks(found["sets"]["C"], mass, group["draw_mass"][list(means).index(pair), :, 0])
    np.testing.assert_allclose(document["all"]["gold_probability"], np.mean(list(means.values()), axis=0))
    of_c = np.mean([means["C-C#"], means["C-Python"]], axis=0)
    np.testing.assert_allclose(document["sources"]["C"]["gold_probability"], of_c)
    to_c = np.mean([means["C#-C"], means["Python-C"]], axis=0)
    np.testing.assert_allclose(document["targets"]["C"]["gold_probability"], to_c)
    both = np.mean([means["C-C#"], means["C#-C"]], axis=0)
    np.testing.assert_allclose(document["unordered"]["C-C#"]["gold_probability"], both)
    mass_LS = np.array([document["all"]["sets"][name]["mass"] for name in document["sets"]]).T
    for number, of in enumerate(document["all"]["sets"].values()):
        draw_LD = group["draw_mass"][:, :, number].mean(0)
        check_ranks(of, mass_LS[:, number], draw_LD)
        np.testing.assert_allclose(of["control"]["draws"], draw_LD.T, rtol=1e-12)
    positions = np.array([document["pairs"][pair]["positions"] for pair in means])
    pooled_LD = np.average(group["draw_mass_pooled"][:, :, 0], axis=0, weights=positions)
    check_ranks(document["pooled"]["sets"]["C"], group["mass"][:, :, 0].astype(float).mean(0), pooled_LD)
    pooled = group["gold_rank"].astype(float).mean(0)
    np.testing.assert_allclose(document["pooled"]["gold_rank"], pooled, rtol=1e-6)
    text = studies.run("lens", done).text(full=True)
    for said in ("The gold token", "m/V", " of 21", "over 20 sets of as many tokens of like frequency"):
        assert said in text, said
    assert document["sets"]["C"]["uniform"] == document["sets"]["C"]["tokens"] / len(group["token"])


def check_ranks(of: dict[str, Any], mass_L: np.ndarray, draw_LD: np.ndarray) -> None:
    """Places among the draws, one comparison at a time, and the draws' mean and spread."""
    for layer, mass in enumerate(mass_L):
        assert of["mass_rank"][layer] == 1 + sum(drawn >= mass for drawn in draw_LD[layer])
        centre = sum(draw_LD[layer]) / 20
        variance = sum((drawn - centre) ** 2 for drawn in draw_LD[layer]) / 19
        np.testing.assert_allclose(of["control"]["mass"][layer], centre, rtol=1e-5)
        np.testing.assert_allclose(of["control"]["mass_sd"][layer], variance**0.5, rtol=1e-5)
    mean = sum(mass_L) / len(mass_L)
    assert of["mean_rank"] == 1 + sum(drawn >= mean for drawn in draw_LD.mean(0))


@pytest.mark.slow
def test_the_command_prints_one_document_and_draws(trained: Path, done: Path, data: Path, tmp_path: Path) -> None:
    arguments = [
        str(trained), str(done), "--parallel", str(data / "parallel"), "--few-shot", str(data / "few"), "--keywords",
        str(data / "keywords"), "--english", str(data / "words.txt"), "--json", "--device", "cpu",
    ]  # fmt: skip
    runner = CliRunner()
    whole = runner.invoke(pass_command("lens"), [*arguments, "--figure", str(tmp_path / "curves.png")])
    assert whole.exit_code == 0, whole.output
    document = json.loads(whole.stdout)
    assert set(document["pairs"]) == {f"{a}-{b}" for a in LANGUAGES for b in LANGUAGES if a != b}
    one = runner.invoke(
        pass_command("lens"), [*arguments, "--prompt", "C-Python/3", "--figure", str(tmp_path / "one.png")]
    )
    assert one.exit_code == 0, one.output
    assert all((tmp_path / name).stat().st_size > 20_000 for name in ("curves.png", "one.png"))
    with pytest.raises(InputError, match=r"C-C#/0 to Python-C#/7"):
        read_prompt(done, "translation", "C-Java/3")
    with pytest.raises(InputError, match="was skipped"):
        read_prompt(done, "translation", f"C-Python/{EMPTY}")


@pytest.mark.parametrize("prompt", ["96", "C-Java/3", "C-Python/none"])
def test_a_prompt_that_is_not_there_is_named_before_the_pass(data: Path, tmp_path: Path, prompt: str) -> None:
    """Before the model is loaded, too: there is none. 6 pairs of 3 languages, 8 ids."""
    arguments = ["no-model", str(tmp_path / "s"), "--parallel", str(data / "parallel"), "--few-shot",
                 str(data / "few"), "--figure", str(tmp_path / "one.png"), "--prompt", prompt]  # fmt: skip
    with pytest.raises(InputError, match=r"lens/translation has prompts 0 to 47, C-C#/0 to Python-C#/7"):
        CliRunner().invoke(pass_command("lens"), arguments, catch_exceptions=False)
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_other_draws_are_another_lens(
    trained: Path, done: Path, data: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    shutil.copytree(done, tmp_path / "s")
    arguments = [
        "lens", trained, tmp_path / "s", "--parallel", data / "parallel", "--few-shot", data / "few", "--keywords",
        data / "keywords", "--english", data / "words.txt", "--device", "cpu",
    ]  # fmt: skip
    for other in (["--pairs", "C-Python"], ["--draws", 5], ["--seed", 1]):
        code, _, errors = run(*arguments, *other)
        assert code == 2
        assert other[0].lstrip("-") in errors
    code, out, _ = run(*arguments, "--name", "again", "--draws", 5, "--json")
    assert (code, json.loads(out)["draws"]) == (0, 5)
    code, _, errors = run(*arguments, "--name", "again", "--draws", 5, "--seed", 1)
    assert code == 2
    assert "seed is 1, the store has 0" in errors


@pytest.mark.slow
def test_the_papers_way_reads_from_prefixes_with_two_bos(trained: Path, data: Path, tmp_path: Path) -> None:
    run_pass(trained, tmp_path / "s", data, pairs="Python-C#", paper=True)
    group = store.read_group(tmp_path / "s", "lens/translation")
    model = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(trained)
    parallel = read_parallel(data / "parallel")
    shots = [read_few_shot(data / "few", language) for language in ("Python", "C#")]
    built = build_prompt("Python", "C#", *shots, parallel.texts["Python"]["2"], parallel.texts["C#"]["2"])
    ids = tokenizer.encode(built.text)
    here = np.flatnonzero(group["position_prompt"] == 2)
    assert group["gold_index"][here].tolist() == list(range(group["gold_index"][here[0]], len(ids) - 1))
    for position in here:
        index = group["gold_index"][position]
        prefix = tokenizer.encode(tokenizer.decode(ids[:index]))
        assert prefix[:2] == [0, 0]
        logits_LV = naive(model, prefix)[:, -1]
        probability_LV = np.exp(logits_LV) / np.exp(logits_LV).sum(-1, keepdims=True)
        np.testing.assert_allclose(group["gold_probability"][position], probability_LV[:, ids[index]], rtol=1e-4)


@pytest.mark.slow
def test_pairs_and_inputs_that_are_not_there_are_named(trained: Path, data: Path, tmp_path: Path) -> None:
    assert directed_pairs("C++-C, C-C++", ["C", "C++"]) == [("C++", "C"), ("C", "C++")]
    for text, message in {"C-Java": "'C-Java' is no SOURCE-TARGET of C, C#", "": "expected `all`"}.items():
        with pytest.raises(InputError, match=message):
            directed_pairs(text, list(LANGUAGES))
    with pytest.raises(InputError, match="has one language"):
        directed_pairs("all", ["C"])
    (data / "few" / "python_fewshot.txt").rename(data / "few" / "other")
    try:
        with pytest.raises(InputError, match="'Python': can't read"):
            run_pass(trained, tmp_path / "s", data)
    finally:
        (data / "few" / "other").rename(data / "few" / "python_fewshot.txt")


@pytest.mark.slow
def test_a_context_that_no_prompt_fits_is_said_so(trained: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    with pytest.raises(InputError, match=r"no prompt can be read: .* longer than the context.*the model's context 40"):
        run_pass(tmp_path / "short", tmp_path / "s", data, keywords=None)
