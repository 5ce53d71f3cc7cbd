"""Sources of every kind: the same texts come out, and what can't be used is skipped by name."""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neurotally.jobs.corpora import find_corpora, list_corpus
from neurotally.profiler.corpus.documents import MAX_DOCUMENT_BYTES, Document, Manifest, Source, Status
from neurotally.profiler.corpus.sources import check_names, list_documents, parse_source, read_documents
from neurotally.profiler.corpus.streaming import spool_dataset
from neurotally.profiler.errors import InputError

TEXTS = ["def f():\n\treturn 'é'\r\n", "x", "日本\n" * 3000, "\ufeffbom", "no newline"]


def read_all(source: Source, manifest: Manifest) -> list[Document]:
    """Read in units of two documents, as workers do."""
    documents: list[Document] = []
    sizes = manifest.sizes.tolist()
    for first in range(0, len(sizes), 2):
        part = slice(first, first + 2)
        documents += read_documents(source, manifest.names[part], sizes[part], sum(sizes[:first]))
    return documents


def test_files_come_in_hash_order_with_their_exact_content(tmp_path: Path) -> None:
    for number, text in enumerate(TEXTS):
        (tmp_path / f"d{number % 2}").mkdir(exist_ok=True)
        (tmp_path / f"d{number % 2}" / f"{number}.py").write_bytes(text.encode())
    source = parse_source(str(tmp_path))
    manifest = list_documents(source)
    expected = {f"d{number % 2}/{number}.py": text for number, text in enumerate(TEXTS)}
    assert manifest.names == sorted(expected, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    documents = read_all(source, manifest)
    assert [document.text for document in documents] == [expected[name] for name in manifest.names]
    assert [d.sha256 for d in documents] == [hashlib.sha256(expected[n].encode()).digest() for n in manifest.names]
    assert list_documents(source, 3).names == manifest.names[:3]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.py", {"a.py", "src/b.py", "src/deep/c.py"}),
        ("**/*.py", {"a.py", "src/b.py", "src/deep/c.py"}),
        ("src/*.py", {"src/b.py", "src/deep/c.py"}),
        ("[ab].*", {"a.py", "src/b.py"}),
    ],
)
def test_globs(tmp_path: Path, glob: str, expected: set[str]) -> None:
    for name in ("a.py", "src/b.py", "src/deep/c.py", "src/d.md", ".git/e.py", "src/.f.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path / "src", tmp_path / "link")
    os.symlink(tmp_path / "a.py", tmp_path / "link.py")
    assert set(list_documents(parse_source(f"{tmp_path}::{glob}")).names) == expected


def test_files_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    contents = {"good": b"x", "empty": b"", "latin": b"\xe9", "grown": b"x", "gone": b"x"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    source = parse_source(str(tmp_path))
    manifest = list_documents(source)
    (tmp_path / "grown").write_bytes(b"xy")
    (tmp_path / "gone").unlink()
    statuses = dict(zip(manifest.names, (d.status for d in read_all(source, manifest)), strict=True))
    assert statuses == {
        "good": Status.COUNTED,
        "empty": Status.EMPTY,
        "latin": Status.NOT_UTF8,
        "grown": Status.CHANGED,
        "gone": Status.UNREADABLE,
    }


def test_names_from_data_never_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "corpus").mkdir()
    source = Source("folder", str(tmp_path / "corpus"), None, "folder")
    (document,) = read_documents(source, ["../secret"], [1], 0)
    assert document.text is None
    assert document.status is Status.UNREADABLE


@pytest.mark.parametrize("column", [None, "code", "body"])
def test_jsonl(tmp_path: Path, column: str | None) -> None:
    key = column or "content"
    lines = [json.dumps({"id": 1, key: text}).encode() for text in TEXTS]
    (tmp_path / "c.jsonl").write_bytes(b"\n".join([*lines, b"not json", b'{"id": 2}', b'{"%s": null}' % key.encode()]))
    source = parse_source(f"{tmp_path}/c.jsonl" + (f"::{column}" if column else ""))
    documents = read_all(source, list_documents(source))
    assert [document.text for document in documents] == [*TEXTS, None, None, None]
    assert [document.status for document in documents[-3:]] == [Status.UNREADABLE] * 3


def test_json_that_spells_what_utf8_cannot(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "\\ud800"}\n')
    source = parse_source(f"{tmp_path}/c.jsonl")
    assert [d.status for d in read_all(source, list_documents(source))] == [Status.NOT_UTF8]


@pytest.mark.parametrize("rows_a_group", [2, 3, 100])
def test_parquet(tmp_path: Path, rows_a_group: int) -> None:
    table = pa.table({"id": list(range(7)), "text": [*TEXTS, None, ""]})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=rows_a_group)
    source = parse_source(f"{tmp_path}/c.parquet")
    manifest = list_documents(source)
    assert manifest.sizes.tolist() == [*(len(text.encode()) for text in TEXTS), 0, 0]
    documents = read_all(source, manifest)
    assert [document.text for document in documents] == [*TEXTS, None, None]
    assert [document.status for document in documents[-2:]] == [Status.UNREADABLE, Status.EMPTY]


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match="expected a text column text or content or code, it has"):
        list_documents(parse_source(f"{tmp_path}/c.parquet"))


