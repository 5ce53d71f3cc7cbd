"""What is attacked: a model of two layers, three corpora of short documents, parallel texts; made from a seed."""

import contextlib
import io
import json
import os
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from bench.attack.launch import Settings
from conftest import make_tokenizer, save_llama

CORPORA = ("c", "go", "python")
PASSES = ("embed", "lens", "ablate", "agreement")
SMALL_TASKS: Settings = {
    "neurotally.jobs.door:profile": {"max_unit_bytes": 4000, "checkpoint_every_s": 0.0},
    "neurotally.jobs.door:embed": {"task_texts": 2},
    "neurotally.jobs.door:lens": {"task_prompts": 2},
    "neurotally.jobs.door:ablate": {"max_unit_bytes": 2000},
    "neurotally.jobs.door:agreement": {"max_unit_bytes": 2000},
}
"""Many units, tasks and checkpoints of little text."""
_LENGTHS = (1, 2, 5, 20, 55)
"""Lines of a document."""
_LINES = {
    "C": ("int {0} = {1};", ["int x = 1;", "char y;"]),
    "Java": ("var {0} = {1};", ["var x = 1;", "class S {}"]),
    "Python": ("{0} = {1}", ["x = 1", "class S:"]),
}
_KEYWORDS = {"C": ["int", "return", "struct"], "Python": ["print", "class", "def"]}
_IDS = 12


@dataclass(frozen=True)
class Material:
    """A folder of it."""

    folder: Path

    @property
    def model(self) -> Path:
        """A Llama of 2 layers, 48 neurons each, at random."""
        return self.folder / "model"

    @property
    def corpora(self) -> Path:
        """To profile."""
        return self.folder / "corpora"

    def command(self, name: str, store: Path, *more: object) -> list[object]:
        """The command line of `profile` or of one of PASSES."""
        held_out, parallel = self.folder / "heldout", self.folder / "parallel"
        options: dict[str, list[object]] = {
            "profile": ["--corpora", self.corpora, "--row-tokens", 64, "--groups", 3, "--triggers", 4],
            "embed": ["--parallel", parallel],
            "lens": ["--parallel", parallel, "--few-shot", self.folder / "few", "--keywords", self.folder / "words"],
            "ablate": ["--corpora", held_out, "--per-corpus", 6, "--quantile", 0.8, "--draws", 1],
            "agreement": ["--corpora", held_out, "--context-sizes", "1,5", "--lines", "1", "--positions", 2],
        }
        return [name, self.model, store, *options[name], *more]


def make_material(folder: Path, seed: int, documents: int) -> Material:
    """Lay it out, in a process of its own: tokenizers' threads would not survive the forks to come."""
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                _lay_out(folder, seed, documents)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"the material couldn't be made in {folder}")
    return Material(folder)


def _lay_out(folder: Path, seed: int, documents: int) -> None:
    save_llama(folder / "model", make_tokenizer(), seed)
    rng = random.Random(seed)
    for name in CORPORA:
        write_documents(folder / "corpora" / name, documents, rng)
        write_documents(folder / "heldout" / name, 24, rng)
    for language, (line, shots) in _LINES.items():
        (folder / "parallel" / language).mkdir(parents=True)
        (folder / "few").mkdir(exist_ok=True)
        (folder / "few" / f"{language.lower()}_fewshot.txt").write_text("\n".join(shots))
        for number in range(_IDS):
            text = line.format(f"{rng.choice(['count', 'size', 'name'])}{number}", rng.randrange(100))
            (folder / "parallel" / language / f"{number}.txt").write_text(f"{text}\n")
    (folder / "words").mkdir()
    for name, entries in _KEYWORDS.items():
        (folder / "words" / f"{name}.json").write_text(json.dumps({"name": name, "keywords": entries}))


def write_documents(folder: Path, number: int, rng: random.Random) -> None:
    """Documents of a few lines of the standard library, each its own."""
    lines = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text().splitlines(keepends=True)
    for index in range(number):
        start, length = rng.randrange(len(lines) - max(_LENGTHS)), rng.choice(_LENGTHS)
        path = folder / str(index % 3) / f"{index}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {folder.parent.name} {folder.name} {index}\n" + "".join(lines[start : start + length]))
