"""Build and load the CPU path: `tally.cpp`, compiled once by the system's C++ compiler and called through ctypes.

The library is kept in `$XDG_CACHE_HOME/neurotally` (`~/.cache/neurotally`) under a name made of a hash of its
source, the flags, and what the compiler says of itself and of this CPU; so an upgrade, another machine on the
same home directory or an edit gets a library of its own. The name ends in a hash of the library, so that one that was
cut off is built again and never loaded; nor is one that another user could have written. Where there is no such folder
the library is built for this process alone. A driver calls `library` before it starts workers.

Where there is no compiler, or it fails, one warning says why and the callers go on in plain PyTorch.
"""

import atexit
import ctypes
import functools
import hashlib
import logging
import os
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor  # which loads the OpenMP runtime that the library shares

from neurotally.kernels.statistics import STATISTICS

SOURCE = Path(__file__).with_name("tally.cpp")

_COMMON_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC", "-shared", "-Wno-psabi")
_FLAG_SETS = (("-march=native",), ())
"""Tried in order, with the same results; not every compiler knows the CPU it runs on."""
_C_TYPES = {"int64": "int64_t", "float64": "double", "float32": "float"}
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")

_log = logging.getLogger(__name__)
_Arguments = TypeVar("_Arguments", bound=ctypes.Structure)


class BuildError(RuntimeError):
    """Why there is no compiled CPU path."""


class Job(ctypes.Structure):
    """One call of `neurotally_tally`; the fields are explained in tally.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "tokens", "neurons")),
        ("pre", ctypes.c_void_p), ("pre_row", ctypes.c_int64), ("pre_token", ctypes.c_int64),
        ("up", ctypes.c_void_p), ("up_row", ctypes.c_int64), ("up_token", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("table", "activation", "out", "kind")),
        *((one.name, ctypes.c_void_p) for one in STATISTICS),
        *((name, ctypes.c_void_p) for name in ("row_value", "row_position")),
        *((name, ctypes.c_void_p) for name in ("run_first", "run_tokens", "run_neuron", "row")),
        *((name, ctypes.c_void_p) for name in ("weight", "weighted_coefficient_sum")),
        *((name, ctypes.c_int32) for name in ("dtype", "statistics", "threads")),
    )  # fmt: skip


class Offer(ctypes.Structure):
    """One call of `neurotally_offer`; the fields are explained in tally.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "tokens", "neurons", "num_triggers")),
        *((name, ctypes.c_void_p) for name in ("row_value", "row_position", "document", "position")),
        *((name, ctypes.c_void_p) for name in ("run_first", "run_neuron", "threshold")),
        *((name, ctypes.c_void_p) for name in ("value", "list_document", "list_position")),
        ("threads", ctypes.c_int32),
    )


class Insertion(ctypes.Structure):
    """One call of `neurotally_insert`; the fields are explained in tally.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("neurons", "num_triggers", "units")),
        *((name, ctypes.c_void_p) for name in ("count", "entry_value", "entry_document", "entry_position")),
        *((name, ctypes.c_void_p) for name in ("value", "document", "position")),
        ("threads", ctypes.c_int32),
    )


def addresses(tensors: Mapping[str, Tensor | None]) -> dict[str, int]:
    """Pointers for the fields of these names; a field without a tensor is null. The tensors must stay alive."""
    return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}


class Library:
    """The compiled loop, ready to call. Every pointer must stay alive until a call returns."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        self.tally = self._function("tally", Job)
        """Tally one layer of one batch."""
        self.offer = self._function("offer", Offer)
        """Offer the row maxima of one batch to a layer's lists of triggers."""
        self.insert = self._function("insert", Insertion)
        """Insert units' triggers into lists on the host."""
        self._check_statistics()
        self._use_openmp()

    def _function(self, name: str, structure: type[_Arguments]) -> Callable[[_Arguments], None]:
        function: Any = getattr(self._library, f"neurotally_{name}")
        function.argtypes, function.restype = [ctypes.POINTER(structure)], None
        return function  # type: ignore[no-any-return]

    def _check_statistics(self) -> None:
        """Compare what tally.cpp adds up, and in which order, with the table."""
        names = self._library.neurotally_statistics
        names.restype = ctypes.c_char_p
        ours = "".join(f"{_C_TYPES[one.dtype]} {one.name};" for one in STATISTICS)
        if (theirs := names().decode()) != ours:
            raise AssertionError(f"{SOURCE.name} adds up {theirs!r}, statistics.py says {ours!r}: make them the same")

    def _use_openmp(self) -> None:
        """Hand over the OpenMP runtime that torch has loaded; a torch without one works in one thread."""
        process = ctypes.CDLL(None)
        if all(hasattr(process, name) for name in _OPENMP):
            functions = [ctypes.cast(getattr(process, name), ctypes.c_void_p) for name in _OPENMP]
            self._library.neurotally_use_openmp(*functions)


