"""Hostile stores: roots and groups edited, names and paths that lead out, code in codecs, links."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench.attack.case import EITHER, Case, Outcome, Place, deep, edited, rewritten

Arguments = Callable[[Place], list[object]]
_ESCAPE = "\x1b]0;owned\x07\x1b[31m"
_HTML = "<script>alert(1)</script>"


def _store(change: Callable[[Place, Path], object], *command: object) -> Arguments:
    """A copy of the finished store, changed, and a command on it: its name, then what follows the store."""

    def arguments(place: Place) -> list[object]:
        path = place.store()
        change(place, path)
        name, *rest = command or ("lape",)
        if name == "profile":
            return place.material.command("profile", path)
        return [name, path, *[str(argument).format(here=place.folder) for argument in rest]]

    return arguments


def _root(content: str | bytes) -> Callable[[Place, Path], object]:
    return lambda place, path: (path / "zarr.json").write_bytes(
        content.encode() if isinstance(content, str) else content
    )


def _in_root(change: Callable[[dict[str, Any]], object]) -> Callable[[Place, Path], object]:
    """Edit the root's document in place."""

    def edit(_place: Place, path: Path) -> None:
        root = json.loads((path / "zarr.json").read_text())
        change(root)
        (path / "zarr.json").write_text(json.dumps(root))

    return edit


def _attribute(name: str, value: object) -> Callable[[Place, Path], object]:
    return _in_root(lambda root: root["attributes"].__setitem__(name, value))


def _corpus_attribute(name: str, value: Callable[[Place], object]) -> Callable[[Place, Path], object]:
    """Of every corpus."""

    def edit(place: Place, path: Path) -> None:
        def change(root: dict[str, Any]) -> None:
            for group, document in root["consolidated_metadata"]["metadata"].items():
                if group.startswith("corpora/") and group.count("/") == 1:
                    document["attributes"][name] = value(place)

        _in_root(change)(place, path)

    return edit


def _renamed(name: str) -> Callable[[Place, Path], object]:
    """A corpus of another name in the root."""

    def change(root: dict[str, Any]) -> None:
        metadata = root["consolidated_metadata"]["metadata"]
        for key in [key for key in metadata if key == "corpora/c" or key.startswith("corpora/c/")]:
            metadata[key.replace("corpora/c", f"corpora/{name}", 1)] = metadata.pop(key)

    return _in_root(change)


def _document_names(
    make: Callable[[Place], str], folder: Callable[[Place], str] | None = None
) -> Callable[[Place, Path], object]:
    """Every document of every corpus has a hostile name, in a source folder of the store's own choice."""

    def change(place: Place, path: Path) -> None:
        for corpus in ("c", "go", "python"):
            name = make(place)
            rewritten(
                path, f"corpora/{corpus}", document_name=lambda names, name=name: np.array([name] * len(names), object)
            )
        if folder is not None:
            _corpus_attribute("source_path", folder)(place, path)

    return change


class _Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path):
        self._marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._marker),)


def _old_format(place: Place, path: Path) -> None:
    """Groups of Zarr format 2 with a pickle filter, in place of the arrays."""
    for corpus in ("c", "go", "python"):
        folder = path / "corpora" / corpus
        for node in [folder, *(child for child in folder.iterdir() if child.is_dir())]:
            (node / "zarr.json").unlink()
        (folder / ".zgroup").write_text('{"zarr_format": 2}')
        for node in (child for child in folder.iterdir() if child.is_dir()):
            shutil.rmtree(node)
            node.mkdir()
            document = {
                "zarr_format": 2,
                "shape": [3],
                "chunks": [3],
                "dtype": "|O",
                "fill_value": None,
                "order": "C",
                "compressor": None,
                "filters": [{"id": "pickle"}],
            }
            (node / ".zarray").write_text(json.dumps(document))
            (node / "0").write_bytes(pickle.dumps(_Evil(place.marker)))


def _own_codec(place: Place, path: Path) -> None:
    for file in path.glob("corpora/*/active/zarr.json"):
        edited(file, codecs=[{"name": "numcodecs.pickle", "configuration": {}}])
        for chunk in (file.parent / "c").rglob("*"):
            if chunk.is_file():
                chunk.write_bytes(pickle.dumps(_Evil(place.marker)))


