"""Stores and texts in a bucket: what lies there is what would lie in a folder, whatever becomes of the connection."""

import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import HfFileSystem

pytest.importorskip("obstore")
pytest.importorskip("moto")

from object_store import BUCKET, CuttingProxy, client, objects, point_at, put_folder, refusing, serving
from stores import CORPORA, OPTIONS, SETTINGS, launch, make_store

from neurotally.analysis import open_store
from neurotally.jobs import lease, profile
from neurotally.jobs.corpora import find_corpora
from neurotally.jobs.lease import leased
from neurotally.jobs.progress import Progress
from neurotally.jobs.reducers.fold import Fold
from neurotally.jobs.status import status
from neurotally.jobs.store_writer import is_being_written, writer_lock
from neurotally.profiler import buckets, store, store_root
from neurotally.profiler.buckets import location, write_version
from neurotally.profiler.corpus.documents import Source, Status
from neurotally.profiler.corpus.sources import list_documents, parse_source, read_documents
from neurotally.profiler.errors import InputError

URL = f"{BUCKET}/study"
ODD_FILES = {
    "1/a.py": b"a = 1\nb = 2\nc = 3\n",
    "1/b1.py": b"",
    "2/c c.py": "ü = 'ö'\r\nx\r\n".encode(),
    "2/n.py": b"\xff\xfe",
    "d%20+&.py": b"d\n",
    ".hidden/e.py": b"e\n",
    "2/.f.py": b"f\n",
    "3/same1.py": b"a = 1\nb = 2\nc = 3\n",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The endpoint of a server; working state of stores in its bucket goes to a folder of the test's own."""
    point_at(monkeypatch, endpoint, tmp_path / "home")
    return endpoint


@pytest.fixture(scope="module")
def local(model_folder: Path, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the same run leaves in a folder."""
    return make_store(model_folder, tmp_path_factory.mktemp("local") / "store", corpora)


def same_arrays(ours: Path, theirs: Path) -> None:
    for name in CORPORA:
        one, other = (store.read_corpus(path, name) for path in (ours, theirs))
        assert one.keys() == other.keys()
        for array in one:
            np.testing.assert_array_equal(one[array], other[array], err_msg=f"{name}/{array}")


def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests that fail, so that it is told at once."""
    monkeypatch.setattr(buckets, "_RETRIES", {"max_retries": 1})
    monkeypatch.setattr(buckets, "_WRITE_FOR_S", 0.0)
    buckets._make_client.cache_clear()


def chunks(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if "/c/" in name}


@pytest.mark.slow
def test_a_run_to_a_bucket_leaves_the_objects_that_one_to_a_folder_leaves_as_files(
    bucket: str, model_folder: Path, corpora: Path, local: Path, tmp_path: Path
) -> None:
    put_folder(bucket, corpora, "text")
    path = make_store(model_folder, location(f"{URL}/a"), f"{BUCKET}/text")
    same_arrays(path, local)
    there = objects(bucket, "study/a")
    files = {file.relative_to(local).as_posix(): file.read_bytes() for file in local.rglob("*") if file.is_file()}
    assert chunks(there) == chunks(files)
    assert there.keys() == {name for name in files if not name.startswith(".run/")}
    assert sorted(file.name for file in (tmp_path / "home").rglob("*") if file.is_file()) == [
        "lock",
        "store.json",
        "writer.json",
    ]
    ours, theirs = (json.loads(files["zarr.json"]) for files in (there, files))
    assert ours["attributes"]["config"] == theirs["attributes"]["config"]
    assert ours["consolidated_metadata"]["metadata"].keys() == theirs["consolidated_metadata"]["metadata"].keys()


@pytest.mark.slow
def test_analyses_read_it(bucket: str, model_folder: Path, corpora: Path, local: Path, run: Any) -> None:
    path = make_store(model_folder, location(f"{URL}/b"), corpora)
    ours, theirs = open_store(f"{URL}/b"), open_store(local)
    assert ours.corpora == theirs.corpora
    assert ours.lape(select="top", per_corpus=3).document == theirs.lape(select="top", per_corpus=3).document
    assert ours.to_xarray("python").equals(theirs.to_xarray("python"))
    for command in ("lape", "triggers 1 5", "status", "patterns"):
        name, *rest = command.split()
        results = [run(name, where, *rest, "--json") for where in (path, local)]
        assert results[0][0] == 0, results[0]
        assert json.loads(results[0][1]) == json.loads(results[1][1])


@pytest.mark.parametrize("selector", [None, "*1.py", "1/*"])
def test_files_in_a_bucket_are_the_documents_that_a_folder_holds(
    bucket: str, corpora: Path, tmp_path: Path, selector: str | None
) -> None:
    folder = tmp_path / "odd"
    for name, content in ODD_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    put_folder(bucket, folder, "odd")
    text = f"::{selector}" if selector else ""
    ours, theirs = parse_source(f"{BUCKET}/odd{text}"), parse_source(f"{folder}{text}")
    assert_same_documents(ours, theirs)


def test_windows_of_lines_are_cut_from_files_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    for name, content in ODD_FILES.items():
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(content)
    put_folder(bucket, tmp_path / "odd", "windows")
    ours, theirs = parse_source(f"{BUCKET}/windows"), parse_source(str(tmp_path / "odd"))
    assert_same_documents(replace(ours, window_lines=2), replace(theirs, window_lines=2))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_records_in_a_bucket_are_those_of_the_file(bucket: str, tmp_path: Path, suffix: str) -> None:
    texts = [f"def f{number}():\n    return {number}\n" * (number % 7) for number in range(60)]
    file = tmp_path / "records" / f"r.{suffix}"
    file.parent.mkdir()
    if suffix == "jsonl":
        file.write_text("".join(json.dumps({"code": text}) + "\n" for text in texts) + "no JSON\n")
    else:
        pq.write_table(pa.table({"code": texts}), file, row_group_size=7)
    put_folder(bucket, file.parent, "records")
    assert_same_documents(parse_source(f"{BUCKET}/records/r.{suffix}"), parse_source(str(file)))


def assert_same_documents(ours: Source, theirs: Source) -> None:
    one, other = list_documents(ours), list_documents(theirs)
    assert one.names == other.names
    assert one.sizes.tolist() == other.sizes.tolist()
    for first in (0, len(one.names) // 2):
        arguments = (one.names[first:], one.sizes[first:].tolist(), int(one.sizes[:first].sum()))
        assert list(read_documents(ours, *arguments)) == list(read_documents(theirs, *arguments))


def test_a_file_that_changes_or_goes_is_told_from_a_connection_that_fails(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = CuttingProxy(endpoint)
    point_at(monkeypatch, proxy.endpoint, tmp_path)
    few_retries(monkeypatch)
    write_version(location(f"{BUCKET}/changing/a.py"), b"a = 1\n", None)
    source = parse_source(f"{BUCKET}/changing")
    statuses = [document.status for document in read_documents(source, ["a.py", "a.py", "gone.py"], [6, 5, 3], 0)]
    assert statuses == [Status.COUNTED, Status.CHANGED, Status.UNREADABLE]
    proxy.is_down = True
    proxy.cut()
    with pytest.raises(InputError, match=r"can't reach s3://studies/changing/a.py: .*check its name, the network"):
        list(read_documents(source, ["a.py"], [6], 0))
    proxy.close()


@pytest.mark.ray
def test_a_killed_run_goes_on_in_the_bucket(
    bucket: str, model_folder: Path, corpora: Path, local: Path, tmp_path: Path
) -> None:
    process = launch(model_folder, f"{URL}/killed", corpora, tmp_path / "killed")
    while process.status is None and not list((tmp_path / "home").glob("runs/*/corpora/*/checkpoint-*")):
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.finish()
    path = location(f"{URL}/killed")
    assert store.committed_corpora(path) == []
    assert status(path)["state"] == "stopped"
    make_store(model_folder, path, corpora)  # at once, though the killed one's lease is fresh: it was this machine's
    same_arrays(path, local)
    assert objects(bucket, "study/killed").keys() == {
        file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file() and ".run" not in file.parts
    }


@pytest.mark.ray
def test_workers_read_the_bucket_themselves(bucket: str, model_folder: Path, corpora: Path, local: Path) -> None:
    put_folder(bucket, corpora, "for-workers")
    path = make_store(model_folder, location(f"{URL}/workers"), f"{BUCKET}/for-workers", workers=2)
    same_arrays(path, local)


@pytest.mark.slow
def test_a_damaged_array_in_a_bucket_and_a_connection_that_fails_are_told_apart(
    endpoint: str, model_folder: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proxy = CuttingProxy(endpoint)
    point_at(monkeypatch, proxy.endpoint, tmp_path)
    few_retries(monkeypatch)
    path = make_store(model_folder, location(f"{URL}/damaged"), corpora)
    name = "damaged/corpora/python/tokens"
    array = store.open_committed(path, "corpora/python")["tokens"]
    proxy.is_down = True
    proxy.cut()
    for read in (lambda: store.read_slice(array), lambda: store.open_committed(path, "corpora/python")):
        with pytest.raises(InputError, match=r"can't reach .*: Generic S3 error.*check its name, the network"):
            read()
    proxy.is_down = False
    (chunk,) = (key for key in objects(endpoint, f"study/{name}") if key.startswith("c/"))
    with client(endpoint) as s3:
        s3.put_object(Bucket="studies", Key=f"study/{name}/{chunk}", Body=b"damaged")
        with pytest.raises(InputError, match=f"study/{name} can't be read: "):
            store.read_corpus(path, "python")
        s3.delete_object(Bucket="studies", Key=f"study/{name}/{chunk}")
        with pytest.raises(InputError, match=f"study/{name} has 0 of 1 chunks: it was cut off"):
            store.read_corpus(path, "python")
    proxy.close()


@pytest.mark.slow
def test_of_two_runs_on_two_machines_one_is_refused(
    bucket: str, model_folder: Path, corpora: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = location(f"{URL}/two")
    with writer_lock(path):
        with pytest.raises(InputError, match=f"{path} is being written by another run"), writer_lock(path, wait_s=0):
            pass  # of this machine
        monkeypatch.setenv("NEUROTALLY_HOME", str(tmp_path / "elsewhere"))
        assert is_being_written(path)
        with pytest.raises(InputError, match=rf"{path} is being written by process {os.getpid()} on "):
            make_store(model_folder, path, corpora)
        monkeypatch.setenv("NEUROTALLY_HOME", str(tmp_path / "home"))
    assert objects(bucket, "study/two") == {}
    make_store(model_folder, path, corpora)
    same_arrays(path, local)


@pytest.mark.slow
def test_of_two_runs_that_write_the_root_one_wins(
    bucket: str, model_folder: Path, corpora: Path, local: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The lease aside: a run that was suspended for hours and wakes while another one writes."""
    path = location(f"{URL}/root")
    make_store(model_folder, path, corpora)
    before = objects(bucket, "study/root")
    (first, version), (second, _) = (store_root.read_versioned(path) for _ in range(2))
    store_root.put_root(path, {**first, "attributes": {**first["attributes"], "who": 1}}, version)
    with pytest.raises(InputError, match="was written by another run meanwhile"):
        store_root.put_root(path, {**second, "attributes": {**second["attributes"], "who": 2}}, version)
    after = objects(bucket, "study/root")
    assert store.store_attributes(path)["who"] == 1
    assert {name for name in before if before[name] != after[name]} == {"zarr.json"}
    same_arrays(path, local)


def test_a_lease_that_another_run_took_over_stops_the_next_commit(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = location(f"{URL}/lease")
    monkeypatch.setattr(lease, "EXPIRE_S", 0.0)
    with leased(path) as still_writes:
        still_writes()
        monkeypatch.setenv("NEUROTALLY_HOME", str(tmp_path / "elsewhere"))
        with leased(path) as others:
            with pytest.raises(InputError, match="is being written by another run since this one wasn't heard of"):
                still_writes()
            others()
    assert objects(bucket, "study/lease") == {}


def test_an_upload_that_was_suspended_cannot_spoil_what_a_later_run_committed(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first stops where it would put its objects; the second commits the same group; the first wakes."""
    path = location(f"{URL}/suspended")
    store.create_store(path, {})
    groups = {name: tmp_path / name for name in ("first", "second")}
    for number, folder in enumerate(groups.values()):
        store.write_arrays(folder, {"tokens": np.full(4, number, np.uint64)}, {"number": number})
    upload = buckets.upload

    def suspended(*arguments: Any) -> None:
        monkeypatch.setattr(buckets, "upload", upload)
        store.publish(path, "corpora/x", groups["second"])
        upload(*arguments)

    monkeypatch.setattr(buckets, "upload", suspended)
    with pytest.raises(InputError, match="was written by another run meanwhile"):
        store.publish(path, "corpora/x", groups["first"])
    assert store.read_corpus(path, "x")["tokens"].tolist() == [1, 1, 1, 1]
    assert store.corpus_attributes(path, "x") == {"number": 1}
    with pytest.raises(InputError, match="was written by another run meanwhile"):
        store.publish(path, "corpora/x", groups["first"])


def test_objects_of_an_upload_that_was_cut_off_are_replaced_and_the_rest_removed(bucket: str, tmp_path: Path) -> None:
    path = location(f"{URL}/cut-off")
    store.create_store(path, {})
    for name, content in (("zarr.json", b"{}"), ("tokens/c/0", b"old"), ("tokens/c/7", b"surplus")):
        write_version(path / "corpora/x" / name, content, None)
    store.write_arrays(tmp_path / "x", {"tokens": np.arange(4, dtype=np.uint64)}, {})
    store.publish(path, "corpora/x", tmp_path / "x")
    assert store.read_corpus(path, "x")["tokens"].tolist() == [0, 1, 2, 3]
    assert "corpora/x/tokens/c/7" not in objects(bucket, "study/cut-off")
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_working_state_of_a_store_that_was_removed_is_not_gone_on_with(
    bucket: str, model_folder: Path, other_model_folder: Path, corpora: Path, tmp_path: Path
) -> None:
    path = location(f"{URL}/removed")
    kwargs = {"checkpoint_every_s": 0.0}
    with pytest.raises(RuntimeError), stopping_after(3):
        make_store(model_folder, path, corpora, **kwargs)
    assert list((tmp_path / "home").glob("runs/removed-*/corpora/*/checkpoint-*"))
    with client(bucket) as s3:
        for name in objects(bucket, "study/removed"):
            s3.delete_object(Bucket="studies", Key=f"study/removed/{name}")
    store.create_store(path, {"model": None})  # by another machine, say
    store._note_id(path, "the former one")
    assert status(path)["corpora"] == {}
    with client(bucket) as s3:
        s3.delete_object(Bucket="studies", Key="study/removed/zarr.json")
    make_store(other_model_folder, path, corpora)
    same_arrays(path, make_store(other_model_folder, tmp_path / "local", corpora))


@contextmanager
def stopping_after(units: int) -> Iterator[None]:
    """Let the run fail when so many units are in."""
    took = iter(range(units))

    def take(self: Any, outcome: Any) -> None:
        if next(took, None) is None:
            raise RuntimeError("stopped")
        taken(self, outcome)

    taken, Fold.take = Fold.take, take  # type: ignore[method-assign]
    try:
        yield
    finally:
        Fold.take = taken  # type: ignore[method-assign]


@pytest.mark.slow
def test_a_store_that_was_copied_to_a_bucket_is_gone_on_with(
    bucket: str, model_folder: Path, corpora: Path, local: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "begun"
    profile(str(model_folder), folder, corpus={"c++": corpora / "c++"}, max_unit_bytes=1500,
            progress=Progress(quiet=True), **SETTINGS)  # fmt: skip
    put_folder(bucket, folder, "study/copied")
    path = location(f"{URL}/copied")
    with pytest.raises(RuntimeError), stopping_after(3):
        make_store(model_folder, path, corpora, checkpoint_every_s=0.0)
    assert 0 < status(path)["corpora"]["python"]["units_done"] < status(path)["corpora"]["python"]["units"]
    make_store(model_folder, path, corpora)
    same_arrays(path, local)


@pytest.mark.slow
def test_names_are_text_not_parts_of_a_url(
    bucket: str, model_folder: Path, corpora: Path, tmp_path: Path, run: Any
) -> None:
    named = {name: corpora / "python" for name in ("C", "C#", "a?b", "d%20x", "x%23y")}
    quiet = Progress(quiet=True)
    for path in (location(f"{URL}/my#st%20udy?"), tmp_path / "local"):
        profile(str(model_folder), path, corpus=named, progress=quiet, max_files=3, **SETTINGS)
    ours, theirs = location(f"{URL}/my#st%20udy?"), tmp_path / "local"
    assert store.committed_corpora(ours) == sorted(named)
    for name in named:
        one, other = store.read_corpus(ours, name), store.read_corpus(theirs, name)
        for array in one:
            np.testing.assert_array_equal(one[array], other[array])
    there = objects(bucket, "study/my#st%20udy?")
    assert {name.split("/")[1] for name in there if name.startswith("corpora/") and name.count("/") > 1} == set(named)
    assert open_store(ours).to_xarray("C#").equals(open_store(theirs).to_xarray("C#"))


def test_a_bucket_with_other_things_in_it_is_no_place_for_a_store(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, model_folder: Path, corpora: Path, tmp_path: Path, run: Any
) -> None:
    point_at(monkeypatch, endpoint, tmp_path)
    with client(endpoint) as s3:
        s3.create_bucket(Bucket="texts")
        for name in ("python/a.py", "python/b.py"):
            s3.put_object(Bucket="texts", Key=f"corpora/{name}", Body=b"x = 1\n")
        code, _, err = run("profile", model_folder, "s3://texts", "--corpora", "s3://texts/corpora")
        assert (code, err.count("\n")) == (2, 1)
        assert "is a folder with other things in it" in err
        assert len(s3.list_objects_v2(Bucket="texts")["Contents"]) == 2
        assert list(find_corpora("s3://texts")) == ["corpora"]
        assert sorted(list_documents(parse_source("s3://texts")).names) == [
            "corpora/python/a.py",
            "corpora/python/b.py",
        ]
        s3.create_bucket(Bucket="whole")
        assert run("profile", model_folder, "S3://whole/", "--corpora", "s3://texts/corpora", "--triggers", 1)[0] == 0
        assert open_store("s3://whole").corpora == ("python",)


def test_empty_objects_that_stand_for_folders_are_no_documents(bucket: str, corpora: Path) -> None:
    put_folder(bucket, corpora / "python", "markers")
    with client(bucket) as s3:
        for name in ("markers/", "markers/0/", "markers/empty/"):
            s3.put_object(Bucket="studies", Key=name, Body=b"")
    assert_same_documents(parse_source(f"{BUCKET}/markers::*.py"), parse_source(f"{corpora / 'python'}::*.py"))
    names = list_documents(parse_source(f"{BUCKET}/markers")).names
    assert set(names) - set(list_documents(parse_source(str(corpora / "python"))).names) <= {"empty"}


def test_a_renewal_whose_answer_was_lost_does_not_end_the_lease(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = location(f"{URL}/lost-answer")
    with leased(path) as still_writes:
        write = buckets.write_version

        def lose_the_answer(*arguments: Any) -> Any:
            monkeypatch.setattr(buckets, "write_version", write)
            write(*arguments)
            raise buckets.UnreachableError("the answer was lost")

        monkeypatch.setattr(buckets, "write_version", lose_the_answer)
        with pytest.raises(InputError, match="the answer was lost"):
            still_writes()
        still_writes()
    assert objects(bucket, "study/lost-answer") == {}


@pytest.mark.slow
def test_texts_that_cannot_be_reached_are_not_called_gone(
    endpoint: str, model_folder: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    proxy = CuttingProxy(endpoint)
    point_at(monkeypatch, proxy.endpoint, tmp_path / "home")
    put_folder(endpoint, corpora, "far")
    path = make_store(model_folder, tmp_path / "near", f"{BUCKET}/far")
    few_retries(monkeypatch)
    proxy.is_down = True
    proxy.cut()
    code, _, err = run("triggers", path, 1, 5)
    assert (code, err.count("\n")) == (2, 1), err
    assert "can't reach s3://studies/far" in err
    proxy.close()


@pytest.mark.parametrize("text", ["s3:/studies/x", "S3:/studies/x", "s3:studies/x", "s3://", "gs:///x"])
def test_a_mistyped_url_is_no_folder(text: str) -> None:
    with pytest.raises(InputError, match="expected a path, or a URL"):
        location(text)


@pytest.mark.ray
def test_a_run_survives_twenty_cuts_of_the_connection(
    endpoint: str, model_folder: Path, corpora: Path, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_folder(endpoint, corpora, "cut")
    proxy = CuttingProxy(endpoint)
    point_at(monkeypatch, proxy.endpoint, tmp_path / "home")
    rng, runs = random.Random(1), 0
    path = location(f"{URL}/cut")
    while proxy.cuts < 20 or not store.is_begun(path) or not set(CORPORA) <= set(store.committed_corpora(path)):
        assert runs < 25
        process = launch(model_folder, str(path), f"{BUCKET}/cut", tmp_path / f"cut{runs}")
        while process.status is None:
            time.sleep(rng.uniform(0.0, 0.3))
            if proxy.cuts < 20:
                proxy.cut()
        code, _, errors = process.finish()
        assert code in (0, 2), errors
        assert code == 0 or "can't reach s3://studies/" in errors, errors
        runs += 1
    same_arrays(path, local)
    proxy.close()


@pytest.mark.slow
def test_the_command_line_takes_urls(
    bucket: str, model_folder: Path, corpora: Path, local: Path, run: Any, tmp_path: Path
) -> None:
    put_folder(bucket, corpora, "cli")
    url = f"{URL}/cli"
    code, out, err = run("profile", model_folder, url, "--corpora", f"{BUCKET}/cli", *OPTIONS)
    assert code == 0, err
    assert url in out
    again = run("profile", url, "--corpora", f"{BUCKET}/cli", *OPTIONS)  # the model from the store; all is there
    assert again[0] == 0
    code, out, err = run("report", url, "--out", tmp_path / "page.html", "--neurons", 2)
    assert code == 0, err
    assert (tmp_path / "page.html").stat().st_size > 100_000
    assert open_store(url).corpora == CORPORA
    texts = [json.loads(run("triggers", where, 1, 5, "--json")[1]) for where in (url, local)]
    assert texts[0] == texts[1]  # read from the bucket, and from the folder
    code, _, err = run("embed", url, "--parallel", f"{BUCKET}/cli")
    assert (code, err.count("\n")) == (2, 1)
    assert "only stores and corpora are read from buckets" in err


@pytest.mark.parametrize("command", ["lape {}", "status {}", "profile MODEL {} --corpora CORPORA"])
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://no-such-bucket/s", "NoSuchBucket: The specified bucket does not exist"),
        ("ftp://host/s", "expected a path, or a URL of s3://, gs://, az://, hf://"),
        ("hf://buckets/s", ""),
    ],
)
def test_what_cannot_be_a_store_is_told_in_a_line(
    bucket: str, command: str, url: str, reason: str, run: Any, model_folder: Path, corpora: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    places = {"MODEL": model_folder, "CORPORA": corpora}
    code, _, err = run(*(places.get(word, word) for word in command.format(url).split()))
    assert (code, err.count("\n")) == (2, 1), err
    assert reason in err


@pytest.mark.parametrize(("answer", "reason"), [(403, "403 Forbidden|AccessDenied"), (None, "error sending request")])
def test_a_bucket_that_is_forbidden_or_cannot_be_reached_is_told_in_a_line(
    answer: int | None, reason: str, run: Any, model_folder: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    with refusing(answer) as endpoint:
        point_at(monkeypatch, endpoint, tmp_path)
        few_retries(monkeypatch)
        for words in (["lape", URL], ["profile", model_folder, URL, "--corpora", corpora],
                      ["profile", model_folder, tmp_path / "s", "--corpora", f"{BUCKET}/x"]):  # fmt: skip
            code, _, err = run(*words)
            assert (code, err.count("\n")) == (2, 1), err
            assert f"can't reach {BUCKET}" in err
            assert re.search(reason, err)


def test_buckets_need_an_extra(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    code, _, err = run("lape", URL)
    assert (code, err.count("\n")) == (2, 1)
    assert "buckets need a further library: pip install 'neurotally[buckets]'" in err


def test_a_store_on_the_hub_is_read(local: Path, corpora: Path, run: Any, request: pytest.FixtureRequest) -> None:
    """With files in memory in place of the hub."""

    class Hub(MemoryFileSystem):
        protocol, root_marker, store, pseudo_dirs = "hf", "", {}, [""]

        @classmethod
        def _strip_protocol(cls, path: str) -> str:
            return path.removeprefix("hf://").strip("/")

    for file in local.rglob("*"):
        if file.is_file():
            Hub().pipe_file(f"datasets/me/store/{file.relative_to(local).as_posix()}", file.read_bytes())
    fsspec.register_implementation("hf", Hub, clobber=True)
    request.addfinalizer(lambda: fsspec.register_implementation("hf", HfFileSystem, clobber=True))
    url = "hf://datasets/me/store"
    code, out, err = run("lape", url, "--json")
    assert code == 0, err
    assert out == run("lape", local, "--json")[1]
    code, _, err = run("profile", url, "--corpora", corpora)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{url} can only be read; write the store to a folder, or to s3://, gs:// or az://" in err