def build() -> Path:
    """Compile the library unless it is in the cache, and return its path once it can be loaded.

    Takes about three seconds the first time on a machine. Raises BuildError with the reason where it can't be built.
    """
    compiler = _find_compiler()
    reasons = []
    for flags in _FLAG_SETS:
        try:
            path = _compile(compiler, flags)
            Library(path)
            return path
        except subprocess.CalledProcessError as error:
            lines = error.stderr.strip().splitlines() or [f"exit status {error.returncode}"]
            reasons.append(next((line for line in lines if "error" in line), lines[-1]))
        except OSError as error:
            reasons.append(str(error))
    raise BuildError(f"{' '.join(compiler)} could not build {SOURCE.name}: {reasons[0]}")


@functools.cache
def library() -> Library | None:
    """The compiled loop, built if need be; None, after one warning, where it can't be had."""
    try:
        return Library(build())
    except BuildError as error:
        _log.warning("neurotally: the CPU kernels run in plain PyTorch, which is slower: %s", error)
        return None


@functools.cache
def _folder(cache_home: str | None) -> Path:
    """Where compiled libraries are kept: a folder that this user alone can write to, or one of this process."""
    try:
        folder = Path(cache_home or Path.home() / ".cache") / "neurotally"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid():
            raise OSError(f"{folder} belongs to another user")
        if stat.S_IMODE(found.st_mode) & _OTHERS_WRITE:
            folder.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
        if not os.access(folder, os.W_OK):
            raise OSError(f"{folder} can't be written to")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        _log.warning("neurotally: the compiled CPU kernels can't be kept, set XDG_CACHE_HOME: %s", error)
        folder = Path(tempfile.mkdtemp(prefix="neurotally-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _is_sound(library_file: Path) -> bool:
    """Whether a kept library is whole, and nobody else's."""
    found = library_file.lstat()
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & _OTHERS_WRITE
    return is_ours and library_file.stem.endswith(_digest(library_file))


def _digest(library_file: Path) -> str:
    return hashlib.sha256(library_file.read_bytes()).hexdigest()[:24]


def _find_compiler() -> list[str]:
    """The compiler's command: $CXX, which may hold arguments, or the first that is installed."""
    commands = [shlex.split(os.environ.get("CXX", ""))] if os.environ.get("CXX") else [["c++"], ["g++"], ["clang++"]]
    for command in commands:
        if command and shutil.which(command[0]):
            return command
    raise BuildError(
        f"no C++ compiler found (looked for {', '.join(' '.join(command) for command in commands)}); "
        "install g++, or set CXX"
    )


def _compile(compiler: list[str], flags: tuple[str, ...]) -> Path:
    """The library for these flags, from the cache or compiled into it."""
    flags = (*_COMMON_FLAGS, *flags)
    # The predefined macros hold the compiler's version and every instruction set that -march=native turns on.
    macros = _run([*compiler, *flags, "-x", "c++", "-E", "-dM", os.devnull])
    key = hashlib.sha256(b"\0".join([SOURCE.read_bytes(), " ".join(flags).encode(), macros.encode()]))
    folder, name = _folder(os.environ.get("XDG_CACHE_HOME")), f"tally-{key.hexdigest()[:24]}"
    for kept in folder.glob(f"{name}-*.so"):
        if _is_sound(kept):
            return kept
        kept.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix="building-") as scratch:
        built = Path(scratch, "library.so")
        _run([*compiler, *flags, str(SOURCE), "-o", str(built)])
        built.chmod(0o700)
        path = folder / f"{name}-{_digest(built)}.so"
        os.replace(built, path)
    return path


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
