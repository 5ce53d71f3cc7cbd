"""The compiled CPU path: built once, found again, and done without where there is no compiler."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from neurotally.kernels import compiled, tally
from neurotally.kernels.layer_tally import LayerTally

CXX = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(CXX is None, reason="no C++ compiler here")


USES = "from neurotally.kernels import compiled; print(compiled.build()); assert compiled.library()"


@pytest.fixture(scope="module")
def quick_compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One that optimises nothing, for tests of where a library lies: three times as quick."""
    wrapper = tmp_path_factory.mktemp("compiler") / "c++"
    wrapper.write_text(f'#!/bin/sh\nexec {CXX} "$@" -O0\n')
    wrapper.chmod(0o755)
    return str(wrapper)


@pytest.fixture
def cache(quick_compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CXX", quick_compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "neurotally"


@pytest.fixture(scope="module")
def built(quick_compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that is sound, to be copied into a cache."""
    home = tmp_path_factory.mktemp("built")
    return Path(run_python(USES, XDG_CACHE_HOME=str(home), CXX=quick_compiler).stdout.strip())


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )


@needs_compiler
@pytest.mark.slow
def test_builds_once_and_again_after_a_change(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "compiled.log"
    wrapper = tmp_path / "compiler"
    wrapper.write_text(f'#!/bin/sh\ncase "$*" in *tally.cpp*) echo x >> {log};; esac\nexec {CXX} "$@" -O0\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", str(wrapper))
    first = compiled.build()
    assert first.parent == cache
    assert compiled.build() == first
    assert log.read_text() == "x\n"

    edited = tmp_path / "tally.cpp"
    edited.write_text(compiled.SOURCE.read_text() + "\n// edited\n")
    monkeypatch.setattr(compiled, "SOURCE", edited)
    assert compiled.build() != first
    assert log.read_text() == "x\nx\n"
    assert sorted(path.suffix for path in cache.iterdir()) == [".so", ".so"]


@needs_compiler
@pytest.mark.slow
def test_two_processes_may_build_at_once(cache: Path) -> None:
    both = [subprocess.Popen([sys.executable, "-c", USES], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len(list(cache.iterdir())) == 1


@needs_compiler
@pytest.mark.parametrize("damage", ["cut off", "emptied", "a byte changed", "others may write", "a link"])
@pytest.mark.slow
def test_a_library_that_is_not_sound_is_built_again(damage: str, built: Path, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(built.parent, cache)
    kept, content = cache / built.name, built.read_bytes()
    if damage == "others may write":
        kept.chmod(0o777)
    elif damage == "a link":
        kept.rename(tmp_path / "elsewhere.so")
        kept.symlink_to(tmp_path / "elsewhere.so")
    else:
        kept.write_bytes({"cut off": content[: len(content) // 2], "emptied": b""}.get(damage, content[:-1] + b"!"))
    again = compiled.build()
    assert again.parent == cache
    assert not again.is_symlink()
    assert again.stat().st_mode & 0o777 == 0o700
    assert again.stat().st_size == len(content)


@needs_compiler
@pytest.mark.slow
def test_a_library_that_is_sound_is_not_built_again(built: Path, cache: Path) -> None:
    shutil.copytree(built.parent, cache)
    before = (cache / built.name).stat().st_mtime_ns
    assert Path(run_python(USES).stdout.strip()) == cache / built.name
    assert (cache / built.name).stat().st_mtime_ns == before


@needs_compiler
@pytest.mark.slow
def test_others_may_not_write_to_the_cache(cache: Path) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    run_python(USES)
    assert cache.stat().st_mode & 0o777 == 0o755


@needs_compiler
@pytest.mark.parametrize("home", ["no home", "not a folder", "another user's"])
@pytest.mark.slow
def test_without_a_cache_the_library_is_built_for_the_process(home: str, quick_compiler: str, tmp_path: Path) -> None:
    code, place = USES, str(tmp_path)
    if home == "no home":  # nor a user who has one
        code = f"import os, pwd; os.environ.pop('HOME', 0); pwd.getpwuid = {{}}.__getitem__; {USES}"
        place = ""
    elif home == "not a folder":
        place = "/dev/null"
    elif os.getuid() == 0:
        (tmp_path / "neurotally").mkdir()
        os.chown(tmp_path / "neurotally", 54321, 54321)
    else:
        pytest.skip("only root can make a folder another user's")
    result = run_python(code, XDG_CACHE_HOME=place, CXX=quick_compiler)
    built = Path(result.stdout.strip())
    assert built.parent.name.startswith("neurotally-")
    assert not built.parent.exists()  # it went with the process
    (line,) = result.stderr.splitlines()
    assert "the compiled CPU kernels can't be kept, set XDG_CACHE_HOME" in line


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_works_in_torchs_own_threads() -> None:
    code = """
import os, torch
from pathlib import Path
from neurotally.kernels import tally
torch.set_num_threads(3)
torch.ones(10**6).exp()
before = len(os.listdir("/proc/self/task"))
kind = torch.ones(2, 50, dtype=torch.uint8)
tally.tally_layer(torch.nn.ReLU(), torch.ones(2, 50, 1000), None, kind, tally.LayerTally.empty(1000))
runtimes = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
print(before, len(os.listdir("/proc/self/task")), len(runtimes))
"""
    before, after, num_runtimes = run_python(code).stdout.split()
    assert int(before) == int(after) >= 3
    assert num_runtimes == "1"


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> list[compiled.Library]:
    """One for each set of flags."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("flags")))
        for flags in compiled._FLAG_SETS:
            patch.setattr(compiled, "_FLAG_SETS", (flags,))
            made.append(compiled.Library(compiled.build()))
    return made


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.slow
def test_every_set_of_flags_gives_the_same_bits(
    libraries: list[compiled.Library], monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    gate_BTF, up_BTF = (torch.randn(2, 45, 123, generator=generator).mul(3).to(dtype) for _ in range(2))
    kind_BT = torch.randint(0, 3, (2, 45), generator=generator).to(torch.uint8)
    results = []
    for library in libraries:
        monkeypatch.setattr(tally, "library", lambda library=library: library)
        into = LayerTally.empty(123)
        h_BTF, maxima = tally.tally_layer(torch.nn.SiLU(), gate_BTF, up_BTF, kind_BT, into)
        results.append([h_BTF, *into.values(), *maxima])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_compiler
@pytest.mark.parametrize(
    ("c_type", "first", "second"),
    [
        ("int64_t", "active", "active_special"),
        ("double", "coefficient_sum_absolute", "coefficient_sum_squares"),
        ("float", "coefficient_max", "coefficient_min"),
    ],
)
@pytest.mark.slow
def test_a_loop_that_adds_up_in_another_order_than_the_table_is_refused(
    c_type: str, first: str, second: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (f"X({c_type}, {name})" for name in (first, second))
    swapped = compiled.SOURCE.read_text().replace(one, "X(?)").replace(other, one).replace("X(?)", other)
    (tmp_path / "tally.cpp").write_text(swapped)
    monkeypatch.setattr(compiled, "SOURCE", tmp_path / "tally.cpp")
    with pytest.raises(AssertionError, match=f"{second};.* {first};.*, statistics.py says .*: make them the same"):
        compiled.build()


FALLS_BACK = """
import torch
from neurotally.kernels import tally, triggers
for _ in range(3):
    into = tally.LayerTally.empty(7)
    kind = torch.ones(2, 5, dtype=torch.uint8)
    h, maxima = tally.tally_layer(torch.nn.ReLU(), torch.ones(2, 5, 7), None, kind, into)
    lists = triggers.LayerTriggers(7, 2, "cpu", None)
    lists.add(maxima, kind, kind)
    assert into["active"].tolist() == [10] * 7 and len(lists.best().value_N) == 7
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": "", "CXX": ""}, "no C++ compiler found (looked for c++, g++, clang++); install g++, or set CXX"),
        ({"CXX": "/nowhere/g++ -m64"}, "no C++ compiler found (looked for /nowhere/g++ -m64)"),
        ({"CXX": "false"}, "false could not build tally.cpp: exit status 1"),
    ],
    ids=["no compiler", "CXX is not there", "compiler fails"],
)
@pytest.mark.slow
def test_without_a_compiler_pytorch_does_it_after_one_line(environment: dict[str, str], reason: str) -> None:
    lines = run_python(FALLS_BACK, **environment).stderr.splitlines()
    assert len(lines) == 1
    assert reason in lines[0]
    assert "plain PyTorch" in lines[0]


def test_build_says_why_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(compiled.BuildError, match="/nowhere/g"):
        compiled.build()


@pytest.mark.slow
def test_importing_needs_torch_only_and_does_nothing(cache: Path) -> None:
    code = (
        "import sys; from neurotally.kernels import tally, triggers, compiled, activations; "
        "print([name for name in ('ray', 'zarr', 'transformers', 'xarray', 'triton') if name in sys.modules])"
    )
    assert run_python(code).stdout.strip() == "[]"
    assert not cache.exists()
