"""The door for Python: what it gives is what the store and the commands say, and its examples run."""

import doctest
import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mixtures import tiny_mixture
from pass_groups import add_agreement, add_embeddings, add_lens, add_losses

from neurotally.analysis import door, open_store, studies
from neurotally.jobs import profile
from neurotally.jobs.progress import Progress
from neurotally.profiler import store as stores
from neurotally.profiler.errors import InputError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def path(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("door")
    source = Path(json.__file__).read_text().splitlines(keepends=True)
    for name in ("c++", "python"):
        (folder / "corpora" / name).mkdir(parents=True)
        for number in range(12):
            text = "".join(source[12 * number : 12 * number + 20])
            (folder / "corpora" / name / f"{number}.py").write_text(text.upper() if name == "c++" else text)
    profile(
        str(model_folder), folder / "s", corpora=folder / "corpora", row_tokens=64, groups=3, triggers=4,
        keep_texts=True, progress=Progress(quiet=True),
    )  # fmt: skip
    for add in (add_losses, add_embeddings, add_lens, add_agreement):
        add(folder / "s")
    return folder / "s"


@pytest.fixture(scope="module")
def mixture_path(path: Path, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same text read by a mixture of experts."""
    folder = tmp_path_factory.mktemp("mixture")
    tiny_mixture("mixtral").save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    quiet = Progress(quiet=True)
    profile(str(folder / "model"), folder / "s", corpora=path.parent / "corpora", row_tokens=64, progress=quiet)
    return folder / "s"


def run_examples(text: str, path: Path) -> None:
    examples = doctest.DocTestParser().get_doctest(
        text, {"store": open_store(path), "open_store": open_store}, "", None, 0
    )
    assert examples.examples
    said: list[str] = []
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=said.append).failed == 0, said


@pytest.mark.parametrize("name", [*studies.STUDIES, "open_store", "corpora", "model", "counts", "to_xarray", "report"])
@pytest.mark.slow
def test_every_example_runs(name: str, path: Path, mixture_path: Path) -> None:
    thing = studies.study(name) if name in studies.STUDIES else getattr(door.Store, name, None) or open_store
    run_examples(inspect.getdoc(thing) or "", mixture_path if name == "routing" else path)


@pytest.mark.parametrize("name", list(studies.STUDIES))
@pytest.mark.slow
def test_every_study_is_a_method_that_says_what_it_takes(name: str, path: Path) -> None:
    store = open_store(path)
    assert name in dir(store)
    method = getattr(store, name)
    assert method.__name__ == name
    stated = inspect.signature(method).parameters
    assert "store" not in stated
    assert all(f"  {parameter}: " in method.__doc__ for parameter in stated)


def test_methods_give_what_commands_print(path: Path, run: Run) -> None:
    store = open_store(path)
    asked = ("--per-corpus", 5, "--quantile", 0.6)
    assert store.lape(per_corpus=5, quantile=0.6).document == json.loads(run("lape", path, *asked, "--json")[1])
    result = store.profiles(("c++", "python"), 0.6, per_corpus=5)
    assert str(result).strip() == run("profiles", path, *asked)[1].strip()


def test_arrays_are_the_stores(path: Path) -> None:
    store = open_store(path)
    everything = store.to_xarray()
    assert everything.corpus.values.tolist() == list(store.corpora) == ["c++", "python"]
    for name in store.corpora:
        arrays = stores.read_corpus(path, name)
        one = everything.sel(corpus=name)
        assert (one.active.values == arrays["active"].sum(axis=0)).all()
        assert (one.coefficient_sum.values == arrays["coefficient_sum"]).all()
        assert int(one.tokens) == arrays["tokens"].sum()
        alone = store.to_xarray(name)
        assert alone.neuron.values.tolist() == list(range(48))
        assert np.array_equal(alone.trigger_value.values, arrays["trigger_value"], equal_nan=True)
    assert store.counts(["c++", "python"]).tokens_C.tolist() == [int(n) for n in everything.tokens]


def test_what_is_not_there_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no store"):
        open_store(tmp_path)
    store: Any = open_store(path)
    with pytest.raises(AttributeError, match=r"a Store has no 'lap'; its studies are lape,"):
        store.lap  # noqa: B018
    with pytest.raises(TypeError, match="unexpected keyword argument 'per_corpora'"):
        store.lape(per_corpora=3)
    assert str(path) in repr(store)


@pytest.mark.slow
def test_the_door_loads_no_torch(path: Path) -> None:
    code = (
        "import sys; from neurotally.analysis import open_store; early = set(sys.modules)\n"
        f"store = open_store({str(path)!r}); store.lape(quantile=0.6, per_corpus=3).frame()\n"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules],"
        " [name for name in ('zarr', 'pandas', 'matplotlib', 'numpy') if name in early])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[] []\n"
