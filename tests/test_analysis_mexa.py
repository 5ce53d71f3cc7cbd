"""MEXA against a double loop over pairs, on vectors made to be close calls, and its document."""

import json

import numpy as np
import pytest

from neurotally.analysis.layers.mexa import TextEmbeddings, cosines, mean_errors, mexa, pair_errors
from neurotally.analysis.layers.mexa_study import mexa_document, mexa_result
from neurotally.profiler.errors import InputError


def double_loop(vector_ND: np.ndarray, text_Cn: np.ndarray) -> np.ndarray:
    """bool [C, C, n], from the formula, a pair at a time."""
    num_languages, num_ids = text_Cn.shape
    aligned_CCn = np.zeros((num_languages, num_languages, num_ids), bool)

    def cosine(one: int, other: int) -> float:
        u, v = vector_ND[one].astype(np.float64), vector_ND[other].astype(np.float64)
        return float(u @ v / np.sqrt((u @ u) * (v @ v)))

    for p in range(num_languages):
        for q in range(num_languages):
            for i in range(num_ids):
                own = cosine(text_Cn[p, i], text_Cn[q, i])
                rest = [cosine(text_Cn[p, i], text_Cn[q, j]) for j in range(num_ids) if j != i]
                rest += [cosine(text_Cn[p, j], text_Cn[q, i]) for j in range(num_ids) if j != i]
                aligned_CCn[p, q, i] = own - max(rest) >= 1e-12
    return aligned_CCn


