"""The READMEs stay true: their Python runs, and their command lines are ones that the commands take."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from families import FAMILIES
from mixtures import MIXTURES
from stacks import STACKS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from neurotally.analysis.masking.losses_document import LEVEL
from neurotally.jobs import profile
from neurotally.jobs.cli import cli
from neurotally.jobs.demo.model import SHAPE
from neurotally.jobs.demo.run import RANDOM_DRAWS, RULE

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]


def readme_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of every `neurotally ...` in an indented block or in backticks, without the first."""
    text = text.replace("\\\n", " ")
    lines = re.findall(r"^ {4}(.*)$", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["neurotally"] and "..." not in words and words[1:2] != ["COMMAND"]:
                yield words[1:]


def test_there_is_one_for_every_folder() -> None:
    folders = {path.parent.name for path in READMES}
    assert {"kernels", "profiler", "jobs", "analysis"} <= folders
    assert all(f"{name}/README.md" in (ROOT / "README.md").read_text() for name in ("kernels", "profiler", "jobs"))


def test_as_many_architectures_are_tested_as_the_readme_says() -> None:
    words = " ".join((ROOT / "README.md").read_text().split())
    with_reference = {family.family or name for name, family in FAMILIES.items()} | set(MIXTURES)
    of = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert f"{len(with_reference & set(of))} of the {len(of)} architectures" in words
    assert "`python tests/bench/sweep_families.py`" in words
    stacks = {one.family or name for name, one in STACKS.items()}
    assert f"{len(stacks)} encoders and encoder-decoders" in words


def test_the_numbers_of_the_demo_and_of_defaults_are_those_of_the_readme() -> None:
    words = " ".join((ROOT / "README.md").read_text().split())
    layers, neurons = SHAPE["num_hidden_layers"], SHAPE["intermediate_size"]
    assert f"its {layers * neurons:,} neurons" in words
    assert f"this model of {layers} layers" in words
    assert f"finds {RULE.per_corpus} neurons specific to each language" in words
    assert f"more than {LEVEL} in both columns" in words
    assert ("five draws each" in words, RANDOM_DRAWS) == (True, 5)
    assert ("counted in ten parts (folds)" in words, profile.__kwdefaults__["groups"]) == (True, 10)


@pytest.mark.parametrize("readme", READMES, ids=readme_id)
def test_command_lines_are_taken(readme: Path) -> None:
    for words in command_lines(readme.read_text()):
        name, *rest = words
        command = cli.get_command(click.Context(cli), name)
        if name == "--help":
            continue
        assert command is not None, f"no command {name!r}"
        context = click.Context(command, info_name=name)
        command.make_parser(context).parse_args(list(rest))  # raises for an option that isn't there


@pytest.mark.slow
@pytest.mark.parametrize("readme", READMES, ids=readme_id)
@pytest.mark.slow
def test_python_runs(
    readme: Path, model_folder: Path, make_corpora: Any, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", readme.read_text(), re.MULTILINE | re.DOTALL)
    if not blocks:
        return
    corpora = make_corpora({"java": 12, "python": 12})
    (tmp_path / "sources").symlink_to(corpora)
    (tmp_path / "llama").symlink_to(model_folder)
    code, _, err = run("profile", model_folder, tmp_path / "llama.store", "--corpora", corpora, "--row-tokens", 64)
    assert code == 0, err
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
