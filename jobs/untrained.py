"""`profile --random-init SEED`: the model's architecture with fresh weights, whose keys are the null keys of tests."""

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from neurotally.jobs.worker import ModelConfig
from neurotally.profiler.errors import InputError, first_line
from neurotally.profiler.model import quiet_transformers, split_revision


def untrained_model(model: ModelConfig, seed: int, folder: Path) -> ModelConfig:
    """Write the untrained model below `folder`, where all workers load the same bits; once for model and seed.

    Weights are what the architecture's own initialisation draws under `seed`, in the checkpoint's dtype.
    """
    key = hashlib.sha256(f"{model.spec} {seed}".encode()).hexdigest()[:16]
    target = folder / f"untrained-{key}"
    if not target.exists():
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        _write(model, seed, partial)
        os.replace(partial, target)
    return replace(model, spec=str(target))


def _write(model: ModelConfig, seed: int, folder: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    model_id, revision = split_revision(model.spec)
    common = {"revision": revision, "trust_remote_code": model.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(model_id, **common)
        tokenizer = AutoTokenizer.from_pretrained(model_id, **common)
    except Exception as error:  # the libraries below raise their own kinds, of no common base
        raise InputError(f"can't load config and tokenizer of {model_id}: {first_line(error)}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = AutoModelForCausalLM.from_config(
            config, dtype=config.dtype or torch.float32, trust_remote_code=model.trust_remote_code
        )
    with quiet_transformers():
        fresh.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
