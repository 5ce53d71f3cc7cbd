"""The versions of what decides results."""

import contextlib
import platform
from importlib.metadata import PackageNotFoundError, version

_VERSIONED = ("neurotally", "torch", "transformers", "tokenizers", "numpy", "zarr", "triton")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, where installed."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