def _own_model(place: Place, path: Path) -> None:
    """The model that the store names has code of its own."""
    model = place.model()
    (model / "own.py").write_text(f"import os\nos.mkdir({str(place.marker)!r})\nT = None\n")
    edited(model / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.T", "own.T"]})
    _in_root(lambda root: root["attributes"]["model"].__setitem__("id", str(model)))(place, path)


def _fifo(name: str) -> Callable[[Place, Path], object]:
    def change(_place: Place, path: Path) -> None:
        (path / name).unlink()
        os.mkfifo(path / name)

    return change


def _fifo_documents(place: Place, path: Path) -> None:
    (place.folder / "pipes").mkdir()
    os.mkfifo(place.folder / "pipes" / "fifo.py")
    _document_names(lambda place: "fifo.py", lambda place: str(place.folder / "pipes"))(place, path)


def _link(name: str, target: Callable[[Place], Path]) -> Callable[[Place, Path], object]:
    """A link in place of a part of the store."""

    def change(place: Place, path: Path) -> None:
        link = path / name
        if link.is_dir():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target(place))

    return change


def _victim(place: Place) -> Path:
    return place.put("victim/corpora/c/precious", "precious").parents[2]


def _victim_lives(place: Place, _outcome: Outcome) -> str | None:
    path = place.folder / "victim" / "corpora" / "c" / "precious"
    return None if path.is_file() and path.read_text() == "precious" else "a file outside of the store is gone or empty"


def _lock_victim(place: Place) -> Path:
    _victim(place)
    return place.folder / "victim" / "corpora" / "c" / "precious"


def _huge_root(place: Place, path: Path) -> None:
    _in_root(
        lambda root: root["consolidated_metadata"]["metadata"].update(
            {f"corpora/x{n}": {"attributes": {"tokens": 1}} for n in range(100_000)}
        )
    )(place, path)


def _exists_or_not(name: str) -> Arguments:
    return _store(_document_names(lambda place: name, lambda place: str(place.outside)), "triggers", 0, 1)


_ROOTS: dict[str, str | bytes] = {
    "empty": "",
    "a list": "[]",
    "null": "null",
    "deeply nested": deep(),
    "not UTF-8": b"\xff\xfe{}",
    "zero bytes": bytes(100),
    "no keys": "{}",
}
_ATTRIBUTES: dict[str, tuple[str, object]] = {
    "schema 99": ("schema", 99),
    "schema as text": ("schema", "1"),
    "schema huge": ("schema", 10**40),
    "schema a list": ("schema", [1]),
    "schema an escape sequence": ("schema", _ESCAPE),
}
_MAYBE: dict[str, tuple[str, object]] = {
    "model null": ("model", None),
    "model a list": ("model", [1]),
    "model as text": ("model", "x"),
    "config null": ("config", None),
    "config a list": ("config", []),
    "tokenizer null": ("tokenizer", None),
    "versions null": ("versions", None),
    "model of a huge number of layers": ("model", {"num_layers": 10**12, "num_neurons": 10**12}),
}
_COMMANDS: tuple[tuple[object, ...], ...] = (
    ("status",),
    ("lape",),
    ("triggers", 0, 1),
    ("patterns",),
    ("report", "--out", "{here}/page.html"),
    ("profile",),
)
_TEXTS = (("triggers", 0, 1), ("report", "--out", "{here}/page.html"))


