"""How well a model of the demo reads text that it wasn't trained on."""

from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurotally.jobs.demo import model as demo_model


def heldout_loss(
    model_dir: Path, heldout_dir: Path, rows_per_language: int = 64, progress: bool = True
) -> dict[str, float]:
    """Mean loss in nats a token, by language, over a fixed sample of rows of the text below `heldout_dir`."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    losses = {}
    texts = demo_model._read_texts(heldout_dir)
    for language, documents in tqdm(texts.items(), desc="held-out loss", unit="language", disable=not progress):
        rows = demo_model._cut_rows(tokenizer, documents)
        order = np.random.default_rng(0).permutation(len(rows))[:rows_per_language]
        with torch.inference_mode():
            losses[language] = demo_model._loss(model, [rows[index] for index in order]).item()
    return losses
