"""Bad command lines: names, numbers, paths."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from bench.attack.case import DONE, EITHER, Case, Place

_HUGE = str(10**30)
_ESCAPE = "\x1b[31mred\x07"


def _corpus_name(name: str) -> Callable[[Place], list[object]]:
    return lambda place: place.profile("--corpus", f"{name}={place.corpora()}")


def _corpus_folder(*names: str | bytes) -> Callable[[Place], list[object]]:
    """A folder of corpora with such names."""

    def lay_out(place: Place) -> list[object]:
        for name in names:
            place.put(b"corpora/" + (name if isinstance(name, bytes) else name.encode()) + b"/a.py")
        return place.profile()

    return lay_out


def _profile(*options: object) -> Callable[[Place], list[object]]:
    def lay_out(place: Place) -> list[object]:
        place.corpora()
        return place.profile("--corpora", place.folder / "corpora", *options)

    return lay_out


def _read(*arguments: object) -> Callable[[Place], list[object]]:
    """A command on the finished store: its name, then what follows the store."""
    return lambda place: [arguments[0], place.finished, *arguments[1:]]


def _at(command: str, make: Callable[[Place], Path | str]) -> Callable[[Place], list[object]]:
    """A command on a store that is none."""

    def lay_out(place: Place) -> list[object]:
        path = make(place)
        place.corpora()
        rest: dict[str, list[object]] = {"triggers": [0, 0], "import": ["a=b"]}
        if command == "profile":
            return [command, place.material.model, path, "--corpora", place.folder / "corpora"]
        return [command, path, *rest.get(command, [])]

    return lay_out


def _fifo(place: Place) -> Path:
    os.mkfifo(place.folder / "fifo")
    return place.folder / "fifo"


def _socket(place: Place) -> Path:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(place.folder / "sock"))
    return place.folder / "sock"


def _folder_with(name: str, content: str = "") -> Callable[[Place], Path]:
    return lambda place: place.put(f"folder/{name}", content).parent


def _fifo_inside(place: Place) -> Path:
    (place.folder / "folder").mkdir()
    os.mkfifo(place.folder / "folder" / "zarr.json")
    return place.folder / "folder"


def _loop(place: Place) -> Path:
    (place.folder / "loop").symlink_to(place.folder / "loop")
    return place.folder / "loop"


def _out(*arguments: object) -> Callable[[Place], list[object]]:
    """A result that can't be written to {here}/..."""
    return lambda place: [
        arguments[0],
        place.finished,
        *[str(argument).format(here=place.folder) for argument in arguments[1:]],
    ]


_NAMES = {
    "with a slash": "a/b",
    "with a control character": "a\x01b",
    "with an escape sequence": _ESCAPE,
    "of 101 characters": "a" * 101,
    "of 300 bytes": "é" * 99 + "漢" * 60,
    "with a dot": ".a",
    "of two dots": "..",
    "with underscores": "__a",
    "zarr.json": "zarr.json",
    "with a newline": "a\nb",
    "empty": "",
    "not UTF-8": os.fsdecode(b"a\xff"),
    "turning the text": "a\u202eb",
    "a lone surrogate": "a\udc80",
}
_NUMBERS = {
    "--row-tokens": ("0", "-1", _HUGE, "1e9", "x", "129", ""),
    "--document-tokens": ("0", "-1", "x"),
    "--triggers": ("-1", "1025", _HUGE, "x"),
    "--groups": ("0", "65536", _HUGE, "x"),
    "--window-lines": ("0", "-1", "x"),
    "--max-files": ("0", "-1", "x"),
    "--random-init": ("-1", "x"),
    "--workers": ("0", "-1", "x"),
    "--device": ("tpu", ""),
    "--dtype": ("int8", ""),
    "--layout": ("rows", ""),
}
_ODD_BUT_FINE = {
    "--document-tokens": _HUGE,
    "--max-files": _HUGE,
    "--window-lines": _HUGE,
    "--random-init": _HUGE,
    "--triggers": "0",
}
_NO_STORES: dict[str, Callable[[Place], Path | str]] = {
    "nothing": lambda place: place.folder / "nothing",
    "a file": lambda place: place.put("file"),
    "a FIFO": _fifo,
    "a socket": _socket,
    "/dev/null": lambda place: "/dev/null",
    "a long path": lambda place: "a" * 5000,
    "an empty path": lambda place: "",
    "an escape sequence": lambda place: place.folder / _ESCAPE,
    "not UTF-8": lambda place: os.fsdecode(os.fsencode(place.folder) + b"/a\xff"),
    "a loop of links": _loop,
    "other things": _folder_with("thesis.tex"),
    "an empty zarr.json": _folder_with("zarr.json"),
    "zarr.json a FIFO": _fifo_inside,
}
_NEW_STORES = ("nothing", "an escape sequence", "not UTF-8")
"""Where `profile` may well make one."""