def test_a_dataset_is_streamed_once_to_a_local_file(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps({"content": text}) + "\n" for text in TEXTS))
    source = spool_dataset(f"hf:{tmp_path / 'data'}", tmp_path / "spool.parquet", 4)
    assert [document.text for document in read_all(source, list_documents(source))] == TEXTS[:4]
    (tmp_path / "data" / "train.jsonl").unlink()
    again = spool_dataset(f"hf:{tmp_path / 'data'}", tmp_path / "spool.parquet", 4)
    assert list_documents(again).names == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x" * 101,
        "a/b",
        "a=b",
        ".a",
        "__a",
        "a\nb",
        "zarr.json",
        "日" * 90,
    ],
)
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(InputError):
        check_names([name])


def test_names_that_differ_only_in_case_are_refused() -> None:
    check_names(["c", "c++", "C#", "日本語"])
    with pytest.raises(InputError, match="'GO' and 'go' differ only in case"):
        check_names(["GO", "go"])


@pytest.mark.parametrize("text", ["/nowhere", "{here}/file.txt", "{here}/empty", "{here}/full::*.rs"])
def test_bad_sources_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.py").write_text("x")
    with pytest.raises(InputError):
        list_documents(parse_source(text.format(here=tmp_path)))


@contextlib.contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder of our own, seen as a user who isn't root: root reads everything."""
    with tempfile.TemporaryDirectory() as folder:
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, 65534, -1)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            for path, folders, _ in os.walk(folder):
                for name in folders:
                    os.chmod(Path(path, name), 0o700)
            if is_root:
                os.seteuid(0)


def statuses(source: Source) -> dict[str, Status]:
    manifest = list_documents(source)
    return dict(zip(manifest.names, (d.status for d in read_all(source, manifest)), strict=True))


def test_files_and_folders_without_permission_are_skipped_by_name() -> None:
    with as_nobody() as root:
        for name in ("a", "b", "closed/c", "closed/deep/d", "names/e", "names/deep/f"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x")
        (root / "a").chmod(0)
        (root / "closed").chmod(0)
        (root / "names").chmod(0o400)
        found = statuses(parse_source(str(root)))
        unreadable = {"a", "closed/", "names/e", "names/deep/"}
        assert found == {"b": Status.COUNTED} | dict.fromkeys(unreadable, Status.UNREADABLE)
        assert set(list_documents(parse_source(f"{root}::b")).names) == {"b", "closed/", "names/deep/"}
        windows = replace(parse_source(str(root)), window_lines=5)
        read = read_all(windows, list_documents(windows))
        assert sorted(one.status for one in read) == [Status.COUNTED] + [Status.UNREADABLE] * 4
        root.chmod(0o300)
        with pytest.raises(InputError, match=f"can't list {root}: Permission denied"):
            list_documents(Source("folder", str(root), None, "folder"))
        root.chmod(0o700)


def in_time(function: "threading.Thread") -> None:
    function.daemon = True
    function.start()
    function.join(20)
    assert not function.is_alive(), "it waits for ever"


def test_a_file_that_became_a_fifo_never_blocks(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "d" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "d" / name).write_text("x")
    (tmp_path / "r.jsonl").write_text('{"text": "x"}\n')
    source, records = parse_source(str(tmp_path / "d")), parse_source(str(tmp_path / "r.jsonl"))
    windows = replace(source, window_lines=5)
    manifest, window_manifest = list_documents(source), list_documents(windows)
    for path in (tmp_path / "d" / "b", tmp_path / "r.jsonl"):
        path.unlink()
        os.mkfifo(path)
    found: list[Document] = []
    in_time(threading.Thread(target=lambda: found.extend(read_all(source, manifest))))
    assert [d.status for d in found] == [Status.CHANGED if name == "b" else Status.COUNTED for name in manifest.names]
    in_time(threading.Thread(target=lambda: found.extend(read_all(windows, window_manifest))))
    assert [d.text is None for d in found[3:]] == [name == "b#L1-1" for name in window_manifest.names]
    errors: list[OSError] = []

    def read_records() -> None:
        try:
            list(read_documents(records, ["0"], [14], 0))
        except OSError as error:
            errors.append(error)

    in_time(threading.Thread(target=read_records))
    assert "ordinary file" in str(errors[0])
    with pytest.raises(InputError, match=r"expected a folder, a \.jsonl"):
        parse_source(str(tmp_path / "r.jsonl"))


@pytest.mark.parametrize("kind", ["folder", "jsonl", "parquet", "windows"])
@pytest.mark.slow
def test_what_is_too_large_is_skipped_by_name_and_the_rest_is_read(kind: str, tmp_path: Path) -> None:
    limit = MAX_DOCUMENT_BYTES
    record = len(json.dumps({"text": ""})) + 1 if kind == "jsonl" else 0
    texts = {"0": "x", "1": "y" * (limit + 1 - record), "2": "z" * (limit - record), "3": "last"}
    if kind == "jsonl":
        (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.values()))
    elif kind == "parquet":
        pq.write_table(pa.table({"text": list(texts.values())}), tmp_path / "c.parquet")
    else:
        (tmp_path / "c").mkdir()
        for name, text in texts.items():
            (tmp_path / "c" / name).write_text(text)
    path = tmp_path / ("c" if kind in ("folder", "windows") else f"c.{kind}")
    source = replace(parse_source(str(path)), window_lines=5 if kind == "windows" else None)
    manifest = list_documents(source)
    found = read_all(source, manifest)
    by_name = dict(zip((name.partition("#")[0] for name in manifest.names), found, strict=True))
    assert by_name["1"] == Document(None, Status.TOO_LARGE, bytes(32))
    assert {name: one.text for name, one in by_name.items()} == texts | {"1": None}


