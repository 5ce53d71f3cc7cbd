"""The layout: what may import what, and why `kernels/` has no __init__.py."""

import ast
import configparser
import os
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "profiler", "jobs", "analysis")


@cache
def imports(path: Path) -> set[str]:
    """Modules imported anywhere in a file, at the top or inside functions; `from x import y` may name one by y.

    What is imported for a type checker alone isn't imported.
    """
    found = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module if is_ours(module) else node.module for module in inner}
    return found


def is_ours(module: str) -> bool:
    """Whether it is a module or a package of ours, and no name within one."""
    head, _, rest = module.partition(".")
    place = ROOT.joinpath(*rest.split("."))
    return head == "neurotally" and (place.is_dir() or place.with_suffix(".py").is_file())


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("neurotally", *(parts[:-1] if parts[-1] == "__init__" else parts)))


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_kernels_has_no_init() -> None:
    # With one, `python` started here would import our folder for Hugging Face's `kernels` distribution, and
    # `from transformers import LlamaForCausalLM` would die; Ray workers put the working folder on sys.path too.
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_every_folder_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT) for folder in FOLDERS for path in files(folder)}
    names = {".".join(("neurotally", *folder.parts)) for folder in folders}
    assert set(config["options"]["packages"].split()) == names


SHARED = (
    "buckets", "corpus.documents", "corpus.matches", "corpus.sources", "corpus.streaming", "corpus.texts",
    "corpus.windows", "differences", "errors", "networks", "store", "visible", "whole_files",
)  # fmt: skip
"""Of the profiler, for the analysis: without torch."""
ALLOWED = {"kernels": {"kernels"}, "profiler": {"kernels", "profiler"}, "analysis": {"analysis", "profiler"}}


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_go_one_way(folder: str) -> None:
    for path in files(folder):
        for module in imports(path):
            head, _, rest = module.partition(".")
            assert head not in FOLDERS, f"{path}: bare import {module}"
            if head == "neurotally":
                assert rest.split(".")[0] in ALLOWED.get(folder, set(FOLDERS)), f"{path}: imports {module}"
                if folder == "analysis" and rest.startswith("profiler."):
                    assert rest.removeprefix("profiler.") in SHARED, f"{path}: imports {module}"


def test_no_files_import_each_other() -> None:
    graph = {name_of(path): imports(path) for folder in FOLDERS for path in files(folder)}
    assert "neurotally.profiler.store" in graph["neurotally.analysis.door"]  # imported as `from x import y`
    TopologicalSorter(graph).prepare()  # raises CycleError with the files in the circle


def test_only_the_ray_engine_and_its_connection_import_ray() -> None:
    importers = {path.name for folder in FOLDERS for path in files(folder) if "ray" in imports(path)}
    assert importers == {"ray_connection.py", "ray_engine.py"}


def test_kernels_import_torch_and_triton_only() -> None:
    for path in files("kernels"):
        heads = {module.partition(".")[0] for module in imports(path)} - set(sys.stdlib_module_names)
        assert heads <= {"torch", "triton", "numpy", "neurotally"}, path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("neurotally.jobs.cli", ("torch", "ray", "transformers", "zarr")),
        ("neurotally.profiler", ("torch", "ray", "transformers", "zarr", "numpy")),
        ("neurotally.profiler.store", ("torch", "ray", "transformers")),
        ("neurotally.analysis.languages.lape", ("torch", "ray", "transformers")),
        ("neurotally.jobs", ("torch", "ray", "transformers", "zarr")),
        ("neurotally.jobs.engines.ray_worker", ("torch", "transformers", "zarr")),
        ("neurotally.jobs.passes.neurons", ("ray",)),
        ("neurotally.analysis.studies", ("torch", "zarr", "matplotlib", "pandas", "numpy")),
    ],
)
@pytest.mark.slow
def test_importing_does_not_load(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
@pytest.mark.slow
def test_threads_that_wait_look_for_each_other_a_short_time(asked: dict[str, str], expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **asked}
    code = "import neurotally.jobs, torch"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{expected}'" in result.stderr


@pytest.mark.slow
def test_transformers_imports_from_the_root_beside_hugging_faces_kernels() -> None:
    code = "import kernels, transformers; from transformers import LlamaForCausalLM; print(kernels.__file__)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "site-packages" in result.stdout


@pytest.mark.parametrize(
    ("results", "folder"),
    [("results.csv", "kernels"), ("peers.csv", "kernels"), ("planted_concept.csv", "analysis"), ("demo.csv", ".")],
)
def test_the_readmes_tables_are_made_from_the_results(results: str, folder: str) -> None:
    command = [sys.executable, ROOT / "tests/bench/results_table.py", ROOT / "tests/bench" / results]
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.stdout.strip() in (ROOT / folder / "README.md").read_text()
    assert made.stdout.count("\n") > 3