CASES = [
    *[Case(f"--corpus name {what}", _corpus_name(name)) for what, name in _NAMES.items()],
    Case("--corpus without =", lambda place: place.profile("--corpus", "x")),
    Case("--corpus without a source", lambda place: place.profile("--corpus", "x=")),
    Case("--corpus of nothing", lambda place: place.profile("--corpus", "x=/no/such/folder")),
    Case("--corpus of a text file", lambda place: place.profile("--corpus", f"x={place.put('x.txt')}")),
    Case("--corpus of a device", lambda place: place.profile("--corpus", "x=/dev/zero")),
    Case("--corpus of a FIFO", lambda place: place.profile("--corpus", f"x={_fifo(place)}")),
    Case("--corpus twice", lambda place: place.profile(*["--corpus", f"x={place.corpora()}"] * 2)),
    Case("names that differ in case", _corpus_folder("Go", "go")),
    Case("names NFC beside NFD", _corpus_folder("caf\u00e9", "cafe\u0301"), EITHER),
    Case("a folder of corpora with an escape sequence", _corpus_folder(_ESCAPE)),
    Case("a folder of corpora not UTF-8", _corpus_folder(b"a\xff")),
    Case("a folder of corpora with ::", _corpus_folder("a::b"), EITHER),
    Case("a folder of corpora with ~", _corpus_folder("~root"), EITHER),
    Case("no corpora", lambda place: ["profile", place.material.model, place.new]),
    Case("--corpora of nothing", lambda place: place.profile("--corpora", place.folder / "nothing")),
    Case("--corpora of a file", lambda place: place.profile("--corpora", place.put("file"))),
    Case("--corpora without a folder in it", lambda place: place.profile("--corpora", place.put("folder/file").parent)),
    *[Case(f"{o} {value!r}", _profile(o, value)) for o, values in _NUMBERS.items() for value in values],
    *[Case(f"{option} {value!r}", _profile(option, value), EITHER) for option, value in _ODD_BUT_FINE.items()],
    Case("windows and concat", _profile("--window-lines", 2, "--layout", "concat")),
    Case("no such option", _profile("--no-such")),
    Case("no such command", lambda place: ["no-such"]),
    Case("an escape sequence for a command", lambda place: [_ESCAPE]),
    Case("an empty command", lambda place: [""]),
    Case("a number with underscores", _profile("--groups", "1_0"), EITHER),
    Case("a number in other digits", _profile("--groups", "\u0663"), EITHER),
    *[
        Case(
            f"{command} of {what}",
            _at(command, make),
            EITHER if (command, what) in {("profile", w) for w in _NEW_STORES} else {2},
        )
        for command in ("status", "lape", "triggers", "profile")
        for what, make in _NO_STORES.items()
    ],
    *[
        Case(f"{command} of nothing", _at(command, _NO_STORES["nothing"]))
        for command in ("sweep", "stability", "profiles", "mexa", "report", "patterns")
    ],
    *[
        Case(f"lape {o} {v}", _read("lape", o, v))
        for o, v in (
            ("--per-corpus", "0"),
            ("--top-rate", "nan"),
            ("--top-rate", "2"),
            ("--quantile", "nan"),
            ("--quantile", "1.5"),
            ("--quantile", "inf"),
            ("--select", "x"),
        )
    ],
    Case("lape --per-corpus huge", _read("lape", "--per-corpus", _HUGE), EITHER),
    Case("lape --archive alone", _out("lape", "--archive", "{here}/x.npz")),
    Case("lape --out into nothing", _out("lape", "--out", "{here}/no/x.json")),
    Case("lape --out to a folder", _out("lape", "--out", "{here}")),
    Case("lape --out to a full disk", _out("lape", "--out", "/dev/full")),
    Case("lape --figure of no kind", _out("lape", "--figure", "{here}/x.xyz")),
    Case("lape --figure into nothing", _out("lape", "--figure", "{here}/no/x.png")),
    Case("report --out into nothing", _out("report", "--out", "{here}/no/x.html")),
    Case("report --concepts of nothing", _out("report", "--out", "{here}/x.html", "--concepts", "{here}/no.json")),
    *[
        Case(f"triggers {layer} {neuron}", _read("triggers", layer, neuron))
        for layer, neuron in (("99", "0"), ("0", "48"), ("0", _HUGE), (_HUGE, "0"), ("--", "-1"), ("x", "0"))
    ],
    Case("triggers of no such corpus", _read("triggers", 0, 0, "--corpus", _ESCAPE)),
    Case("triggers --window huge", _read("triggers", 0, 1, "--window", _HUGE), EITHER),
    Case("triggers --top huge", _read("triggers", 0, 1, "--top", _HUGE), EITHER),
    Case("triggers --model of nothing", _out("triggers", "0", "1", "--model", "{here}/nothing")),
    Case("triggers --corpora of nothing", _out("triggers", "0", "1", "--corpora", "{here}/nothing")),
    *[
        Case(f"patterns {o} {v}", _read("patterns", o, v))
        for o, v in (("--alpha", "0"), ("--alpha", "nan"), ("--seed", "-1"), ("--window", "0"), ("--null", "/no/such"))
    ],
    Case("patterns --seed huge", _read("patterns", "--seed", _HUGE), EITHER),
    Case("patterns --null of a trained model", lambda place: ["patterns", place.finished, "--null", place.finished]),
    *[
        Case(f"stability {o} {v}", _read("stability", o, v))
        for o, v in (("--samples", "0"), ("--samples", "3"), ("--orders", "x"))
    ],
    Case("stability --seed -1", _read("stability", "--seed", "-1"), EITHER),
    Case("compare with nothing", _read("compare", "/no/such")),
    Case("mexa of no such name", _read("mexa", "--name", "../corpora/c")),
    Case("bench of nothing", lambda place: ["bench"]),
    Case("bench of no such shape", lambda place: ["bench", "--shape", _ESCAPE]),
    Case(
        "bench of zero layers",
        lambda place: ["bench", "--shape", place.put("c.json", '{"model_type": "llama", "num_hidden_layers": 0}')],
    ),
    Case("bench of a deep JSON", lambda place: ["bench", "--shape", place.put("c.json", "[" * 200_000)]),
    Case("demo in a file", lambda place: ["demo", place.put("file")]),
    Case("version", lambda place: ["--version"], DONE),
]
