"""Changes and standard errors against the formulas written out, from a table of losses made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurotally.analysis.masking.losses import CLASSES, Control, Losses, change, in_errors, ratio
from neurotally.analysis.masking.losses_document import ablation_document, mask_document
from neurotally.analysis.masking.losses_study import ablation_result, mask_result
from neurotally.analysis.render.charts import save_figure


def one_set(kind: str, of: str = "", draw: int = 0, neurons: int = 5) -> dict[str, Any]:
    drawn_from = {"drawn_from": "layers"} if kind == "candidates" else {}
    return {"kind": kind, "of": of, "draw": draw, "neurons": neurons, "by_layer": [neurons, 0], **drawn_from}


def make_losses(draws: int = 3, concepts: tuple[str, ...] = (), spared: bool = False, seed: int = 0) -> Losses:
    """Two corpora of 12 and 9 documents; sets a and b with their controls; the first document has no scored token."""
    rng = np.random.default_rng(seed)
    sets = [one_set("none", neurons=0)] + [one_set("specific", name) for name in "ab"]
    sets += [one_set(kind, name, draw) for kind in ("random", "candidates") for name in "ab" for draw in range(draws)]
    sets += [one_set("spared", "a", neurons=3)] if spared else []
    columns, documents = 1 + 2 * len(concepts), 21
    scored_DX = np.zeros((documents, columns), np.int64)
    scored_DX[:, 0] = rng.integers(40, 200, documents)
    has_DK = rng.random((documents, len(concepts))) < 0.6
    for column in range(1, columns):
        scored_DX[:, column] = rng.integers(1, 15, documents) * has_DK[:, (column - 1) // 2]
    scored_DX[0] = 0
    nats_SDX = rng.gamma(3, 1, (len(sets), documents, columns)) * scored_DX
    nats_SDX[1] += 0.5 * scored_DX
    hits_SDX = rng.binomial(scored_DX, 0.4, nats_SDX.shape)
    attributes = {"identity": {"how": "activation", "row_tokens": 64}, "forced": False, "used_documents": [["a", "x"]],
                  "described": {"quantile": 0.95}}  # fmt: skip
    corpus_D = np.repeat([0, 1], [12, 9])
    model = {"id": "m", "fingerprint": "f", "num_neurons": 500}
    return Losses(["a", "b"], sets, list(concepts), attributes, model, nats_SDX, hits_SDX, scored_DX, has_DK,
                  corpus_D)  # fmt: skip


def written_out(pairs: list[tuple[float, int]]) -> tuple[float, float]:
    """(Σd/Σn, standard error) of (d, n) by document, in plain Python."""
    used = [(d, n) for d, n in pairs if n]
    total = sum(n for _, n in used)
    value = sum(d for d, _ in used) / total
    squares = sum((d - value * n) ** 2 for d, n in used)
    return value, (len(used) / (len(used) - 1) * squares) ** 0.5 / total


def test_ratio_is_the_formula() -> None:
    rng = np.random.default_rng(3)
    tokens_D = rng.integers(0, 30, 40)
    difference_D = rng.normal(0.3, 1, 40) * tokens_D
    assert ratio(difference_D, tokens_D) == pytest.approx(
        written_out(list(zip(difference_D.tolist(), tokens_D.tolist(), strict=True)))
    )
    few, enough = (ratio(np.arange(number), np.arange(1, number + 1)) for number in (4, 5))
    assert np.isnan(few.error)
    assert enough.error > 0
    assert few.value == 6 / 10
    assert ratio(np.ones(1), np.array([4])).value == 0.25
    assert np.isnan(ratio(np.zeros(2), np.zeros(2, int)).value)


def test_ratios_error_is_what_a_repeated_draw_of_documents_shows() -> None:
    rng = np.random.default_rng(4)
    values, errors = [], []
    for _ in range(2000):
        tokens_D = rng.integers(1, 100, 60)
        found = ratio(rng.normal(0.2, 0.5, 60) * tokens_D, tokens_D)
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.05)


def test_change_is_paired_by_document() -> None:
    losses = make_losses()
    cell = losses.cell("a")
    found = change(cell, 1, Control([3, 4], 1.0, ""))
    here = [number for number in range(21) if losses.corpus_D[number] == 0]
    nats, tokens = losses.nats_SDX[:, here, 0], losses.scored_DX[here, 0].tolist()
    pairs = list(zip((nats[1] - nats[0]).tolist(), tokens, strict=True))
    assert found.change == pytest.approx(written_out(pairs))
    beyond = list(zip((nats[1] - (nats[3] + nats[4]) / 2).tolist(), tokens, strict=True))
    assert found.over_random == pytest.approx(written_out(beyond))
    assert found.draws == pytest.approx([(nats[n] - nats[0]).sum() / sum(tokens) for n in (3, 4)])
    assert found.random == pytest.approx(np.mean(found.draws))
    assert found.spread == pytest.approx(abs(found.draws[0] - found.draws[1]) / 2**0.5)
    assert found.over_random.value == pytest.approx(found.change.value - found.random)
    hits = losses.hits_SDX[:, here, 0]
    accuracy = list(zip((hits[1] - hits[0]).tolist(), tokens, strict=True))
    assert found.accuracy == pytest.approx(written_out(accuracy))


def test_the_classes_of_a_concept_are_all_tokens_once() -> None:
    losses = make_losses(concepts=("one", "two"))
    for concept in losses.concepts:
        cells = [losses.cell(None, concept, kind) for kind in CLASSES]
        for field in ("nats_SD", "hits_SD", "scored_D"):
            np.testing.assert_allclose(sum(getattr(cell, field) for cell in cells), getattr(losses.cell(), field))
        has_D = losses.has_concept_DK[:, losses.concepts.index(concept)].astype(bool)
        assert not cells[3].scored_D[has_D].any()
        assert not cells[2].scored_D[~has_D].any()
    by_corpus = [losses.cell(corpus).tokens for corpus in losses.corpora]
    assert sum(by_corpus) == losses.cell().tokens == losses.scored_DX[:, 0].sum()


def test_the_document_of_ablate() -> None:
    losses = make_losses()
    document = ablation_document(losses)
    for row, name in enumerate("ab"):
        for column, corpus in enumerate("ab"):
            found = change(losses.cell(corpus), 1 + row, losses.control("random", name))
            assert document["change"][row][column] == found.change.value
            assert document["standard_error"][row][column] == found.change.error
            assert document["random"][row][column] == found.random
            assert document["change_over_random"][row][column] == found.over_random.value
            assert document["in_standard_errors"][row][column] == pytest.approx(in_errors(found.over_random))
            assert [draw[row][column] for draw in document["random_draws"]] == found.draws
            candidates = change(losses.cell(corpus), 1 + row, losses.control("candidates", name))
            assert document["random_candidates"]["random"][row][column] == candidates.random
            z = found.judgement.z, candidates.judgement.z
            assert (document["z"][row][column], document["random_candidates"]["z"][row][column]) == z
            assert document["z_stricter"][row][column] == min(z)
            loss = document["baseline"][column]
            perplexity = np.exp(loss + found.change.value) - np.exp(loss)
            assert document["perplexity_change"][row][column] == pytest.approx(perplexity)
    assert document["perplexity"] == pytest.approx(np.exp(document["baseline"]))
    assert document["documents"] == [11, 9]
    assert (document["left_out"], document["quantile"]) == (1, 0.95)
    json.dumps(document, allow_nan=False)
    text = ablation_result(losses).text(full=True)
    assert "1 documents that chose the neurons are left out" in text
    assert "fewer than 10 documents" in text
    assert f"{document['change'][0][1]:+.4f} ± {document['standard_error'][0][1]:.4f}" in text
    assert f"{document['perplexity_change'][0][1]:+.4f}" in text
    assert "Change of the loss" in ablation_result(losses).text().splitlines()[-1]


def test_without_draws_there_is_no_control() -> None:
    losses = make_losses(draws=0)
    document = ablation_document(losses)
    assert document["random_candidates"] is None
    assert document["random"] == [[None, None], [None, None]]
    json.dumps(document, allow_nan=False)
    assert (document["z"], document["z_stricter"]) == ([[None, None], [None, None]],) * 2
    assert document["not_judged"] == [["no draws", "no draws"]] * 2
    assert document["verdict"]["a"]["costs_more"] is None
    assert "nothing random to compare with was drawn (--draws 0)" in ablation_result(losses).text()
    assert len(ablation_result(losses).figure().axes) == 2  # one map, one colour bar


def test_the_document_of_mask() -> None:
    losses = make_losses(concepts=("a", "b"), spared=True)
    document = mask_document(losses)
    effect = document["effects"]["a"]["concepts"]["b"]["match"]
    assert effect["change"] == change(losses.cell(None, "b", "match"), 1).change.value
    assert effect["random_spread"] is not None
    assert document["effects"]["a without polysemantic"]["corpora"]["a"]["change"] is not None
    apart = next(one for one in document["polysemantic"] if one["concept"] == "b")
    assert apart["neurons"] == 2
    assert apart["difference"] == pytest.approx(apart["masked"] - apart["spared"])
    assert document["baseline"]["concepts"]["a"]["match"]["tokens"] == losses.scored_DX[:, 1].sum()
    json.dumps(document, allow_nan=False)
    result = mask_result(losses)
    assert "What polysemantic neurons cost" in result.text().splitlines()[-1]
    assert result.frame("polysemantic")["difference"].tolist() == [
        one["difference"] for one in document["polysemantic"]
    ]
    own = [tuple(row[:2]) for row in result.tables[0].rows]
    assert own == [(name, f"{name} {kind}") for name in "ab" for kind in CLASSES]


def test_a_class_without_tokens_has_no_number() -> None:
    losses = make_losses(concepts=("a",))
    losses.scored_DX[:, 1:] = losses.has_concept_DK[:] = 0
    losses.nats_SDX[:, :, 1:] = losses.hits_SDX[:, :, 1:] = 0
    document = mask_document(losses)
    assert document["effects"]["b"]["concepts"]["a"]["match"]["change"] is None
    json.dumps(document, allow_nan=False)
    assert mask_result(losses).text(full=True)


@pytest.mark.parametrize("concepts", [(), ("a", "b"), ("x",)], ids=["no concepts", "the sets' own", "another"])
@pytest.mark.slow
def test_pictures(concepts: tuple[str, ...], tmp_path: Path) -> None:
    losses = make_losses(concepts=concepts)
    figures = [ablation_result(losses).figure(), mask_result(losses).figure()]
    for number, figure in enumerate(figures):
        save_figure(figure, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000
    maps = 2 if concepts else 1
    assert [len(figure.axes) for figure in figures] == [12, 2 * 3 * maps]
