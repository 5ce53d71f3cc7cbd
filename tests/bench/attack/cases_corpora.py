"""Bad corpora: odd files in folders, hostile JSON lines and parquet, files that change while a run goes on."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.attack.case import DONE, EITHER, Case, Place, deep, documents, skips
from bench.attack.launch import Launch

_ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def _beside(lay_out: Callable[[Place, Path], object]) -> Callable[[Place], list[object]]:
    """A corpus of three good files, and something odd beside them in its folder."""

    def arguments(place: Place) -> list[object]:
        lay_out(place, place.corpora())
        return place.profile()

    return arguments


def _file(name: str | bytes, content: str | bytes = "x = 1\n") -> Callable[[Place], list[object]]:
    """The same, a file."""
    return _beside(
        lambda place, folder: place.put(
            b"corpora/python/" + (name if isinstance(name, bytes) else name.encode()), content
        )
    )


def _unix_socket(place: Place, folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(folder / "s.py"))


def _many_levels(place: Place, folder: Path) -> None:
    os.makedirs("/".join([str(folder), *["d"] * 200]))
    place.put("corpora/python/" + "d/" * 200 + "deep.py")


def _records(content: str | bytes, selector: str = "", good: bool = True) -> Callable[[Place], list[object]]:
    """A .jsonl: two good records, then `content`."""
    first = b'{"text": "x = 1"}\n{"text": "y = 2"}\n' if good else b""

    def arguments(place: Place) -> list[object]:
        path = place.put("records.jsonl", first + (content if isinstance(content, bytes) else content.encode()))
        return place.profile("--corpus", f"python={path}{selector}")

    return arguments


def _parquet(make: Callable[[], Any], selector: str = "") -> Callable[[Place], list[object]]:
    """A .parquet of a table."""

    def arguments(place: Place) -> list[object]:
        import pyarrow.parquet as pq

        pq.write_table(make(), place.folder / "rows.parquet", compression="zstd")
        return place.profile("--corpus", f"python={place.folder / 'rows.parquet'}{selector}")

    return arguments


def _table(**columns: Any) -> Callable[[], Any]:
    def make() -> Any:
        import pyarrow as pa

        return pa.table({name: pa.array(values) for name, values in columns.items()})

    return make


def _invalid_text() -> Any:
    """A string column of which one value is not UTF-8."""
    import pyarrow as pa

    content, ends = b"x = 1y = 2\xff\xfe\xff", (0, 5, 10, 13)
    offsets = b"".join(end.to_bytes(4, "little") for end in ends)
    return pa.table(
        {"text": pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(content)])}
    )


def _typed(kind: str) -> Callable[[], Any]:
    def make() -> Any:
        import pyarrow as pa

        types = {
            "binary": (pa.binary(), b"x"),
            "list": (pa.list_(pa.string()), ["x"]),
            "null": (pa.null(), None),
            "dictionary": (pa.dictionary(pa.int32(), pa.string()), "x = 1"),
            "large": (pa.large_string(), "x = 1"),
            "view": (pa.string_view(), "x = 1"),
            "struct": (pa.struct([("a", pa.string())]), {"a": "x"}),
        }
        made, value = types[kind]
        return pa.table({"text": pa.array([value] * 3, made)})

    return make


def _bomb() -> Any:
    """Two GiB of text in some kilobytes of file."""
    import pyarrow as pa

    return pa.table({"text": pa.array(["a" * 2**25] * 64, pa.large_string())})


def _made(name: str, content: bytes = b"") -> Callable[[Place], list[object]]:
    """A source that is a file of that name; b"fifo": a FIFO."""

    def arguments(place: Place) -> list[object]:
        if content == b"fifo":
            os.mkfifo(place.folder / name)
        else:
            place.put(name, content)
        return place.profile("--corpus", f"python={place.folder / name}")

    return arguments


def _when_listed(change: Callable[[Place, list[Path]], None]) -> Callable[[Place, Launch], None]:
    """Change the corpus's files when the run has listed them."""

    def during(place: Place, launch: Launch) -> None:
        deadline = time.monotonic() + 60
        while not launch.poll() and time.monotonic() < deadline and not (place.new / "zarr.json").exists():
            time.sleep(0.002)
        change(place, sorted((place.folder / "corpora" / "python").glob("late*.py")))

    return during


def _many_files(place: Place) -> list[object]:
    place.corpora()
    for number in range(600):
        place.put(f"corpora/python/late{number}.py", f"x = {number}\n" * 40)
    return place.profile()


def _to_fifos(place: Place, files: list[Path]) -> None:
    for file in files:
        file.unlink()
        os.mkfifo(file)


