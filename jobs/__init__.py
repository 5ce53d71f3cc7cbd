"""Where passes run: each is a function with the name and the options of its command.

>>> from neurotally.jobs import inspect, profile, embed, lens, agreement, ablate, mask

PyTorch is imported when one of them is called.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurotally.jobs.door import ablate, agreement, embed, inspect, lens, mask, profile

__all__ = ["ablate", "agreement", "embed", "inspect", "lens", "mask", "profile"]

if "OMP_WAIT_POLICY" not in os.environ:
    # PyTorch's threads, which wait for each other after every operation, look for each other some tens of microseconds
    # before they sleep. By default it is thirty times as long, which takes the cores from whoever they wait for
    # where other processes want them, too. PyTorch's OpenMP reads this once, when it is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.door"), name)
