"""The door for Python: `open_store(path)` gives a `Store`, whose methods are the studies.

Nothing is read before it is asked for, and neither PyTorch nor a model is needed. What a method takes, its command
takes too, under the same names; `help(store.lape)` tells all.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurotally.analysis import studies
from neurotally.analysis.options import arguments, parameters, signature
from neurotally.analysis.result import Result
from neurotally.profiler.buckets import location, zarr_location

if TYPE_CHECKING:
    import xarray

    from neurotally.analysis.languages.counts import CorpusCounts

_NEURON = ("layer", "neuron")


def open_store(path: str | Path) -> "Store":
    """Open a store that `neurotally profile` left, by path or URL; InputError where there is none.

    >>> open_store(store.path).corpora == store.corpora
    True
    """
    from neurotally.profiler.store import store_attributes

    place = location(path)
    store_attributes(place)
    return Store(place)


class Store:
    """A store, to read. Beside what is below it has a method for every study: `dir(store)` lists them."""

    def __init__(self, path: Path):
        """`open_store` is the way to one."""
        self.path = path

    @property
    def corpora(self) -> tuple[str, ...]:
        """The finished corpora, in name order.

        >>> "python" in store.corpora
        True
        """
        from neurotally.profiler.store import committed_corpora

        return tuple(committed_corpora(self.path))

    @property
    def model(self) -> Mapping[str, Any] | None:
        """What the store says of its model: id, architecture, fingerprint and more; None for imported counts.

        >>> store.model["num_layers"]
        2
        """
        from neurotally.profiler.store import store_attributes

        model: Mapping[str, Any] | None = store_attributes(self.path).get("model")
        return model

    def counts(self, corpus: Sequence[str] = ()) -> "CorpusCounts":
        """Tokens, and tokens at which each neuron is active, of all finished corpora or of some: `tokens_C` [C] and
        `active_CLF` [C, L, F], uint64. InputError as of `lape`.

        >>> counts = store.counts()
        >>> counts.active_CLF.shape == (len(counts.corpora), 2, 48)
        True
        """
        from neurotally.analysis.languages.counts import read_counts

        return read_counts(self.path, corpus)

    def to_xarray(self, name: str | None = None) -> "xarray.Dataset":
        """The arrays of a corpus, with coordinates on layer and neuron; those of another group by `loss/ablate`.

        Without a name those by neuron of all corpora beside each other, with a coordinate `corpus`; counts are summed
        over groups.

        >>> data = store.to_xarray("python")
        >>> float(data.coefficient_max.sel(layer=1, neuron=5)) >= float(data.coefficient_min.sel(layer=1, neuron=5))
        True
        >>> store.to_xarray().active.dims
        ('corpus', 'layer', 'neuron')
        """
        import xarray

        if name is None:
            merged = [_by_neuron(self.to_xarray(corpus)) for corpus in self.corpora]
            return xarray.concat(merged, xarray.Variable("corpus", list(self.corpora)), join="exact")
        group = name if "/" in name else f"corpora/{name}"
        where, inside = zarr_location(self.path)
        at = {"group": f"{inside}/{group}", "consolidated": False} if inside else {"group": group}
        data = xarray.open_zarr(where, **at)
        return data.assign_coords({dimension: range(data.sizes[dimension]) for dimension in _NEURON
                                   if dimension in data.sizes})  # fmt: skip

    def report(self, path: str | Path, **settings: Any) -> Path:
        """Write one HTML page of all that the store holds; `settings` as of the command `report`. Its path.

        >>> store.report(store.path.parent / "page.html", neurons=2, triggers=2).stat().st_size > 100_000
        True
        """
        from neurotally.analysis.report.page import report
        from neurotally.profiler.whole_files import write_whole

        write_whole(Path(path), report(self.path, **arguments(report, settings)).html)
        return Path(path)

    def __getattr__(self, name: str) -> Callable[..., Result]:
        if name not in studies.STUDIES:
            raise AttributeError(f"a Store has no {name!r}; its studies are {', '.join(studies.STUDIES)}")
        return _method(name, self.path)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *studies.STUDIES]

    def __repr__(self) -> str:
        return f"open_store({str(self.path)!r})"


def _by_neuron(data: "xarray.Dataset") -> "xarray.Dataset":
    """The arrays by layer and neuron, and the tokens; groups summed."""
    wanted = [name for name, array in data.data_vars.items() if set(array.dims) <= {"group", *_NEURON}]
    return data[wanted].sum("group", keep_attrs=True) if "group" in data.sizes else data[wanted]


def _method(name: str, path: Path) -> Callable[..., Result]:
    """A study as a method, with its own signature and what each parameter means."""
    study = studies.study(name)
    own = signature(study)

    def method(*values: Any, **named: Any) -> Result:
        return studies.run(name, path, **own.bind(*values, **named).arguments)

    method.__name__ = method.__qualname__ = name
    method.__doc__ = "\n".join([
        *inspect.cleandoc(study.__doc__ or "").splitlines(),
        "",
        "Parameters:",
        *(f"  {parameter.name}: {parameter.option.help}" for parameter in parameters(study)),
    ])  # fmt: skip
    method.__signature__ = own  # type: ignore[attr-defined]
    return method
