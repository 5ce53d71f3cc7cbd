"""`neurotally bench`: what the statistics cost, as a ratio to the same model's bare forward pass.

All variants run in one process on one batch; every round runs each of them once, in an order shuffled anew, and
gives one ratio a variant to the bare body of the same round. Reported is the median ratio with the standard
error of a median, 1.2533 · sd / √rounds. `bare again` is the bare body once more: what it differs from 1 by is the
noise of the machine.

    bare, bare_again      the model's body as Hugging Face runs it; nothing of ours in it
    head                  with its LM head
    products              as far as our pass goes, and without activations and products with `up`: what any way of
                          computing statistics takes at least
    eager_counts          with the papers' chain on every activation: (act.float() > 0).sum over tokens
    eager_everything      with plain hooks that compute all of our statistics in eager PyTorch
    nnsight_counts        the papers' chain through nnsight, where it is installed
                          (these four where each network has an activation module: not of experts)
    counts, moments, full neurotally: counts only; and moments and extremes; and K = 32 triggers
    fused_bare, fused_full
                          where asked for: bare and full of the model with fused norms and rotary embeddings, which is
                          loaded beside the other
"""

import csv
import io
import random
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch import nn
from tqdm import tqdm
from transformers.activations import ACT2FN

from neurotally.jobs.bench.clock import copy_rate, device_seconds, host_seconds, matrix_rate
from neurotally.jobs.bench.models import flops_per_token, random_model
from neurotally.jobs.bench.variants import Variant, variants_of
from neurotally.jobs.versions import versions
from neurotally.kernels.layer_tally import TOKEN, LayerTally
from neurotally.kernels.tally import tally_layer
from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.allocation import reuse_freed_memory
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.load import LoadedModel, device_name, load_model, resolve_device
from neurotally.profiler.whole_files import whole_file

_DEFAULT_BATCH = {"cpu": (8, 512), "cuda": (16, 2048)}
_VERSIONED = ("torch", "transformers", "triton")
_ACTIVATIONS = ("silu", "relu", "relu2", "gelu", "gelu_pytorch_tanh")
"""By transformers' names: those whose kernels are measured alone."""


