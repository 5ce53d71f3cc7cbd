"""The store: round trip, the commit, and what damage looks like."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.neurons import CorpusNeurons


def filled(shape_by_dimension: dict[str, int]) -> store.Arrays:
    rng = np.random.default_rng(0)
    arrays = {}
    for name, spec in store.SCHEMA.items():
        shape = tuple(shape_by_dimension[dimension] for dimension in spec.dimensions)
        if spec.dtype == "string":
            arrays[name] = np.array([f"é{number}" for number in range(shape[0])], dtype=object)
        elif spec.dtype.startswith("float"):
            arrays[name] = rng.normal(size=shape).astype(spec.dtype)
        else:
            arrays[name] = rng.integers(0, 200, shape).astype(spec.dtype)
    return arrays


SIZES = {"group": 3, "layer": 4, "neuron": 50, "trigger": 5, "document": 7, "sha256": 32, "unit": 6}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    store.create_store(path, {"model": None})
    store.write_arrays(path / ".run" / "c", filled(SIZES), {"tokens": 5})
    store.publish_corpus(path, "c++", path / ".run" / "c")
    return path


def test_round_trip(made: Path) -> None:
    arrays = store.read_corpus(made, "c++")
    for name, expected in filled(SIZES).items():
        assert (arrays[name] == expected).all(), name
    assert store.corpus_attributes(made, "c++") == {"tokens": 5}
    assert store.committed_corpora(made) == ["c++"]


def test_xarray_opens_it_without_code_of_ours(made: Path) -> None:
    with xarray.open_zarr(made, group="corpora/c++") as dataset:
        assert dataset.active.dims == ("group", "layer", "neuron")
        assert (dataset.active.values == filled(SIZES)["active"]).all()
        assert dataset.attrs == {"tokens": 5}


def test_chunks_are_all_written_and_fill_values_no_results(made: Path) -> None:
    import zarr

    largest = {"uint64": 2**64 - 1, "uint32": 2**32 - 1, "uint16": 2**16 - 1, "uint8": 2**8 - 1}
    group = zarr.open_group(str(made / "corpora" / "c++"), mode="r")
    for name, array in group.arrays():
        codecs = [type(codec).__name__ for codec in array.compressors]
        assert codecs == ["BloscCodec", "Crc32cCodec"], name
        assert array.nchunks_initialized == array.nchunks, name
        if name in ("document_name", "document_hash"):  # have no value to spare
            continue
        fill = array.fill_value
        is_spare = np.isnan(fill) if array.dtype.kind == "f" else fill == largest[str(array.dtype)]
        assert is_spare, name


def test_a_lost_chunk_is_noticed(made: Path) -> None:
    (made / "corpora" / "c++" / "active" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(InputError, match="0 of 1 chunks"):
        store.read_corpus(made, "c++", ["active"])


@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_cut_off_chunk_is_noticed(made: Path, keep: int) -> None:
    chunk = made / "corpora" / "c++" / "active" / "c" / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:keep])
    with pytest.raises(InputError, match="can't be read"):
        store.read_corpus(made, "c++", ["active"])


def test_a_flipped_bit_is_noticed(made: Path) -> None:
    chunk = made / "corpora" / "c++" / "document_name" / "c" / "0"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 4
    chunk.write_bytes(bytes(content))
    with pytest.raises(InputError):
        store.read_corpus(made, "c++", ["document_name"])


def test_what_the_root_does_not_list_is_not_there(made: Path) -> None:
    """A run that died between the rename and the commit."""
    shutil.copytree(made / "corpora" / "c++", made / "corpora" / "go")
    assert store.committed_corpora(made) == ["c++"]
    store.write_arrays(made / ".run" / "go", filled(SIZES), {"tokens": 6})
    store.publish_corpus(made, "go", made / ".run" / "go")
    assert store.committed_corpora(made) == ["c++", "go"]
    assert store.corpus_attributes(made, "go") == {"tokens": 6}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"attributes": {}}', '{"attributes": {"schema": 99}}'])
def test_a_root_that_is_none_of_ours(made: Path, content: str) -> None:
    (made / "zarr.json").write_text(content)
    with pytest.raises(InputError):
        store.committed_corpora(made)


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no store"):
        store.committed_corpora(tmp_path / "nothing")


FINITE = {"allow_nan": False, "allow_infinity": False}


@settings(max_examples=10, deadline=None)
@given(
    active=hnp.arrays(np.uint64, (2, 3, 4), elements=st.integers(0, 2**63)),
    sums=hnp.arrays(np.float64, (3, 4), elements=st.floats(**FINITE)),
    values=hnp.arrays(np.float32, (3, 4, 2), elements=st.floats(2.0**-20, 2.0**40, width=32)),
)
def test_sums_survive_the_round_trip_through_zarr(
    tmp_path_factory: pytest.TempPathFactory, active: np.ndarray, sums: np.ndarray, values: np.ndarray
) -> None:
    neurons = CorpusNeurons(3, 4, 2, 2)
    neurons.active_GLF = active
    neurons.activation_sum_LF = sums
    neurons.triggers.value_NK[:] = -np.sort(-values.reshape(12, 2))
    neurons.triggers.value_NK[5, 1] = 0  # unused
    path = tmp_path_factory.mktemp("round") / "group"
    store.write_arrays(path, neurons.arrays(), {})
    again = CorpusNeurons.from_arrays(store.read_arrays(path)).arrays()
    for name, array in neurons.arrays().items():
        assert array.tobytes() == again[name].tobytes(), name
