"""The store: round trip, the commit, and what damage looks like."""

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neurotally.profiler import store
from neurotally.profiler.errors import InputError
from neurotally.profiler.neuron_sums import CorpusNeurons


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


SIZES = {"group": 3, "layer": 4, "neuron": 50, "trigger": 5, "document": 7, "sha256": 32, "unit": 6, "site": 9}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "store"
    store.create_store(path, {"model": None})
    store.write_arrays(path / ".run" / "c", filled(SIZES), {"tokens": 5})
    store.publish(path, "corpora/c++", path / ".run" / "c")
    return path


@pytest.fixture
def made(original: Path, tmp_path: Path) -> Path:
    """A store of one corpus, to be changed."""
    return shutil.copytree(original, tmp_path / "store")


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
        if name in ("document_name", "document_hash", "document_text"):  # have no value to spare
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
    store.publish(made, "corpora/go", made / ".run" / "go")
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
@pytest.mark.slow
def test_sums_survive_the_round_trip_through_zarr(
    tmp_path_factory: pytest.TempPathFactory, active: np.ndarray, sums: np.ndarray, values: np.ndarray
) -> None:
    neurons = CorpusNeurons.empty(3, 4, 2, 2)
    neurons.sums["active"][:] = active
    neurons.sums["activation_sum"][:] = sums
    neurons.triggers.value_FK[:] = -np.sort(-values.reshape(12, 2))
    neurons.triggers.value_FK[5, 1] = 0  # unused
    path = tmp_path_factory.mktemp("round") / "group"
    store.write_arrays(path, neurons.arrays(), {})
    again = CorpusNeurons.from_arrays(store.read_arrays(path)).arrays()
    for name, array in neurons.arrays().items():
        assert array.tobytes() == again[name].tobytes(), name


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def set_codec(name: str, **configuration: Any) -> Callable[[dict[str, Any]], Any]:
    def change(node: dict[str, Any]) -> None:
        node["codecs"] = [one for one in node["codecs"] if one["name"] != name]
        node["codecs"].insert(0, {"name": name, "configuration": configuration})

    return change