def _to_links(place: Place, files: list[Path]) -> None:
    for file in files:
        file.unlink()
        file.symlink_to(place.secret)


def _gone(place: Place, files: list[Path]) -> None:
    for file in files:
        file.unlink()


def _named_triggers(place: Place) -> list[object]:
    """Texts with escape sequences, profiled; then what triggers one of the neurons."""
    from bench.attack.launch import run

    for number in range(6):
        place.put(f"corpora/python/{number}.py", f"def f{number}():\n    return '{_ESCAPE}' * {number}\n\x1b[31m\x9b\n")
    run(place.profile(), place.folder / "log")
    return ["triggers", place.new, 0, 1]


def _skipped_name(place: Place) -> list[object]:
    place.corpora()
    place.put(f"corpora/python/{_ESCAPE.replace('/', '')}.py", b"\xff")
    place.put(b"corpora/python/\xff.py", b"\xff")
    return place.profile()


CASES = [
    Case("a FIFO beside files", _beside(lambda place, folder: os.mkfifo(folder / "fifo.py")), DONE, check=documents(3)),
    Case("a socket beside files", _beside(_unix_socket), DONE, check=documents(3)),
    Case(
        "a link out",
        _beside(lambda place, folder: (folder / "link.py").symlink_to(place.secret)),
        DONE,
        check=documents(3),
    ),
    Case(
        "a linked folder out",
        _beside(lambda place, folder: (folder / "link").symlink_to(place.outside)),
        DONE,
        check=documents(3),
    ),
    Case(
        "a loop of links", _beside(lambda place, folder: (folder / "loop").symlink_to(folder)), DONE, check=documents(3)
    ),
    Case(
        "a corpus that is a link",
        _beside(lambda place, folder: (folder.parent / "linked").symlink_to(place.outside)),
        EITHER,
    ),
    Case("an escape sequence in a name", _file("\x1b[31m.py"), DONE, check=documents(4)),
    Case("a newline in a name", _file("a\nb.py"), DONE, check=documents(4)),
    Case("a name not UTF-8", _file(b"\xff\xfe.py"), DONE, check=documents(4)),
    Case("a name with ::", _file("a::b.py"), DONE, check=documents(4)),
    Case("a name with #L1-2", _file("a.py#L1-2"), DONE, check=documents(4)),
    Case(
        "names NFC beside NFD",
        _beside(lambda place, folder: [place.put(f"corpora/python/{n}.py") for n in ("caf\u00e9", "cafe\u0301")]),
        DONE,
        check=documents(5),
    ),
    Case("a name of 255 bytes", _file("a" * 252 + ".py"), DONE, check=documents(4)),
    Case("200 folders deep", _beside(_many_levels), DONE, check=documents(4)),
    Case("hidden", _file(".hidden.py"), DONE, check=documents(3)),
    Case("an empty file", _file("empty.py", ""), DONE, check=skips(1)),
    Case("white space only", _file("white.py", " \n\t\n" * 50), DONE, check=documents(4)),
    Case("zero bytes only", _file("zero.py", bytes(5000)), DONE, check=documents(4)),
    Case("a byte order mark", _file("bom.py", b"\xef\xbb\xbfx = 1\n"), DONE, check=skips(0)),
    Case("UTF-16", _file("utf16.py", "x = 1\n".encode("utf-16")), DONE, check=skips(1)),
    Case("Latin-1", _file("latin.py", "é = 1\n".encode("latin-1")), DONE, check=skips(1)),
    Case("a surrogate in UTF-8", _file("surrogate.py", b"\xed\xa0\x80"), DONE, check=skips(1)),
    Case("one line of 3 MB", _file("line.py", "x = 1; " * 430_000), DONE, check=documents(4), is_costly=True),
    Case("one word of 1 MB", _file("word.py", "a" * 10**6), DONE, check=documents(4), is_costly=True),
    Case(
        "one line of 40 MB, cut",
        lambda place: [*_file("line.py", "x = 1; " * 5_700_000)(place), "--document-tokens", 100],
        EITHER,
        limit_s=240,
        is_costly=True,
    ),
    Case("special tokens spelled out", _file("special.py", "<s></s><s>" * 2000), DONE, check=documents(4)),
    Case("deeply nested code", _file("deep.py", "(" * 100_000), DONE, check=documents(4)),
    Case("all files empty", lambda place: [place.put("corpora/python/a.py", ""), *place.profile()][1:], EITHER),
    Case("all files skipped", lambda place: [place.put("corpora/python/a.py", b"\xff"), *place.profile()][1:], EITHER),
    Case("escape sequences in texts", _named_triggers, DONE),
    Case("escape sequences in skipped names", _skipped_name, DONE, check=skips(2)),
    Case("a glob of nothing", lambda place: place.profile("--corpus", f"python={place.corpora()}::*.zzz")),
    Case("a glob upwards", lambda place: place.profile("--corpus", f"python={place.corpora()}::../../outside/*")),
    Case("a glob not closed", lambda place: place.profile("--corpus", f"python={place.corpora()}::[")),
    Case("a glob of stars", lambda place: place.profile("--corpus", f"python={place.corpora()}::{'*a' * 40}b")),
    Case("files become FIFOs", _many_files, DONE, during=_when_listed(_to_fifos)),
    Case("files become links out", _many_files, DONE, during=_when_listed(_to_links)),
    Case("files go away", _many_files, DONE, during=_when_listed(_gone)),
    Case("hf: of nothing", lambda place: place.profile("--corpus", "x=hf:")),
    Case("hf: upwards", lambda place: place.profile("--corpus", "x=hf:../../outside")),
    Case("hf: that isn't there", lambda place: place.profile("--corpus", "x=hf:no/such-dataset::text")),
    Case("jsonl, empty", _records("", good=False)),
    Case("jsonl, a blank line", _records("\n"), DONE, check=skips(1)),
    Case("jsonl, no JSON", _records("{x\n"), DONE, check=skips(1)),
    Case("jsonl, cut off", _records('{"text": "x'), DONE, check=skips(1)),
    Case("jsonl, deeply nested", _records(f'{{"text": "x", "more": {deep()}}}\n'), DONE, check=documents(3)),
    Case("jsonl, deeply nested alone", _records(deep() + "\n"), DONE, check=skips(1)),
    Case("jsonl, a number of 5,000 digits", _records(f'{{"text": {"9" * 5000}}}\n'), DONE, check=skips(1)),
    Case("jsonl, a list", _records("[1]\n"), DONE, check=skips(1)),
    Case("jsonl, a number", _records('{"text": 5}\n'), DONE, check=skips(1)),
    Case("jsonl, null", _records('{"text": null}\n'), DONE, check=skips(1)),
    Case("jsonl, no text", _records('{"other": "x"}\n'), DONE, check=skips(1)),
    Case("jsonl, a lone surrogate", _records('{"text": "\\ud800"}\n'), DONE, check=skips(1)),
    Case("jsonl, not UTF-8", _records(b'{"text": "\xff"}\n'), DONE, check=skips(1)),
    Case("jsonl, a byte order mark", _records(b'\xef\xbb\xbf{"text": "x"}\n'), DONE, check=documents(3)),
    Case("jsonl, binary", _records(bytes(range(256)) * 20), DONE),
    Case("jsonl, mistyped column", _records("", "::txet")),
    Case("jsonl, an empty column", _records("", "::"), DONE, check=documents(2)),
    Case("jsonl, a FIFO", _made("x.jsonl", b"fifo")),
    Case("jsonl, a folder", lambda place: place.profile("--corpus", f"x={place.put('x.jsonl/a.py').parent}"), DONE),
    Case("parquet, empty file", _made("x.parquet")),
    Case("parquet, no parquet", _made("x.parquet", b"PAR1" + bytes(50) + b"PAR1")),
    Case("parquet, a FIFO", _made("x.parquet", b"fifo")),
    Case("parquet, no rows", _parquet(_table(text=[]))),
    Case("parquet, good", _parquet(_table(text=["x = 1", "y = 2"])), DONE, check=documents(2)),
    Case("parquet, nulls", _parquet(_table(text=["x = 1", None])), DONE, check=skips(1)),
    Case("parquet, numbers", _parquet(_table(text=[1, 2]))),
    Case("parquet, mistyped column", _parquet(_table(text=["x = 1"]), "::txet")),
    Case("parquet, escape sequence in a column", _parquet(_table(**{"\x1b[31m": ["x = 1"]}))),
    Case("parquet, not UTF-8", _parquet(_invalid_text), DONE, check=skips(1)),
    *[
        Case(f"parquet, {kind}", _parquet(_typed(kind)), EITHER)
        for kind in ("binary", "list", "null", "dictionary", "large", "view", "struct")
    ],
    Case("parquet, 2 GiB in some kB", _parquet(_bomb), EITHER, limit_s=300, is_costly=True),
    Case(
        "jsonl, a record of 3 MB",
        _records(json.dumps({"text": "x = 1\n" * 500_000}) + "\n"),
        DONE,
        check=documents(3),
        is_costly=True,
    ),
]
