"""`neurotally demo`: the whole way once, in under three minutes on a laptop, with nothing but what is installed.

    DIR/corpus/{train,heldout,evaluation}/LANGUAGE/   source code found on this machine
    DIR/model/                                        a small Llama, trained on `train`
    DIR/store/                                        its neurons over `heldout`
    DIR/lape.json                                     each language's neurons
    DIR/ablation.json                                 what switching them off costs, on `evaluation`
    DIR/layers.png, DIR/ablation.png                  pictures of both

Every step that has left its result is skipped, so the same command goes on where it stopped. Neurons are chosen
on `heldout` and judged on `evaluation`: the same files for both would flatter them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from neurotally.analysis.counts import read_counts
from neurotally.analysis.figures import draw_layers, draw_matrix, save_figure
from neurotally.analysis.lape import Selection, lape
from neurotally.analysis.lape_report import lape_document, lape_table
from neurotally.jobs.demo_corpus import gather
from neurotally.jobs.demo_model import train
from neurotally.jobs.loss_matrix import LossMatrix, count_evaluations, loss_matrix
from neurotally.jobs.profile import ProfileRequest, profile
from neurotally.jobs.progress import Progress
from neurotally.jobs.worker import ModelConfig
from neurotally.profiler.errors import InputError
from neurotally.profiler.model import LoadedModel, load_model
from neurotally.profiler.store import replace_json

PER_CORPUS, QUANTILE = 100, 0.9
"""4 % of the model's 2,560 neurons a language, from a lower bar than `lape`'s own: a model trained for a minute has
few neurons that fire often, and 40 of them cost its languages little more than random ones do."""
EVALUATION_TOKENS = 6000
"""Of each language, for every cell of the matrix."""
RANDOM_DRAWS = 2
_CHANGE_UNIT = "loss change beyond random neurons, nats per token"


@dataclass(frozen=True)
class DemoResult:
    """What the demo found."""

    folder: Path
    selection: Selection
    matrix: LossMatrix
    lape_text: str

    def text(self) -> str:
        """For people: both tables, where everything lies and what to type next."""
        own = np.diagonal(self.matrix.over_random_CC)
        rows = [[name, *row] for name, row in zip(self.matrix.corpora, self.matrix.over_random_CC, strict=True)]
        most = self.matrix.over_random_CC.argmax(axis=1)
        hits = int((most == np.arange(len(most))).sum())
        table = tabulate(rows, headers=["switched off", *self.matrix.corpora], floatfmt="+.3f")
        store = self.folder / "store"
        return (
            f"{self.lape_text}\n\n"
            f"What switching them off costs on other files, beyond as many random neurons in the same layers\n"
            f"(nats per token; mean of {RANDOM_DRAWS} draws):\n{table}\n"
            f"{hits} of {len(own)} languages lose most themselves.\n\n"
            f"Pictures:  {self.folder / 'layers.png'}, {self.folder / 'ablation.png'}\n"
            f"Store:     {store}, to open with xarray.open_zarr({str(store)!r}, group='corpora/python')\n"
            f"Next:      neurotally lape {store} --select top\n"
            f"           neurotally profile MODEL my.store --corpora FOLDER    # your model, your code"
        )

    def to_json(self) -> dict[str, Any]:
        """As a plain dictionary."""
        return {"folder": str(self.folder), "ablation": matrix_document(self.matrix)}


def demo(folder: Path, workers: int, progress: Progress) -> DemoResult:
    """Run what is still to do in `folder`, and read what is there."""
    _refuse_other_folder(folder)
    if not (folder / "corpus").exists():
        progress.note("1/5 gathering source code on this machine …")
        gather(folder / "corpus", progress=progress.on_terminal)
    if not (folder / "model").exists():
        progress.note("2/5 training a small Llama on it, about a minute …")
        train(folder / "corpus" / "train", folder / "model", progress=progress.on_terminal)
    progress.note(f"3/5 profiling its neurons over held-out files on {workers} workers …")
    model = ModelConfig(str(folder / "model"), device="cpu", dtype="float32")
    request = ProfileRequest(model, folder / "store", corpora=folder / "corpus" / "heldout", workers=workers)
    profile(request, progress)
    progress.note("4/5 finding each language's neurons, switching them off …")
    counts = read_counts(folder / "store")
    selection = lape(counts.active_CLF, counts.tokens_C, counts.corpora, quantile=QUANTILE, per_corpus=PER_CORPUS)
    replace_json(folder / "lape.json", lape_document(counts, selection))
    matrix = _ablation(folder, selection, progress)
    progress.note("5/5 drawing …")
    _draw(folder, selection, matrix)
    return DemoResult(folder, selection, matrix, lape_table(counts, selection))


def matrix_document(matrix: LossMatrix) -> dict[str, Any]:
    """The matrix as JSON: nats a token."""
    return {
        "corpora": matrix.corpora,
        "baseline": matrix.baseline_C.tolist(),
        "change": matrix.change_CC.tolist(),
        "random": matrix.random_DCC.tolist(),
    }


def _ablation(folder: Path, selection: Selection, progress: Progress) -> LossMatrix:
    file = folder / "ablation.json"
    neurons = {name: pairs.tolist() for name, pairs in selection.specific.items()}
    model = load_model(str(folder / "model"), "cpu", "float32")
    texts = {name: _evaluation_documents(folder, name, model) for name in selection.corpora}
    total = count_evaluations(len(texts), RANDOM_DRAWS)
    with tqdm(total=total, desc="evaluating", unit="corpus", disable=not progress.on_terminal, leave=False) as bar:
        matrix = loss_matrix(model, texts, neurons, model.facts.row_tokens, RANDOM_DRAWS, on_evaluation=bar.update)
    replace_json(file, matrix_document(matrix))
    return matrix


def _evaluation_documents(folder: Path, language: str, model: LoadedModel) -> list[list[int]]:
    """The first documents of a language, by name, up to the token limit."""
    documents: list[list[int]] = []
    left = EVALUATION_TOKENS
    for path in sorted((folder / "corpus" / "evaluation" / language).rglob("*")):
        if path.is_file() and left > 0:
            ids = model.tokenizer(path.read_bytes().decode())["input_ids"][:left]
            documents.append(ids)
            left -= len(ids)
    return documents


def _draw(folder: Path, selection: Selection, matrix: LossMatrix) -> None:
    num_layers = selection.entropy_LF.shape[0]
    layers = draw_layers(selection.specific, selection.exclusive, num_layers, "Where each language's neurons sit")
    save_figure(layers, folder / "layers.png")
    ablation = draw_matrix(
        matrix.over_random_CC, matrix.corpora, matrix.corpora,
        title="What switching off a language's neurons costs", unit=_CHANGE_UNIT,
    )  # fmt: skip
    save_figure(ablation, folder / "ablation.png")


def _refuse_other_folder(folder: Path) -> None:
    ours = {"corpus", "model", "store", "lape.json", "ablation.json", "layers.png", "ablation.png"}
    ours |= {".corpus.partial", ".model.partial"}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the demo")
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - ours):
        raise InputError(f"{folder} holds other things ({sorted(others)[0]}); name a new folder: neurotally demo DIR")
