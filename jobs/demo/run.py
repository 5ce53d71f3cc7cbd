"""`neurotally demo`: everything end to end, on a laptop, with nothing but what is installed.

    DIR/corpus/{train,heldout,evaluation}/LANGUAGE/   source code found on this machine
    DIR/model/                                        a small Llama, trained on `train`
    DIR/store/                                        its neurons over `heldout`
    DIR/lape.json                                     each language's neurons
    DIR/ablation.json                                 what switching them off costs, on `evaluation`
    DIR/layers.png, DIR/ablation.png                  pictures of both

Every step that has left its result is skipped, so the same command goes on where it stopped. Neurons are chosen
on `heldout` and judged on `evaluation`: the same files for both would flatter them.
"""

from pathlib import Path
from typing import Any

from neurotally.analysis.languages.counts import read_counts
from neurotally.analysis.languages.lape import Rule, lape
from neurotally.analysis.languages.lape_study import lape_result
from neurotally.analysis.render.charts import save_figure
from neurotally.analysis.result import model_name
from neurotally.jobs import ablate, profile
from neurotally.jobs.demo.corpus import gather
from neurotally.jobs.demo.model import train
from neurotally.jobs.progress import Progress
from neurotally.profiler.errors import InputError
from neurotally.profiler.whole_files import replace_json

RULE = Rule(quantile=0.7, per_corpus=100)
"""5 % of the model's 2,048 neurons per language, from a lower threshold than `lape`'s own: a model trained for a minute
has few neurons that fire often, and random ones above the threshold, to compare with, need as many again in each
layer."""
EVALUATION_FILES, EVALUATION_FILE_TOKENS = 12, 400
"""Of each language, for every cell of the matrix."""
RANDOM_DRAWS = 5
"""Of each of two kinds; `ablate`'s own number would take half as long again."""


def demo(folder: Path, workers: int, progress: Progress) -> tuple[dict[str, Any], str]:
    """Run what is still to do in `folder`, and read what is there: the document of `demo --json`, and it for people."""
    _refuse_other_folder(folder)
    if not (folder / "corpus").exists():
        progress.note("1/5 gathering source code on this machine …")
        gather(folder / "corpus", progress=progress.shows_bars)
    if not (folder / "model").exists():
        progress.note("2/5 training a small Llama on it, about a minute …")
        train(folder / "corpus" / "train", folder / "model", progress=progress.shows_bars)
    progress.note(f"3/5 profiling its neurons over held-out files on {workers} workers …")
    profile(
        str(folder / "model"), folder / "store", corpora=folder / "corpus" / "heldout", workers=workers,
        progress=progress, device="cpu", dtype="float32",
    )  # fmt: skip
    progress.note("4/5 finding each language's neurons, switching them off …")
    store = folder / "store"
    counts = read_counts(store)
    neurons = lape_result(counts, lape(counts, RULE)).of(model_name(counts.model), counts.corpora)
    replace_json(folder / "lape.json", neurons.document)
    ablation = ablate(
        str(folder / "model"), store, corpora=folder / "corpus" / "evaluation", per_corpus=RULE.per_corpus,
        quantile=RULE.quantile, draws=RANDOM_DRAWS, max_files=EVALUATION_FILES, document_tokens=EVALUATION_FILE_TOKENS,
        progress=progress, device="cpu", dtype="float32",
    )  # fmt: skip
    replace_json(folder / "ablation.json", ablation.document)
    progress.note("5/5 drawing …")
    save_figure(neurons.figure(), folder / "layers.png")
    save_figure(ablation.figure(), folder / "ablation.png")
    text = (
        f"{neurons}\n\n{ablation}\n\n"
        f"Pictures:  {folder / 'layers.png'}, {folder / 'ablation.png'}\n"
        f"Store:     {store}, to open with xarray.open_zarr({str(store)!r}, group='corpora/python')\n"
        f"Next:      neurotally lape {store} --select top\n"
        f"           neurotally losses {store} --full\n"
        f"           neurotally profile MODEL my.store --corpora FOLDER    # your model, your code"
    )
    return {"folder": str(folder), "ablation": ablation.document}, text


def _refuse_other_folder(folder: Path) -> None:
    ours = {"corpus", "model", "store", "lape.json", "ablation.json", "layers.png", "ablation.png"}
    ours |= {".corpus.partial", ".model.partial"}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the demo")
    if folder.is_dir() and (others := {path.name for path in folder.iterdir()} - ours):
        raise InputError(f"{folder} holds other things ({sorted(others)[0]}); name a new folder: neurotally demo DIR")