CASES = [
    *[
        Case(f"root {what}, {command[0]}", _store(_root(content), *command))
        for what, content in _ROOTS.items()
        for command in (("status",), ("lape",), ("profile",))
    ],
    *[Case(f"root with {what}", _store(_attribute(*change), "lape")) for what, change in _ATTRIBUTES.items()],
    *[
        Case(f"root with {what}, {command[0]}", _store(_attribute(*change), *command), EITHER)
        for what, change in _MAYBE.items()
        for command in _COMMANDS
    ],
    Case("root a FIFO", _store(_fifo("zarr.json"), "status")),
    Case("root of 100,000 corpora", _store(_huge_root, "status"), EITHER),
    Case(
        "metadata a list",
        _store(_in_root(lambda root: root["consolidated_metadata"].__setitem__("metadata", [])), "status"),
        EITHER,
    ),
    Case("no metadata", _store(_in_root(lambda root: root.__setitem__("consolidated_metadata", None)), "status")),
    *[
        Case(f"a corpus named {name!r}, {command[0]}", _store(_renamed(name), *command), EITHER)
        for name in ("../../outside", _ESCAPE, "..", _HTML.replace("/", ""))
        for command in (("status",), ("lape",))
    ],
    *[
        Case(f"names with escape sequences, {c[0]}", _store(_document_names(lambda place: f"{_ESCAPE}.py"), *c), EITHER)
        for c in _TEXTS
    ],
    *[
        Case(
            f"names with HTML, {c[0]}",
            _store(_document_names(lambda place: _HTML), *c),
            EITHER,
            check=lambda place, outcome: (
                "HTML of a name in the page"
                if _HTML.encode() in b"".join(p.read_bytes() for p in place.folder.glob("*.html"))
                else None
            ),
        )
        for c in _TEXTS
    ],
    *[
        Case(f"names upwards, {c[0]}", _store(_document_names(lambda place: "../../outside/secret.py"), *c), EITHER)
        for c in _TEXTS
    ],
    *[
        Case(f"names from the root, {c[0]}", _store(_document_names(lambda place: str(place.secret)), *c), EITHER)
        for c in _TEXTS
    ],
    *[Case(f"documents that are FIFOs, {c[0]}", _store(_fifo_documents, *c), EITHER) for c in _TEXTS],
    Case(
        "a document that is there and another",
        _exists_or_not("secret.py"),
        EITHER,
        check=lambda place, outcome: "tells a file that is there" if b"changed" in outcome.out + outcome.err else None,
        may_open_outside=True,
    ),
    Case("a document that isn't there", _exists_or_not("no-such.py"), EITHER),
    Case(
        "a source that is a device",
        _store(_corpus_attribute("source_path", lambda place: "/dev/zero"), "triggers", 0, 1),
        EITHER,
    ),
    Case(
        "a source that is a number", _store(_corpus_attribute("source_path", lambda place: 5), "triggers", 0, 1), EITHER
    ),
    Case(
        "skipped documents with escape sequences",
        _store(_corpus_attribute("skipped_documents", lambda place: [_ESCAPE] * 3), "status"),
        EITHER,
    ),
    *[
        Case(
            f"corpora of {name} {value!r}, {c[0]}",
            _store(_corpus_attribute(name, lambda place, value=value: value), *c),
            EITHER,
        )
        for name, value in (
            ("tokens", "many"),
            ("tokens", -5),
            ("tokens", 10**40),
            ("units", None),
            ("skipped", 5),
            ("skipped", [1]),
        )
        for c in (("status",), ("report", "--out", "{here}/page.html"))
    ],
    *[
        Case(f"format 2 with a pickle filter, {c[0]}", _store(_old_format, *c))
        for c in (("lape",), ("triggers", 0, 1), ("patterns",))
    ],
    # The page says which part it can't show.
    Case("format 2 with a pickle filter, report", _store(_old_format, "report", "--out", "{here}/page.html"), EITHER),
    Case("a codec that unpickles", _store(_own_codec, "lape")),
    *[Case(f"a model with code, {c[0]}", _store(_own_model, *c), EITHER) for c in _TEXTS],
    Case("a group that is a link out", _store(_link("corpora/c", lambda place: place.outside), "lape")),
    Case(
        "an array that is a link out",
        _store(_link("corpora/c/active/zarr.json", lambda place: place.secret), "lape"),
        EITHER,
    ),
    *[
        Case(f"the lock a link out, {c}", _store(_link(".run/lock", _lock_victim), c), EITHER, check=_victim_lives)
        for c in ("status", "profile")
    ],
    *[
        Case(f"the working folder a link out, {c}", _store(_link(".run", _victim), c), EITHER, check=_victim_lives)
        for c in ("status", "profile")
    ],
    Case(
        "the lock a FIFO",
        _store(
            lambda place, path: ((path / ".run/lock").unlink(missing_ok=True), os.mkfifo(path / ".run/lock")), "status"
        ),
        EITHER,
    ),
    Case(
        "the lock a folder",
        _store(
            lambda place, path: ((path / ".run/lock").unlink(missing_ok=True), (path / ".run/lock").mkdir()), "profile"
        ),
        EITHER,
    ),
    Case(
        "another run's session",
        _store(lambda place, path: (path / ".run/ray").write_bytes(b"\xff" * 100), "profile"),
        EITHER,
    ),
    Case(
        "progress of another kind",
        _store(lambda place, path: (path / ".run/progress.json").write_text("[]"), "status"),
        EITHER,
    ),
]
