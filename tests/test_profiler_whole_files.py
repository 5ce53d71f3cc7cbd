"""Files are whole: the old one or the new one, never a part, and nothing left beside them."""

import resource
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from dying import forked

from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import read_json, replace_json, whole_file, write_whole

LARGE = "x" * 100_000


def picture(path: Path) -> None:
    from matplotlib.figure import Figure

    from neurotally.analysis.render.charts import save_figure

    figure = Figure()
    figure.subplots().imshow(np.random.default_rng(0).random((99, 99)))
    save_figure(figure, path)


def document(path: Path) -> None:
    from neurotally.jobs.commands.results import show

    show({"numbers": list(range(20_000))}, "", as_json=False, out=path)


def archive(path: Path) -> None:
    from neurotally.analysis.keys.patterns_study import save_key_patterns

    distinct = np.random.default_rng(0).integers(0, 2**60, (200, 200))
    counts = SimpleNamespace(distinct=distinct, statistics=[], count_S=np.empty((0, 1)))
    corpora: Any = [SimpleNamespace(corpus="c", counts=counts, p_SLF=None)]
    save_key_patterns(corpora, path)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text.html": lambda path: write_whole(path, LARGE),
    "document.json": document,
    "json.json": lambda path: replace_json(path, [LARGE]),
    "picture.png": picture,
    "archive.npz": archive,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("old", [b"as it was", None], ids=["there", "not there"])
@pytest.mark.slow
def test_a_full_disk_leaves_the_old_file(name: str, old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if old is not None:
        path.write_bytes(old)
    WRITERS[name](tmp_path / f"whole-{name}")
    assert (tmp_path / f"whole-{name}").stat().st_size > 10_000

    def on_a_small_disk() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
        WRITERS[name](path)

    assert forked(on_a_small_disk) == 1  # an OSError
    assert {one.name for one in tmp_path.iterdir()} == {f"whole-{name}"} | ({name} if old is not None else set())
    assert old is None or path.read_bytes() == old


def test_links_are_followed_and_modes_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_to_as_it_is() -> None:
    write_whole(Path("/dev/null"), "gone")
    assert not Path("/dev/null").is_file()


def test_an_error_of_the_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        with whole_file(path) as partial:
            partial.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_damaged_json_is_named(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none") is None
    for content in ("", "{", "\x00", "[" * 100_000):
        (tmp_path / "file").write_text(content)
        with pytest.raises(InputError, match="file is damaged"):
            read_json(tmp_path / "file")
    (tmp_path / "file").write_text("[]")
    with pytest.raises(InputError, match="file is damaged: it lacks 'key'"):
        read_json(tmp_path / "file", key=str)
    for value in ("1", None, [1], -1, 1.0, True):
        replace_json(tmp_path / "file", {"key": value})
        with pytest.raises(InputError, match="file is damaged: 'key' is "):
            read_json(tmp_path / "file", key=int)
    replace_json(tmp_path / "file", {"key": 0})
    assert read_json(tmp_path / "file", key=int) == {"key": 0}