def bench(
    model: str | None = None, shape: str | None = None, layers: int | None = None, rows: int | None = None,
    row_tokens: int | None = None, dtype: str = "bfloat16", device: str = "auto", rounds: int = 30,
    fused: bool = False, on_terminal: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Measure; returns the document of `bench --json`.

    `model`: a hub id or folder; or else `shape`: a name of SHAPES or a config.json, cut to so many `layers`.
    """
    loaded, name = _load(model, shape, layers, dtype, device)
    rows, row_tokens = _batch_shape(rows, row_tokens, loaded)
    batch = _random_batch(loaded, rows, row_tokens)
    variants = variants_of(loaded, batch)
    if fused:
        by_fused = variants_of(_load(model, shape, layers, dtype, device, fused=True)[0], batch)
        variants |= {f"fused_{variant}": by_fused[variant] for variant in ("bare", "full")}
    seconds = _run_rounds(variants, rounds, loaded.facts.device_type, on_terminal)
    document: dict[str, Any] = {
        "device": device_name(loaded.facts.device_type),
        "threads": torch.get_num_threads() if loaded.facts.device_type == "cpu" else None,
        "shape": name,
        "dtype": loaded.facts.dtype,
        "attention": loaded.facts.attention,
        "rows": rows,
        "row_tokens": row_tokens,
        "rounds": rounds,
        "seconds": {variant: statistics.median(times) for variant, times in seconds.items()},
        "tokens_per_s": rows * row_tokens / statistics.median(seconds["full"]),
        "versions": {package: number for package, number in versions().items() if package in _VERSIONED},
        "commit": _commit(),
    }
    for variant, times in seconds.items():
        if variant != "bare":
            document[f"ratio_{variant}"], document[f"ratio_{variant}_se"] = _median_ratio(times, seconds["bare"])
    document |= _kernels_alone(loaded, rows, row_tokens)
    if loaded.facts.device_type == "cuda" and not (loaded.has_experts or loaded.is_encoder_decoder):
        most = matrix_rate(loaded.devices[0], getattr(torch, loaded.facts.dtype))
        document["mfu"] = flops_per_token(loaded, row_tokens) * document["tokens_per_s"] / most
    return document


def bench_table(document: dict[str, Any]) -> str:
    """The same for people."""
    tokens = document["rows"] * document["row_tokens"]
    rows = [
        [name, 1e3 * seconds, document.get(f"ratio_{name}"), document.get(f"ratio_{name}_se"), tokens / seconds]
        for name, seconds in document["seconds"].items()
    ]
    head = ["variant", "ms per batch", "ratio to bare", "± se", "tokens/s"]
    threads = f", {document['threads']} threads" if document["threads"] else ""
    kernels = [
        [name, rates["gb_per_s"], rates["bandwidth_share"], rates["over_pytorch"]]
        for name, rates in document["kernels"].items()
    ]
    alone = ["kernel alone", "GB/s", "of a copy's rate", "time over PyTorch's"]
    lines = [
        f"{document['shape']}, {document['dtype']}, {document['rows']} x {document['row_tokens']} tokens, "
        f"{document['rounds']} rounds, {document['device']}{threads}",
        tabulate(rows, head, floatfmt=("", ",.2f", ".3f", ".3f", ",.0f"), missingval="-"),
        tabulate(kernels, alone, floatfmt=("", ",.1f", ".2f", ".2f")),
        f"a copy: {document['copy_gb_per_s']:,.1f} GB/s",
    ]
    if "mfu" in document:
        lines.append(f"the whole pass: {document['mfu']:.0%} of the measured matrix-product rate")
    return "\n".join(lines)


def append_csv(document: dict[str, Any], path: Path) -> None:
    """Add a row per variant to a table of results."""
    fixed = ("device", "threads", "shape", "dtype", "rows", "row_tokens", "rounds", "commit")
    rows = io.StringIO(newline="")
    writer = csv.writer(rows)
    if not path.exists():
        writer.writerow([*fixed, "versions", "variant", "seconds", "ratio", "ratio_se"])
    versions = " ".join(f"{name}={number}" for name, number in document["versions"].items())
    for name, seconds in document["seconds"].items():
        ratio, error = (document.get(f"ratio_{name}{suffix}", "") for suffix in ("", "_se"))
        writer.writerow([*(document[key] for key in fixed), versions, name, seconds, ratio, error])
    with whole_file(path) as partial:
        partial.write_bytes((path.read_bytes() if path.is_file() else b"") + rows.getvalue().encode())


def _run_rounds(
    variants: dict[str, Variant], rounds: int, device_type: str, on_terminal: bool
) -> dict[str, list[float]]:
    """Seconds by variant, one per round; two rounds first that don't count."""
    shuffler = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in tqdm(range(-2, rounds), desc="rounds", leave=False, disable=not on_terminal):
        names = list(variants)
        shuffler.shuffle(names)
        for name in names:
            run, state = variants[name]
            with state():
                elapsed = host_seconds(run, device_type)
            if number >= 0:
                seconds[name].append(elapsed)
    return seconds


def _median_ratio(times: list[float], bare: list[float]) -> tuple[float, float]:
    ratios = [ours / theirs for ours, theirs in zip(times, bare, strict=True)]
    return statistics.median(ratios), 1.2533 * statistics.stdev(ratios) / len(ratios) ** 0.5


def _random_batch(model: LoadedModel, rows: int, row_tokens: int) -> Batch:
    """Of an encoder-decoder both read all of it."""
    shape = (rows, row_tokens)
    batch = Batch(
        ids_BT=np.random.default_rng(0).integers(0, model.vocabulary, shape),
        kind_BT=np.full(shape, TOKEN, np.uint8),
        document_BT=np.repeat(np.arange(rows, dtype=np.int32)[:, None], row_tokens, axis=1),
        position_BT=np.repeat(np.arange(row_tokens, dtype=np.int32)[None], rows, axis=0),
    )
    return replace(batch, decoder=batch) if model.is_encoder_decoder else batch


def _kernels_alone(model: LoadedModel, rows: int, row_tokens: int) -> dict[str, Any]:
    """One layer's op by itself, for the model's activation and the common ones.

    Its rate: the bytes it reads and writes over its time, against a copy on the same device; and its time over that
    of PyTorch's activation and, in a gated FFN, product.
    """
    point = model.hook_points[0]
    neurons = point.expert_width if isinstance(point, ExpertsHookPoint) else point.width
    device = point.device
    dtype = getattr(torch, model.facts.dtype)
    pre_BTF, other_BTF = (torch.randn(rows, row_tokens, neurons, dtype=dtype, device=device) for _ in range(2))
    up_BTF = other_BTF if model.facts.gated else None
    kind_BT = torch.full((rows, row_tokens), TOKEN, dtype=torch.uint8, device=device)
    tally = LayerTally.empty(neurons, device)
    op_bytes = (3 if model.facts.gated else 2) * pre_BTF.numel() * dtype.itemsize
    copied = copy_rate(device)

    def alone(act: nn.Module) -> dict[str, float]:
        with torch.inference_mode():
            op_s = device_seconds(lambda: tally_layer(act, pre_BTF, up_BTF, kind_BT, tally), device.type)
            pytorch_s = device_seconds(lambda: act(pre_BTF) if up_BTF is None else act(pre_BTF) * up_BTF, device.type)
        rate = op_bytes / op_s
        return {"gb_per_s": rate / 1e9, "bandwidth_share": rate / copied, "over_pytorch": op_s / pytorch_s}

    own = alone(point.activation)
    return {
        "kernel_gb_per_s": own["gb_per_s"],
        "copy_gb_per_s": copied / 1e9,
        "kernel_bandwidth_share": own["bandwidth_share"],
        "kernels": {name: alone(ACT2FN[name]) for name in _ACTIVATIONS},
    }


def _load(
    model: str | None, shape: str | None, layers: int | None, dtype: str, device: str, *, fused: bool = False
) -> tuple[LoadedModel, str]:
    if resolve_device(device) == "cpu":
        reuse_freed_memory()  # as a run does
    if model is not None and shape is None:
        if layers is not None:
            raise InputError("--layers cuts a --shape; a MODEL is measured whole")
        return load_model(model, device, dtype, fused=fused), model
    if shape is None or model is not None:
        raise InputError("bench: name a MODEL or a --shape, one of them")
    return random_model(shape, layers, dtype, resolve_device(device), fused=fused)


def _batch_shape(rows: int | None, row_tokens: int | None, model: LoadedModel) -> tuple[int, int]:
    most, default = model.facts.max_row_tokens, _DEFAULT_BATCH[model.facts.device_type]
    if row_tokens is not None and row_tokens > most:
        raise InputError(f"--row-tokens {row_tokens}: the model takes at most {most}")
    return rows or default[0], row_tokens or min(default[1], most)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