def set_key(key: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda node: node.update({key: value})


EDITS = {
    "active: shape": ("active", set_key("shape", [2, 4, 50]), "shape"),
    "active: data type": ("active", set_key("data_type", "int64"), "dtype"),
    "active: byte order": ("active", set_codec("bytes", endian="big"), "byte order 'big'"),
    "active: dimensions": ("active", set_key("dimension_names", ["group", "neuron", "layer"]), "dimensions"),
    "active: chunks": (
        "active", set_key("chunk_grid", {"name": "regular", "configuration": {"chunk_shape": [3, 4, 49]}}), "chunks",
    ),
    "active: chunk names": ("active", set_key("chunk_key_encoding", {"name": "v2"}), "chunk_keys"),
    "tokens: shape": ("tokens", set_key("shape", [2]), "shape"),
    "tokens: fill": ("tokens", set_key("fill_value", 0), "fill"),
    "trigger_value: data type": ("trigger_value", set_key("data_type", "int32"), "dtype"),
    "trigger_value: byte order": ("trigger_value", set_codec("bytes", endian="big"), "byte order"),
    "document_hash: shape": ("document_hash", set_key("shape", [7, 31]), "shape"),
    "document_hash: data type": ("document_hash", set_key("data_type", "int8"), "dtype"),
    "document_name: codec": ("document_name", set_codec("numcodecs.pickle"), "codec 'numcodecs.pickle'"),
    "document_text: transformer": ("document_text", set_key("storage_transformers", [{"name": "x"}]), "no Zarr v3"),
    "tokens: format": ("tokens", set_key("zarr_format", 2), "no Zarr v3 array"),
    "tokens: nonsense": ("tokens", set_key("shape", "abc"), "isn't the metadata of an array"),
    "tokens: no codecs": ("tokens", lambda node: node.pop("codecs"), "lacks 'codecs'"),
}  # fmt: skip


@pytest.mark.parametrize("case", EDITS)
def test_edited_metadata_is_refused(case: str, made: Path) -> None:
    name, change, named = EDITS[case]
    edit(made / "corpora" / "c++" / name / "zarr.json", change)
    with pytest.raises(InputError, match=named) as caught:
        store.read_corpus(made, "c++", [name])
    assert str(made / "corpora" / "c++" / name) in str(caught.value)


@pytest.mark.parametrize(
    "case",
    ["active: shape", "active: data type", "tokens: shape", "trigger_value: data type", "document_hash: shape"],
)
def test_metadata_edited_in_the_root_too_is_refused(case: str, made: Path) -> None:
    """By the schema, and by the other arrays of the group."""
    name, change, _ = EDITS[case]
    edit(made / "corpora" / "c++" / name / "zarr.json", change)
    edit(made / "zarr.json", lambda root: change(root["consolidated_metadata"]["metadata"][f"corpora/c++/{name}"]))
    with pytest.raises(InputError, match=r"a zarr.json was changed"):
        store.read_corpus(made, "c++", [name])


def test_shapes_are_those_of_the_model(made: Path) -> None:
    edit(made / "zarr.json", lambda root: root["attributes"].update(model={"num_layers": 5, "num_neurons": 50}))
    with pytest.raises(InputError, match="has 4 along 'layer', the model has 5"):
        store.read_corpus(made, "c++", ["tokens"])


def test_the_same_metadata_in_other_words_is_read(made: Path) -> None:
    """As other versions of zarr may spell it."""

    def respell(root: dict[str, Any]) -> None:
        for name in ("active", "tokens", "coefficient_max"):
            node = root["consolidated_metadata"]["metadata"][f"corpora/c++/{name}"]
            node.pop("storage_transformers", None)
            node["data_type"] = {"name": node["data_type"], "configuration": {}}
            node["codecs"] = ["crc32c" if one["name"] == "crc32c" else one for one in node["codecs"]]
            node["attributes"] = {"note": "1"}

    edit(made / "zarr.json", respell)
    arrays = store.read_corpus(made, "c++")
    for name, expected in filled(SIZES).items():
        assert (arrays[name] == expected).all(), name


def test_a_copy_that_xarray_made_is_read(made: Path, tmp_path: Path) -> None:
    """With the codecs of its own choice; its groups are listed once the root has the schema's number and is written."""
    import zarr

    with xarray.open_zarr(made, group="corpora/c++") as dataset:
        kept = dataset[["tokens", "active"]].load().drop_encoding()
        kept.to_zarr(tmp_path / "copy", group="corpora/c++", zarr_format=3, consolidated=False)
    zarr.open_group(str(tmp_path / "copy"), mode="r+").attrs["schema"] = 1
    zarr.consolidate_metadata(str(tmp_path / "copy"))
    arrays = store.read_corpus(tmp_path / "copy", "c++", ["tokens", "active"])
    assert (arrays["active"] == filled(SIZES)["active"]).all()


class Hostile:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_group_of_zarr_v2_runs_nothing(made: Path, tmp_path: Path) -> None:
    """An array of objects in the old format, whose chunks are pickles, beside or in place of ours."""
    array, ran = made / "corpora" / "c++" / "document_name", tmp_path / "ran"
    metadata = {
        "zarr_format": 2, "shape": [7], "chunks": [7], "dtype": "|O", "compressor": None, "fill_value": None,
        "order": "C", "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (array / ".zarray").write_text(json.dumps(metadata))
    (array / "0").write_bytes(pickle.dumps(Hostile(ran)))
    names = store.read_corpus(made, "c++", ["document_name"])["document_name"].tolist()
    assert names == [f"é{number}" for number in range(7)]
    (array / "zarr.json").unlink()
    with pytest.raises(InputError, match=r"document_name.zarr.json is gone"):
        store.read_corpus(made, "c++", ["document_name"])
    assert not ran.exists()


@pytest.mark.parametrize("name", ["active", "document_text"])
def test_a_damaged_chunk_is_told_with_its_array(name: str, made: Path) -> None:
    (chunk,) = (path for path in (made / "corpora" / "c++" / name / "c").rglob("*") if path.is_file())
    content = bytearray(chunk.read_bytes())
    content[-9] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(InputError, match=rf"{name} can't be read: .*checksum"):
        store.read_corpus(made, "c++")


@pytest.mark.parametrize("file", ["zarr.json", ".run/lock"])
def test_a_pipe_in_a_stores_place_is_not_waited_for(file: str, tmp_path: Path) -> None:
    from neurotally.jobs.status import status

    store.create_store(tmp_path, {})
    (tmp_path / ".run").mkdir()
    (tmp_path / file).unlink(missing_ok=True)
    os.mkfifo(tmp_path / file)
    if file == "zarr.json":
        with pytest.raises(InputError, match="is not the root of a neurotally store"):
            status(tmp_path)
    else:
        assert status(tmp_path)["state"] == "complete"


@pytest.mark.parametrize(("name", "value"), [("tokens", "many"), ("units", None), ("skipped", 5), ("skipped", [1])])
def test_an_edited_attribute_of_a_corpus_is_refused_by_name(name: str, value: object, tmp_path: Path) -> None:
    store.create_store(tmp_path / "s", {})
    arrays = {"tokens": np.array([1], np.uint64), "active": np.zeros((1, 2, 3), np.uint64)}
    store.write_arrays(tmp_path / "s" / ".run" / "x", arrays, {"tokens": 1, "units": 1, "skipped": {}})
    store.publish(tmp_path / "s", "corpora/c", tmp_path / "s" / ".run" / "x")
    assert store.corpus_attributes(tmp_path / "s", "c")["tokens"] == 1
    root = json.loads((tmp_path / "s" / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["corpora/c"]["attributes"][name] = value
    (tmp_path / "s" / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(InputError, match=re.escape(f"corpus 'c' has {name} {value!r}")):
        store.corpus_attributes(tmp_path / "s", "c")


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("sizes", [[7], [1, 2, 0, 4], [3, 3, 1], [0], []], ids=str)
@pytest.mark.parametrize("chunk_bytes", [2**20, 4 * 5 * 3, 4 * 5], ids=["one chunk", "some rows", "a row"])
@pytest.mark.slow
def test_blocks_of_any_size_make_the_array(
    axis: int, sizes: list[int], chunk_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_CHUNK_BYTES", chunk_bytes)
    shape = (sum(sizes), 5) if axis == 0 else (2, sum(sizes), 5)
    schema = {"x": store.ArraySpec("float32", ("a", "b", "c")[: len(shape)], np.nan)}
    whole = np.random.default_rng(0).random(shape, np.float32)
    blocks = np.split(whole, np.cumsum(sizes)[:-1].tolist(), axis) if sizes else []
    store.write_arrays(tmp_path / "whole", {"x": whole}, {}, schema)
    store.write_arrays(tmp_path / "blocks", {"x": store.Blocks(shape, axis, iter(blocks))}, {}, schema)
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "whole", tmp_path / "blocks")
    ]
    assert files[0] == files[1]
    assert np.array_equal(store.read_arrays(tmp_path / "blocks", None, schema)["x"], whole)
