"""Small real models, tokenizers and corpora, made once a session."""

import os
import random
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

# Threads only slow models as small as these; what the tests start inherits it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

Run = Callable[..., tuple[int, str, str]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One more than there are CPUs where tests of Ray and of killed runs are among them: they wait most of the time."""
    return (os.cpu_count() or 1) + ("not ray" not in config.option.markexpr)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line: its exit status, stdout and stderr."""
    from neurotally.jobs.cli import _main

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = _main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def workers_share_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of several workers have those of `several_workers` instead of Ray's."""
    from several_workers import SeveralWorkers

    from neurotally.jobs import run

    def make_engine(where: Any, model: Any, session_file: Path) -> SeveralWorkers:
        return SeveralWorkers(model, run.num_workers(where))

    monkeypatch.setattr(run, "_make_engine", make_engine)


def make_tokenizer(vocabulary: int = 600, bos: bool = True) -> Any:
    """A byte-level BPE tokenizer trained on a few files of the standard library."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = [str(path) for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-c]*.py"))]
    tokenizer.train(files, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture
def fragile() -> Any:
    """A tokenizer whose regular expression gives up on a run of letters that ends otherwise."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"(a+)+$"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpora of `stores`, to read."""
    from stores import FILES

    return lay_out(tmp_path_factory.mktemp("text") / "corpora", FILES)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A Llama of 2 layers, 48 neurons each, at random: an ordinary Hugging Face folder."""
    return save_llama(tmp_path_factory.mktemp("models") / "llama", tokenizer, seed=0)


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """The same with other weights."""
    return save_llama(tmp_path_factory.mktemp("models") / "other", tokenizer, seed=1)


def save_llama(folder: Path, tokenizer: Any, seed: int) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=0, eos_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_corpora(tmp_path: Path) -> Callable[..., Path]:
    """See `lay_out`; returns the folder of the corpora."""
    return partial(lay_out, tmp_path / "corpora")


def lay_out(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """Lay out corpora of short documents cut from the standard library: {name: number of documents}."""
    source = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text().splitlines(keepends=True)
    rng = random.Random(seed)
    for name, number in sizes.items():
        for index in range(number):
            start, length = rng.randrange(len(source) - 60), rng.choice([1, 2, 5, 20, 55])
            path = folder / name / f"{index % 3}" / f"{index}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {name} {index}\n" + "".join(source[start : start + length]))
    return folder
