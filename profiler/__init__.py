"""One process: corpora, units, batches, a model and its hook points, what is read there, the store. Never imports ray.

    from neurotally.profiler import load_model, switched_off, read_neurons

Each is loaded when it is first asked for: importing this package loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurotally.profiler.model.interventions import switched_off as switched_off
    from neurotally.profiler.model.load import load_model as load_model
    from neurotally.profiler.model.reading import read_neurons as read_neurons

_WHERE = {"load_model": "load", "switched_off": "interventions", "read_neurons": "reading"}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.model.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
