"""`embed` and `mexa` end to end: against transformers and a double loop; the same bits however it ran."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Run, make_tokenizer, save_llama
from test_analysis_mexa import double_loop
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally.analysis import studies
from neurotally.jobs import embed
from neurotally.jobs.engines.engine import JobError
from neurotally.jobs.passes import embed as embedding
from neurotally.jobs.progress import Progress
from neurotally.profiler import store
from neurotally.profiler.corpus.parallel import ParallelTexts
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.load import load_model

LANGUAGES = ("C", "Java", "Python")


def make_texts(num_ids: int = 12, **changed: str) -> ParallelTexts:
    """Each id in three languages; C and Java share every third text, and id 1 is id 2 in C."""
    ids = tuple(f"{number:02d}" for number in range(num_ids))
    texts = {
        language: {
            id_: f"{'Python' if language == 'Python' else 'C'} {'' if int(id_) % 3 == 0 else language}"
            + f" f{id_}(x) = {int(id_) * 7} " * (1 + int(id_) % 4)
            for id_ in ids
        }
        for language in LANGUAGES
    }
    texts["C"]["01"] = texts["C"]["02"]
    for place, text in changed.items():
        language, _, id_ = place.partition("_")
        texts[language][id_] = text
    return ParallelTexts(LANGUAGES, ids, texts)


def run(model: Path, path: Path, texts: ParallelTexts, bos: str = "counted", **options: Any) -> dict[str, Any]:
    name, quiet = options.pop("name", "parallel"), Progress(quiet=True)
    embed(str(model), path, parallel=texts, bos=bos, name=name, device="cpu", progress=quiet, **options)
    return store.group_attributes(path, f"embeddings/{name}")


def arrays_of(path: Path, name: str = "parallel") -> dict[str, Any]:
    return store.read_group(path, f"embeddings/{name}")


def bits(path: Path) -> dict[str, Any]:
    return {name: values.tolist() if name == "id" else values.tobytes() for name, values in arrays_of(path).items()}


def formula(folder: Path, text: str, bos: str) -> np.ndarray:
    """float64 [2, L, D]: weighted and last, of transformers' hidden states."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text, add_special_tokens=bos != "none")["input_ids"]
    with torch.no_grad():
        states_LTD = torch.cat(model(torch.tensor([ids]), output_hidden_states=True).hidden_states).double().numpy()
    first = int(bos == "read")
    weight_T = np.array([0] * first + list(range(1, len(ids) - first + 1)))
    return np.stack([np.einsum("t,ltd->ld", weight_T, states_LTD) / weight_T.sum(), states_LTD[:, -1]])


