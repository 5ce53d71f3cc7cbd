"""The demo's model: trained a few steps on made-up text, saved, loaded as its users load it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.heldout import heldout_loss
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally.jobs.demo import model as demo_model
from neurotally.jobs.demo.model import ROW_TOKENS, VOCABULARY, train
from neurotally.profiler.errors import InputError

STEPS = 12
LINES = {
    "english": "The {} of the user is in the {} that you {} with.",
    "python": "def {}(self, {}):\n    return self.{}[0]",
}


def write_text(folder: Path, seed: int, num_files: int = 12) -> Path:
    """Made-up text in two languages; made-up words make a full vocabulary."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 9)) for _ in range(1500)]
    for language, line in LINES.items():
        (folder / language).mkdir(parents=True)
        for index in range(num_files):
            text = "".join(line.format(*rng.choice(words, 3)) + "\n" for _ in range(60))
            (folder / language / f"{index}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "train", seed=0)


@pytest.fixture(scope="module")
def trained(text: Path) -> tuple[Path, list[float]]:
    folder = text.parent / "model"
    return folder, train(text, folder, steps=STEPS, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_is_an_ordinary_model_folder(trained: tuple[Path, list[float]]) -> None:
    folder = trained[0]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] == ROW_TOKENS
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.num_parameters() == sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
    assert 2_000_000 < model.num_parameters() < 4_000_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (folder / "model.safetensors").stat().st_size >= 4 * model.num_parameters()


@pytest.mark.slow
def test_tokenizer_survives_saving(trained: tuple[Path, list[float]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    model = AutoModelForCausalLM.from_pretrained(trained[0])
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY
    assert tokenizer.all_special_ids == [tokenizer.bos_token_id]
    for text in ("def f(x):\n\treturn [x, 'é']  # 数 🙂", "  two  spaces , and a stop .", "<t> a\r\n"):
        ids = tokenizer(text)["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.slow
def test_training_lowers_the_loss(trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    folder, of_training = trained
    assert len(of_training) == STEPS
    assert of_training[-1] < of_training[0] - 0.5
    heldout = write_text(tmp_path / "heldout", seed=1, num_files=3)
    losses = heldout_loss(folder, heldout, rows_per_language=4, progress=False)
    assert sorted(losses) == sorted(LINES)
    assert max(losses.values()) < np.log(VOCABULARY)


@pytest.mark.slow
def test_loss_counts_every_token_but_pads(trained: tuple[Path, list[float]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained[0]).eval()
    rows = [np.arange(5, 5 + length) for length in (2, 40, 100)]
    with torch.inference_mode():
        alone = [model(torch.tensor(row)[None], labels=torch.tensor(row)[None]).loss.item() for row in rows]
        together = demo_model._loss(model, rows).item()
    assert together == pytest.approx(np.average(alone, weights=[len(row) - 1 for row in rows]), rel=1e-5)


@pytest.mark.slow
def test_same_seed_gives_the_same_files(text: Path, trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import torch; from neurotally.jobs.demo.model import train; "
        "torch.set_num_threads(int(sys.argv[3])); "
        f"train(Path(sys.argv[1]), Path(sys.argv[2]), steps={STEPS}, progress=False)"
    )  # another process: other string hashes, other memory
    threads = str(torch.get_num_threads())
    subprocess.run([sys.executable, "-c", code, str(text), str(tmp_path / "again"), threads], check=True)
    assert contents(tmp_path / "again") == contents(trained[0])


@pytest.mark.slow
def test_another_seed_gives_other_weights(text: Path, trained: tuple[Path, list[float]], tmp_path: Path) -> None:
    train(text, tmp_path / "other", steps=1, seed=1, progress=False)
    assert contents(tmp_path / "other")["model.safetensors"] != contents(trained[0])["model.safetensors"]


@pytest.mark.slow
def test_leaves_the_callers_random_state_alone(text: Path, tmp_path: Path) -> None:
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    train(text, tmp_path / "model", steps=1, progress=False)
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert torch.get_default_dtype() is torch.float32


def test_languages_take_turns_and_deal_every_row_before_any_twice() -> None:
    rows = {"a": [np.array([0, i]) for i in range(5)], "b": [np.array([1, i]) for i in range(3)]}
    dealt = [tuple(row) for row, _ in zip(demo_model._deal(rows, np.random.default_rng(0)), range(20), strict=False)]
    for turn in range(0, 20, 2):
        assert {dealt[turn][0], dealt[turn + 1][0]} == {0, 1}
    assert sorted(row for row in dealt if row[0] == 0) == sorted([(0, i) for i in range(5)] * 2)
    assert len({row for row in dealt if row[0] == 1}) == 3


@pytest.mark.slow
def test_rows_are_the_documents_cut(trained: tuple[Path, list[float]]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained[0])
    document = "".join(f"value {i} is in the list\n" for i in range(200))
    rows = demo_model._cut_rows(tokenizer, [document, ""])
    assert [len(row) for row in rows[:-1]] == [ROW_TOKENS] * (len(rows) - 1)
    assert np.concatenate(rows).tolist() == tokenizer(document)["input_ids"]


@pytest.mark.parametrize("layout", ["missing", "empty", "no language", "empty files"])
def test_no_text_is_the_users_error(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "train"
    if layout != "missing":
        folder.mkdir()
    if layout == "no language":
        (folder / "file.py").write_text("x = 1\n")
    if layout == "empty files":
        (folder / "python").mkdir()
        (folder / "python" / "file.py").write_text("")
    with pytest.raises(InputError, match="expected one subfolder"):
        train(folder, tmp_path / "model", progress=False)
    assert not (tmp_path / "model").exists()


def test_an_existing_folder_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"):
        train(text, tmp_path, progress=False)
