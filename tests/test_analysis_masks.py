"""Mask files, read strictly, and random neurons to compare with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurotally.analysis.languages.lape import layer_counts
from neurotally.analysis.masking.mask_sets import mask_sets
from neurotally.analysis.masking.masks import read_mask, read_origin
from neurotally.profiler.errors import InputError
from neurotally.profiler.networks import site_numbers

GOOD = {"model": {"id": "org/model", "fingerprint": "f1"}, "specific": {"c": [[3, 0], [0, 99]], "html": []}}


def written(path: Path, document: Any) -> Path:
    file = path / "mask.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return file


def read(path: Path, document: Any, fingerprint: str | None = "f1") -> Any:
    return read_mask(written(path, document), fingerprint, num_layers=4, num_neurons=100)


def test_a_mask(tmp_path: Path) -> None:
    mask = read(tmp_path, GOOD)
    assert mask["c"].tolist() == [[0, 99], [3, 0]]
    assert mask["html"].shape == (0, 2)


@pytest.mark.parametrize("model", [None, {"id": "org/model"}, {}])
def test_a_mask_that_names_no_fingerprint_is_checked_by_shape_only(tmp_path: Path, model: Any) -> None:
    assert read(tmp_path, GOOD | {"model": model})["c"].tolist() == [[0, 99], [3, 0]]
    with pytest.raises(InputError, match="neuron 100 of layer 0"):
        read(tmp_path, {"model": model, "specific": {"c": [[0, 100]]}})


def test_a_mask_for_a_model_of_unknown_fingerprint(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD, fingerprint=None)["c"].tolist() == [[0, 99], [3, 0]]


def test_a_neuron_listed_twice_counts_once(tmp_path: Path) -> None:
    assert len(read(tmp_path, {"model": None, "specific": {"c": [[1, 2], [1, 2]]}})["c"]) == 1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        pytest.param('{"model": {"id"', "isn't JSON, or was cut off", id="cut off"),
        pytest.param("", "isn't JSON", id="empty"),
        pytest.param("[" * 100_000, "isn't JSON", id="too deep"),
        pytest.param("[1, 2]", "is no mask: it is no object", id="a list"),
        pytest.param({"model": None}, "lacks specific", id="no specific"),
        pytest.param({}, "lacks model and specific", id="nothing"),
        pytest.param({"model": "llama", "specific": {}}, "must be objects", id="model is a string"),
        pytest.param({"model": None, "specific": [[0, 1]]}, "must be objects", id="specific is a list"),
        pytest.param(GOOD | {"model": {"id": "x", "fingerprint": "f2"}}, "of another model: 'x'.*'f2'", id="other"),
        pytest.param(GOOD | {"specific": {"c": [[4, 0]]}}, "neuron 0 of layer 4, but .* 4 layers of 100", id="layer"),
        pytest.param(GOOD | {"specific": {"c": [[0, 100]]}}, "'c' has neuron 100 of layer 0", id="neuron"),
        pytest.param(GOOD | {"specific": {"c": [[-1, 0]]}}, r"from 0, got \[-1, 0\]", id="negative"),
        pytest.param(GOOD | {"specific": {"c": [[0, 1.0]]}}, r"integers from 0, got \[0, 1.0\]", id="float"),
        pytest.param(GOOD | {"specific": {"c": [[True, 1]]}}, r"got \[True, 1\]", id="bool"),
        pytest.param(GOOD | {"specific": {"c": [[0, 10**30]]}}, "got", id="beyond int64"),
        pytest.param(GOOD | {"specific": {"c": [[0, 1, 2]]}}, r"got \[0, 1, 2\]", id="three numbers"),
        pytest.param(GOOD | {"specific": {"c": [5]}}, "got 5", id="no pair"),
        pytest.param(GOOD | {"specific": {"c": {"0": 1}}}, "must be a list", id="an object"),
        pytest.param(GOOD | {"specific": {"c": ["x\n" * 500]}}, "got 'x", id="a long string"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_line(tmp_path: Path, document: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path, document)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "mask.json") in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read: No such file"):
        read_mask(tmp_path / "none.json", None, 1, 1)
    with pytest.raises(InputError, match="can't be read: Is a directory"):
        read_mask(tmp_path, None, 1, 1)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="isn't JSON"):
        read_mask(tmp_path / "binary.json", None, 1, 1)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.tuples(st.integers(0, 3), st.integers(0, 11)), max_size=24), st.integers(0, 2**32))
def test_random_neurons_match_by_layer_and_are_others(pairs: set[tuple[int, int]], seed: int) -> None:
    neurons_n2 = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    made = mask_sets({"x": neurons_n2}, site_numbers((), 4, 30), 1, seed=seed)
    if layer_counts(neurons_n2, 4).max() > 6:
        assert "others in layer" in made.not_drawn["random"]["x"]
        return
    drawn_n2 = made.sets[2].neurons_n2
    assert drawn_n2.tolist() == sorted(drawn_n2.tolist())
    assert (layer_counts(drawn_n2, 4) == layer_counts(neurons_n2, 4)).all()
    assert len({tuple(pair) for pair in drawn_n2.tolist()} | pairs) == 2 * len(pairs)
    assert (mask_sets({"x": neurons_n2}, site_numbers((), 4, 30), 1, seed=seed).sets[2].neurons_n2 == drawn_n2).all()


@pytest.mark.parametrize("specific", [{}, {"python": [], "java": []}])
def test_a_mask_without_a_neuron_is_refused(specific: dict[str, list], tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps({"model": None, "specific": specific}))
    with pytest.raises(InputError, match="has no neuron in any of its sets"):
        read_mask(tmp_path / "m.json", None, 2, 3)


def test_the_origin_of_a_mask_file(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"trigger_documents": {"py": ["00" * 32], "go": ["ff" * 32]}, "polysemantic": []}))
    origin = read_origin(path)
    assert origin.trigger_documents == {bytes(32), b"\xff" * 32}
    assert origin.has_polysemantic
    assert origin.threshold is None
    path.write_text("{}")
    assert read_origin(path).trigger_documents is None
    path.write_text(json.dumps({"bar": 0.25}))
    assert read_origin(path).threshold == 0.25
    path.write_text(json.dumps({"trigger_documents": None}))
    assert read_origin(path).trigger_documents is None
    for wrong in ({"trigger_documents": {"py": ["nonsense"]}}, {"trigger_names": {"py": [["a.py"]]}},
                  {"trigger_names": None}, {"trigger_files": None}, {"trigger_files": ["00"]}):  # fmt: skip
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="trigger_documents"):
            read_origin(path)