def test_the_limit_is_part_of_a_corpus_that_it_decides(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "small").write_text("x")
    assert "max_document_bytes" not in list_corpus("c", str(tmp_path / "c"), None, tmp_path).identity
    with (tmp_path / "c" / "large").open("wb") as file:
        file.truncate(MAX_DOCUMENT_BYTES + 1)
    assert list_corpus("c", str(tmp_path / "c"), None, tmp_path).identity["max_document_bytes"] == MAX_DOCUMENT_BYTES


def test_a_record_that_cannot_be_parsed_is_one_document(tmp_path: Path) -> None:
    deep = '{"text": ' + "[" * 200_000 + "]" * 200_000 + "}"
    huge = '{"text": ' + "9" * 10_000 + "}"
    (tmp_path / "c.jsonl").write_text("\n".join([deep, huge, '{"text": "x"}']))
    source = parse_source(str(tmp_path / "c.jsonl"))
    found = read_all(source, list_documents(source))
    assert [one.status for one in found] == [Status.UNREADABLE, Status.UNREADABLE, Status.COUNTED]


def test_parquet_that_is_not_utf8_is_one_document(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe", "é".encode()], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
    source = parse_source(str(tmp_path / "c.parquet"))
    found = read_all(source, list_documents(source))
    assert [(one.text, one.status) for one in found] == [
        ("good", Status.COUNTED), (None, Status.NOT_UTF8), ("é", Status.COUNTED),
    ]  # fmt: skip
    assert found[1].sha256 == hashlib.sha256(b"\xff\xfe").digest()


@pytest.mark.parametrize("column", ["txet", "id", None])
def test_a_column_that_no_record_has_is_refused(tmp_path: Path, column: str | None) -> None:
    key = "text" if column else "body"
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"id": n, key: "x"}) + "\n" for n in range(3)))
    source = parse_source(f"{tmp_path}/c.jsonl" + (f"::{column}" if column else ""))
    with pytest.raises(InputError, match=f"a text in {column or 'text or content or code'}, none of its lines is one"):
        list_documents(source)


@pytest.mark.parametrize("name", ["a::b", "~a", "hf:a", "::"])
def test_folders_of_any_name_are_found(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpora" / name).mkdir(parents=True)
    (tmp_path / "corpora" / name / "x.py").write_text("x")
    (tmp_path / "corpora" / name / "x.md").write_text("x")
    monkeypatch.chdir(tmp_path / "corpora")
    for folder in (tmp_path / "corpora", Path()):
        plan = list_corpus(name, find_corpora(folder, ())[name], None, tmp_path)
        assert (plan.source.path, sorted(plan.manifest.names)) == (str(tmp_path / "corpora" / name), ["x.md", "x.py"])
    if name != "hf:a":
        assert list_documents(parse_source(f"{name}::*.py")).names == ["x.py"]
    with pytest.raises(InputError, match="no such corpus"):
        parse_source("~nobody-of-this-name/x")


def test_names_that_only_unicode_tells_apart_and_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'\\xe9' and 'e\\u0301' differ only in .* how Unicode spells them"):
        check_names(["\u00e9", "e\u0301"])
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    with pytest.raises(InputError, match="what isn't UTF-8"):
        find_corpora(tmp_path, ())
