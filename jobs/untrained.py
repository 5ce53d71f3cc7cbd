"""`profile --random-init SEED`: the model's architecture with fresh weights, whose keys are the null keys of tests."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler.model.config import auto_class
from neurotally.profiler.model.load import load_config_and_tokenizer, quiet_transformers, split_revision


def untrained_model(model: ModelConfig, folder: Path) -> ModelConfig:
    """Write the untrained model below `folder`, where all workers load the same bits; once for model and seed.

    Weights are what the architecture's own initialisation draws under its seed, in the checkpoint's dtype.
    """
    seed = model.random_init
    assert seed is not None
    key = hashlib.sha256(f"{model.spec} {seed}".encode()).hexdigest()[:16]
    target = folder / f"untrained-{key}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _write(model, seed, partial)
        os.replace(partial, target)
    return replace(model, spec=str(target), random_init=None)


def _write(model: ModelConfig, seed: int, folder: Path) -> None:
    model_id, revision = split_revision(model.spec)
    common = {"revision": revision, "trust_remote_code": model.trust_remote_code}
    config, tokenizer = load_config_and_tokenizer(model_id, common)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = auto_class(config).from_config(
            config, dtype=config.dtype or torch.float32, trust_remote_code=model.trust_remote_code
        )
    with quiet_transformers():
        fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