def parallel_vectors(common: float, noise: float, width: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """(vectors [N, D], texts [C, n]) of 3 languages x 20 ids with duplicates within and across languages."""
    rng = np.random.default_rng(0)
    own_nD, all_D = rng.standard_normal((20, width)), rng.standard_normal(width)
    vector_ND = np.concatenate([own_nD + noise * rng.standard_normal((20, width)) for _ in range(3)]) + common * all_D
    text_Cn = np.arange(60).reshape(3, 20).copy()
    text_Cn[1, 4:9] = text_Cn[0, 4:9]  # identical across languages
    text_Cn[0, 2] = text_Cn[0, 7]  # a duplicate in one language
    return (vector_ND * rng.uniform(0.1, 10, (60, 1))).astype(np.float32), text_Cn


CASES = {
    "far apart": (0, 1), "hard to tell": (0, 4), "nearly parallel": (30, 2), "only float64 can tell": (3000, 2),
    "nearly equal": (30, 1e-4),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("width", [1, 7, 300])
@pytest.mark.slow
def test_equals_a_double_loop(case: str, width: int) -> None:
    vector_ND, text_Cn = parallel_vectors(*CASES[case], width)
    found = mexa(vector_ND[None], text_Cn)
    np.testing.assert_array_equal(found[0], double_loop(vector_ND, text_Cn))


def test_float32_alone_would_be_wrong() -> None:
    """The cases above do need float64."""
    vector_ND, text_Cn = parallel_vectors(*CASES["only float64 can tell"])
    unit_ND = (vector_ND / np.linalg.norm(vector_ND.astype(float), axis=1, keepdims=True)).astype(np.float32)
    cosine_nn = unit_ND[text_Cn[0]] @ unit_ND[text_Cn[2]].T
    own_n = cosine_nn.diagonal().copy()
    np.fill_diagonal(cosine_nn, -1)
    in_float32_n = own_n > np.maximum(cosine_nn.max(axis=0), cosine_nn.max(axis=1))
    assert (in_float32_n != mexa(vector_ND[None], text_Cn)[0, 0, 2]).any()


def test_duplicates_tie() -> None:
    vector_ND, text_Cn = np.eye(4, dtype=np.float32), np.array([[0, 1, 2, 3], [0, 1, 1, 3]])
    aligned_LCCn = mexa(vector_ND[None], text_Cn)
    assert aligned_LCCn[0].mean(axis=2).tolist() == [[1, 0.5], [0.5, 0.5]]
    twice = np.concatenate([vector_ND, vector_ND[:1] * 3])  # another text, the same direction
    assert mexa(twice[None], np.array([[0, 1, 2, 4]]))[0, 0, 0].mean() == 0.5


@pytest.mark.parametrize(("gap", "aligned"), [(1e-11, True), (1e-13, False)])
def test_a_difference_under_the_tie_is_none(gap: float, aligned: bool) -> None:
    """c_00 = 1 and c_01 = cos(angle), which is gap less."""
    angle = np.sqrt(2 * gap)
    vector_ND = np.array([[1, 0], [1, angle]])
    assert mexa(vector_ND[None], np.array([[0, 1]]))[0, 0, 0].tolist() == [aligned] * 2


def test_lengths_do_not_matter_and_zero_vectors_have_cosine_zero() -> None:
    vector_ND, text_Cn = parallel_vectors(0, 3)
    by_length = 2.0 ** np.arange(-30, 30)[:, None]
    np.testing.assert_array_equal(mexa((vector_ND * by_length)[None], text_Cn), mexa(vector_ND[None], text_Cn))
    vector_ND[0] = 0
    found = mexa(vector_ND[None], text_Cn)
    assert not found[0, 0, :, 0].any()
    assert found[0, 0, 0, 1]


def test_one_id_is_too_few() -> None:
    with pytest.raises(InputError, match="expected 2 ids or more, found 1"):
        mexa(np.ones((1, 2, 3)), np.array([[0], [1]]))


def embeddings() -> TextEmbeddings:
    vector_ND, text_Cn = parallel_vectors(0, 3)
    attributes = {"bos": "counted", "left_out": [{"id": "z", "language": "C", "reason": "too long"}], "missing": []}
    return TextEmbeddings(
        ("C", "Java", "$x$"), tuple(map(str, range(20))), np.stack([vector_ND, vector_ND[::-1]]), text_Cn, "weighted",
        attributes, {"id": "m", "fingerprint": "f"},
    )  # fmt: skip


def test_the_document() -> None:
    of = embeddings()
    document = json.loads(json.dumps(mexa_document(of, ["$x$"]), allow_nan=False))
    expected = np.stack([double_loop(vector_ND, of.text_Cn) for vector_ND in of.vector_LND])
    for p, pivot in enumerate(of.languages):
        for q, name in enumerate(of.languages):
            score_L = expected[:, p, q].mean(axis=1)
            assert document["scores"][pivot][name] == score_L.tolist()
            assert document["mean_over_layers"][pivot][name] == score_L.mean()
            assert document["max_over_layers"][pivot][name] == score_L.max()
            same_n = of.text_Cn[p] == of.text_Cn[q]
            assert document["identical"][pivot][name] == same_n.mean()
            different = [None, None] if same_n.all() else expected[:, p, q, ~same_n].mean(axis=1).tolist()
            assert document["scores_of_different"][pivot][name] == different
    scores = document["scores"]
    assert document["model"] == {"id": "m", "fingerprint": "f"}
    assert document["with_self"]["C"] == np.mean([scores["C"]["C"], scores["C"]["Java"]], axis=0).tolist()
    assert document["without_self"]["C"] == scores["C"]["Java"]
    assert document["without_self"]["$x$"] == np.mean([scores["$x$"]["C"], scores["$x$"]["Java"]], axis=0).tolist()
    assert document["identical"]["C"]["Java"] == 0.25
    text = mexa_result(of, ["$x$"]).text(full=True)
    for said in (
        "20 ids",
        "BOS: counted",
        "left out of each: $x$",
        "over the ids whose two texts differ",
        "C-Java",
        "1 ids left out",
        "'z' of 'C': too long",
    ):
        assert said in text, said
    with pytest.raises(InputError, match="no language 'Perl' among"):
        mexa_document(of, ["Perl"])


def test_the_pictures() -> None:
    of = embeddings()
    result = mexa_result(of).of("org/model", ["java"])
    document = result.document
    panels = result.figure().axes[:3]
    assert [len(panel.lines) for panel in panels] == [3] * 3
    for panel, key in zip(panels, ("paper_mean", "without_self", "without_self_of_different"), strict=True):
        assert panel.lines[1].get_ydata().tolist() == document[key]["Java"]
        value, error = document[key]["Java"][0], document["errors"][key]["Java"][0]
        interval = panel.collections[1].get_paths()[0].vertices
        assert interval[:, 1].min() <= value - error
        assert interval[:, 1].max() >= value + error
    assert panels[0].get_title("left") == "paper's mean"
    own = result.figure("pivots").axes[0]
    assert own.lines[0].get_ydata().tolist() == document["scores"]["C"]["Java"]
    assert own.lines[2].get_ydata().tolist() == document["scores"]["C"]["C"]
    assert "the pivot itself" in [text.get_text() for text in result.figure("pivots").legends[0].get_texts()]
    aligned, different, identical = (axes.images[0].get_array() for axes in result.figure("matrix").axes[:3])
    assert aligned[0, 1] == document["mean_over_layers"]["C"]["Java"]
    assert different[0, 1] == document["mean_over_layers_of_different"]["C"]["Java"]
    assert identical[0, 1] == 0.25
    (panel,) = result.figure("cosines").axes
    assert panel.lines[4].get_ydata().tolist() == document["cosines"]["other"]["Java"]


def test_errors_are_a_jackknife_over_ids() -> None:
    """Written out: each id left out of every language in turn; of one pair that is the usual error of a mean."""
    rng = np.random.default_rng(3)
    share_LCCn = rng.random((2, 3, 3, 12)) < 0.6
    counted_CCn = rng.random((3, 3, 12)) < 0.8
    member_CC = np.array([[False, True, True], [True, False, False], [False, False, False]])
    found_LC = mean_errors(share_LCCn, counted_CCn, member_CC)
    for layer in range(2):
        for pivot, languages in ((0, (1, 2)), (1, (0,))):
            without = []
            for left_out in range(12):
                means = []
                for language in languages:
                    used = [i for i in range(12) if i != left_out and counted_CCn[pivot, language, i]]
                    means.append(sum(share_LCCn[layer, pivot, language, i] for i in used) / len(used))
                without.append(sum(means) / len(means))
            centre = sum(without) / 12
            error = (11 / 12 * sum((value - centre) ** 2 for value in without)) ** 0.5
            assert found_LC[layer, pivot] == pytest.approx(error, rel=1e-12)
    assert np.isnan(found_LC[:, 2]).all()
    values = share_LCCn[0, 0, 1][counted_CCn[0, 1]]
    expected = np.std(values, ddof=1) / np.sqrt(len(values))
    assert pair_errors(share_LCCn[0], counted_CCn)[0, 1] == pytest.approx(expected, rel=1e-12)
    counted_CCn[0, 1, 1:] = False
    assert np.isnan(pair_errors(share_LCCn[0], counted_CCn)[0, 1])


def test_cosines_of_parallel_and_of_other_texts() -> None:
    vector_ND, text_Cn = parallel_vectors(30, 2)
    parallel_LCC, other_LCC = cosines(vector_ND[None], text_Cn)
    for p, q in np.ndindex(3, 3):
        own, rest = [], []
        for i, j in np.ndindex(20, 20):
            u, v = (vector_ND[text].astype(np.float64) for text in (text_Cn[p, i], text_Cn[q, j]))
            cosine = u @ v / np.sqrt((u @ u) * (v @ v))
            if i != j:
                rest.append(cosine)
            elif text_Cn[p, i] != text_Cn[q, j]:
                own.append(cosine)
        assert other_LCC[0, p, q] == pytest.approx(np.mean(rest), rel=1e-10)
        expected = np.mean(own) if own else np.nan
        assert parallel_LCC[0, p, q] == pytest.approx(expected, rel=1e-10, nan_ok=True)


def test_the_papers_mean_has_the_pivot_and_no_english() -> None:
    vector_ND, text_Cn = parallel_vectors(0, 3)
    attributes = {"bos": "counted", "left_out": [], "missing": []}
    of = TextEmbeddings(
        ("C", "Java", "eng_Latn"), tuple(map(str, range(20))), vector_ND[None], text_Cn, "weighted", attributes,
        {"id": "m", "fingerprint": "f"},
    )  # fmt: skip
    document = mexa_document(of)
    aligned_CCn = double_loop(vector_ND, text_Cn)
    score_CC = aligned_CCn.mean(axis=2)
    assert document["english"] == ["eng_Latn"]
    assert document["paper_mean"] == {"C": [(score_CC[0, 0] + score_CC[0, 1]) / 2],
                                      "Java": [(score_CC[1, 0] + score_CC[1, 1]) / 2]}  # fmt: skip
    assert document["with_self"]["C"] == [pytest.approx(score_CC[0].mean(), rel=1e-15)]
    of_c = [np.mean([hit for i, hit in enumerate(aligned_CCn[0, q]) if text_Cn[0, i] != text_Cn[q, i]]) for q in (1, 2)]
    assert document["without_self_of_different"]["C"] == [pytest.approx(np.mean(of_c), rel=1e-15)]
    result = mexa_result(of)
    assert "without English (eng_Latn)" in result.text()
    assert [len(panel.lines) for panel in result.figure().axes[:3]] == [2, 3, 3]