@pytest.mark.parametrize("bos", ["counted", "read", "none"])
@pytest.mark.slow
def test_embeddings_equal_the_formula(bos: str, model_folder: Path, tmp_path: Path) -> None:
    texts = make_texts(6)
    attributes = run(model_folder, tmp_path / "s", texts, bos)
    arrays = arrays_of(tmp_path / "s")
    assert attributes["bos"] == bos
    assert attributes["languages"] == list(LANGUAGES)
    assert arrays["id"].tolist() == list(texts.ids)
    assert arrays["special"].tolist() == [int(bos != "none")] * len(arrays["special"])
    for c, language in enumerate(LANGUAGES):
        for i, id_ in enumerate(texts.ids):
            number = arrays["text"][c, i]
            expected_2LD = formula(model_folder, texts.texts[language][id_], bos)
            np.testing.assert_allclose(arrays["weighted"][:, number], expected_2LD[0], rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(arrays["last"][:, number], expected_2LD[1], rtol=1e-4, atol=1e-5)


def test_each_distinct_text_is_embedded_once(model_folder: Path, tmp_path: Path) -> None:
    texts = make_texts()
    attributes = run(model_folder, tmp_path / "s", texts)
    arrays = arrays_of(tmp_path / "s")
    distinct = {text for by_id in texts.texts.values() for text in by_id.values()}
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert len(arrays["hash"]) == len(distinct) == len(set(map(bytes, arrays["hash"])))
    assert attributes["tokens_run"] == sum(len(tokenizer(text)["input_ids"]) for text in distinct)
    assert arrays["tokens"].sum() == attributes["tokens_run"]
    for a in LANGUAGES:
        for b in LANGUAGES:
            same = [texts.texts[a][id_] == texts.texts[b][id_] for id_ in texts.ids]
            assert (arrays["text"][LANGUAGES.index(a)] == arrays["text"][LANGUAGES.index(b)]).tolist() == same


@pytest.mark.usefixtures("workers_share_this_process")
@pytest.mark.slow
def test_same_bits_after_a_stop_and_the_same_but_for_rounding_on_two_workers(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = make_texts(90)
    run(model_folder, tmp_path / "whole", texts)
    run(model_folder, tmp_path / "ray", texts, workers=2)
    compute, done = embedding.Embedder.compute, []

    def stops(self: Any, task: Any, prepared: Any) -> Any:
        if len(done) == 2:
            raise ValueError("stopped")
        done.append(task.key)
        return compute(self, task, prepared)

    monkeypatch.setattr(embedding.Embedder, "compute", stops)
    with pytest.raises(JobError, match=r"texts \d+ to \d+ .* stopped"):
        run(model_folder, tmp_path / "stopped", texts)
    assert store.committed(tmp_path / "stopped", "embeddings") == []
    monkeypatch.setattr(embedding.Embedder, "compute", compute)
    again = run(model_folder, tmp_path / "stopped", texts)
    assert again["tokens_run"] < arrays_of(tmp_path / "stopped")["tokens"].sum()
    assert bits(tmp_path / "whole") == bits(tmp_path / "stopped") == bits(tmp_path / "ray")


def test_texts_that_cannot_be_embedded_leave_out_their_id(model_folder: Path, tmp_path: Path) -> None:
    texts = make_texts(Java_03="long " * 200, Python_05="")
    attributes = run(model_folder, tmp_path / "s", texts, "none")
    arrays = arrays_of(tmp_path / "s")
    assert arrays["id"].tolist() == [id_ for id_ in texts.ids if id_ not in ("03", "05")]
    assert arrays["text"].shape == (3, 10)
    assert sorted(set(arrays["text"].ravel())) == list(range(arrays["weighted"].shape[1]))
    assert np.isfinite(arrays["weighted"]).all()
    assert np.isfinite(arrays["last"]).all()
    tokens = len(AutoTokenizer.from_pretrained(model_folder)("long " * 200, add_special_tokens=False)["input_ids"])
    assert attributes["left_out"] == [
        {"id": "03", "language": "Java", "reason": f"{tokens} tokens, more than the model's context of 128"},
        {"id": "05", "language": "Python", "reason": "no token that counts"},
    ]
    run(model_folder, tmp_path / "t", texts, "counted")  # of an empty text there is the BOS
    assert "05" in arrays_of(tmp_path / "t")["id"].tolist()
    number = int(arrays_of(tmp_path / "t")["text"][2, texts.ids.index("05") - 1])
    expected = formula(model_folder, "", "counted")[0]
    np.testing.assert_allclose(arrays_of(tmp_path / "t")["weighted"][:, number], expected, rtol=1e-4, atol=1e-5)


def test_no_id_left_is_an_error(model_folder: Path, tmp_path: Path) -> None:
    texts = ParallelTexts(("C",), ("a",), {"C": {"a": "x " * 500}})
    with pytest.raises(InputError, match=r"no id is left: .* 'a' of 'C': [\d,]+ tokens"):
        run(model_folder, tmp_path / "s", texts)


def test_other_texts_or_rules_need_another_name(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "s", make_texts(3))
    with pytest.raises(InputError, match="bos is 'read', the store has 'counted'; use another --name"):
        run(model_folder, tmp_path / "s", make_texts(3), "read")
    with pytest.raises(InputError, match=r"texts is .* use another --name"):
        run(model_folder, tmp_path / "s", make_texts(3, C_00="?"))
    run(model_folder, tmp_path / "s", make_texts(3), "read", name="without")
    assert store.committed(tmp_path / "s", "embeddings") == ["parallel", "without"]


def test_a_text_that_the_tokenizer_fails_over_is_skipped(model_folder: Path, fragile: Any) -> None:
    model = replace(load_model(str(model_folder), device="cpu"), tokenizer=fragile)
    prepared = embedding.Embedder(model, "none", 256).prepare(embedding.TextTask(0, ("ab", "a" * 60 + "c", "aab")))
    assert prepared.fits_n.tolist() == [True, False, True]
    assert prepared.tokens_n.tolist() == [1, 0, 2]
    assert prepared.rows.ids_N.tolist() == [2, 0, 2]


def test_out_of_memory_halves_the_batch(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed_rows, budgets = embedding.embed_rows, []

    def short_of_memory(model: Any, rows: Any, count_bos: bool, token_budget: int) -> Any:
        budgets.append(token_budget)
        if token_budget > 1024:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed_rows(model, rows, count_bos, token_budget)

    monkeypatch.setattr(embedding, "embed_rows", short_of_memory)
    assert len(run(model_folder, tmp_path / "s", make_texts(4))["restarted"]) == 1
    assert budgets == [4096, 2048, 1024]


@pytest.mark.parametrize("pooling", ["weighted", "last"])
@pytest.mark.slow
def test_the_commands(pooling: str, model_folder: Path, tmp_path: Path, run: Run) -> None:
    texts = make_texts(8)
    for language, by_id in texts.texts.items():
        for id_, text in by_id.items():
            (tmp_path / "texts" / language).mkdir(parents=True, exist_ok=True)
            (tmp_path / "texts" / language / f"{id_}.txt").write_text(text)
    options = ("--parallel", tmp_path / "texts", "--limit", 7, "--device", "cpu")
    assert "3 languages (C, Java, Python) x 7 ids" in run("embed", model_folder, tmp_path / "s", *options)[1]
    report = json.loads(run("embed", model_folder, tmp_path / "s", *options, "--json")[1])
    assert (report["ids"], report["layers"], report["bos"], report["special_tokens_a_text"]) == (7, 3, "counted", 1)
    figures = ("--figure", tmp_path / "a.png", "--matrix-figure", tmp_path / "b.svg", "--out", tmp_path / "c.json")
    document = json.loads(run("mexa", tmp_path / "s", "--embedding", pooling, "--json", *figures)[1])
    arrays = arrays_of(tmp_path / "s")
    expected_LCC = [double_loop(layer_ND, arrays["text"]).mean(axis=2) for layer_ND in arrays[pooling]]
    for p, pivot in enumerate(LANGUAGES):
        for q, name in enumerate(LANGUAGES):
            assert document["scores"][pivot][name] == [score_CC[p, q] for score_CC in expected_LCC]
    assert document["embedding"] == pooling
    assert json.loads((tmp_path / "c.json").read_text()) == document
    assert (tmp_path / "a.png").stat().st_size > 10_000
    assert (tmp_path / "b.svg").stat().st_size > 10_000
    text = run("mexa", tmp_path / "s", "--embedding", pooling)[1]
    assert "share of 7 ids" in text
    assert f"({pooling} embeddings, BOS: counted)" in text


def test_a_tokenizer_without_bos_is_said_so(tmp_path: Path) -> None:
    model = save_llama(tmp_path / "model", make_tokenizer(bos=False), seed=0)
    run(model, tmp_path / "s", make_texts(3))
    result = studies.run("embed", tmp_path / "s")
    assert "no token is special: this tokenizer adds no BOS" in result.text()
    assert result.frame()[["layers", "width"]].to_numpy().tolist() == [[3, 32]]


def test_embeddings_that_are_not_there(model_folder: Path, tmp_path: Path) -> None:
    run(model_folder, tmp_path / "s", make_texts(3))
    with pytest.raises(InputError, match="has no finished embeddings/other; its embeddings: \\['parallel'\\]"):
        studies.run("mexa", tmp_path / "s", name="other")
