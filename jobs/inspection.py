"""`neurotally inspect`: what one asks of a model before starting a run, told from its config alone."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import psutil
import torch

from neurotally.analysis.parts import Cell, Column, Table
from neurotally.analysis.result import Result
from neurotally.jobs.bench.clock import host_seconds
from neurotally.jobs.free_memory import free_gpu_bytes, free_host_bytes
from neurotally.jobs.memory_plan import (
    MemoryPart,
    Run,
    as_size,
    device_parts,
    host_parts,
    refuse_too_large,
    store_bytes,
    total,
)
from neurotally.jobs.model_config import ModelConfig
from neurotally.profiler.corpus.batches import lay_out
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.load import LoadedModel, device_name
from neurotally.profiler.model.neurons import NeuronRecorder
from neurotally.profiler.model.outline import Outline
from neurotally.profiler.networks import ENCODER, Network
from neurotally.profiler.passes.worker import TOKEN_BUDGET

_PROBE_S = 5.0
"""A probe runs batches for so long at least."""
_BILLION = 1e9


def inspect_model(model: ModelConfig, groups: int, triggers: int, probe: bool) -> Result:
    """What is told of a model and of a run that keeps so many groups and triggers; see `neurotally.jobs.inspect`."""
    outline = model.outline()
    budget = max(TOKEN_BUDGET[outline.device_type], outline.row_tokens)
    run = Run(outline, groups, triggers, outline.row_tokens, budget)
    speed = None
    if probe:
        refuse_too_large(run, free_host_bytes(), free_gpu_bytes())
        speed = tokens_per_s(model.load_here(), triggers, budget)
    document = _document(run, speed)
    return Result("inspect", document, _lead(outline), _tables(document), notes=_notes(outline), model=outline.id)


def tokens_per_s(model: LoadedModel, triggers: int, token_budget: int) -> float:
    """Of random tokens in full batches, model and statistics alone: no text is read."""
    length = model.facts.row_tokens
    ids = np.random.default_rng(0).integers(0, model.vocabulary, length).tolist()
    documents = [(number, ids) for number in range(max(1, token_budget // length))]
    rows = lay_out(documents, frozenset(), "documents", length)
    reader = NeuronReader(model, NeuronRecorder(model, triggers))

    def tally() -> None:
        forcing = model.facts.teacher_forcing(None)
        reader.tally(model.batches(rows, token_budget, forcing))

    tally()  # kernels are made in the first batch
    tokens, took_s = 0, 0.0
    while took_s < _PROBE_S:
        took_s += host_seconds(tally, model.facts.device_type)
        tokens += len(rows.ids_N)
    return tokens / took_s


def _document(run: Run, speed: float | None) -> dict[str, Any]:
    outline = run.outline
    is_gpu = outline.device_type == "cuda"
    host, device = _needs(host_parts(run)), _needs(device_parts(run)) if is_gpu else None
    devices = _devices(outline.device_type)
    needed = math.ceil(device["total"] / min(device["free_bytes"] for device in devices)) if device else 1
    fits_host = host["total"] <= free_host_bytes()
    return {
        "model": {"id": outline.id, "revision": outline.revision, "family": outline.family,
                  "architecture": outline.architecture},
        "supported": None if outline.pass_failed else True,
        "pass_failed": outline.pass_failed or None,
        "layers": outline.num_layers,
        "hidden_size": outline.hidden_size,
        "vocabulary": outline.vocabulary,
        "neurons": outline.num_neurons,
        "networks": [asdict(network) for network in outline.networks],
        "networks_by_layers": networks_by_layers(outline),
        "experts_per_token": outline.experts_per_token,
        "attention": outline.attention,
        "row_tokens": outline.row_tokens,
        "max_row_tokens": outline.max_row_tokens,
        "weights": {"number": outline.num_weights, "bytes": outline.weight_bytes, "dtype": outline.dtype,
                    "checkpoint_dtype": outline.checkpoint_dtype, "checkpoint_bytes": outline.checkpoint_bytes,
                    "quantization": outline.quantization, "is_dequantised": outline.is_dequantised},
        "settings": {"groups": run.groups, "triggers": run.triggers, "token_budget": run.token_budget},
        "store_bytes_per_corpus": store_bytes(outline, run.groups, run.triggers),
        "devices": devices,
        "memory": {"host": host, "device": device},
        "fits": {"host": fits_host, "devices_needed": needed, "devices": needed <= len(devices) and fits_host},
        "speed": None if speed is None else {"tokens_per_s": speed, "hours_per_billion": _BILLION / speed / 3600},
    }  # fmt: skip


def _needs(parts: Sequence[MemoryPart]) -> dict[str, int]:
    return {part.name: part.bytes for part in parts} | {"total": total(parts).bytes}


def _devices(device_type: str) -> list[dict[str, Any]]:
    """Those at hand, with their free and their whole memory."""
    if device_type != "cuda":
        whole = psutil.virtual_memory().total
        return [{"name": device_name(device_type), "free_bytes": free_host_bytes(), "bytes": whole}]
    numbers = range(torch.cuda.device_count())
    sizes = [(torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number)) for number in numbers]
    return [{"name": name, "free_bytes": free, "bytes": whole} for name, free, whole in sizes]


def networks_by_layers(outline: Outline) -> dict[str, str]:
    """What networks layers have, in words, by the numbers of those that have the same."""
    of_layer: dict[int, list[Network]] = {}
    for network in outline.networks:
        of_layer.setdefault(network.layer, []).append(network)
    layers_of: dict[str, list[int]] = {}
    for layer, networks in of_layer.items():
        layers_of.setdefault(_in_words(networks), []).append(layer)
    return {", ".join(_runs(layers)): words for words, layers in layers_of.items()}


def _in_words(networks: Sequence[Network]) -> str:
    has_experts = any(network.experts is not None for network in networks)
    alone = "a shared one" if has_experts else "one network"
    parts = [
        f"{alone} of {network.neurons:,}"
        if network.experts is None
        else f"{network.experts:,} experts of {network.neurons:,}"
        for network in sorted(networks, key=lambda network: network.experts is None)
    ]
    return " + ".join(parts) + " (encoder)" * (networks[0].stack == ENCODER)


def _runs(numbers: Sequence[int]) -> Iterator[str]:
    """1, 2, 3, 7 as 1-3, 7."""
    first = numbers[0]
    for number, after in zip(numbers, [*numbers[1:], None], strict=True):
        if after != number + 1:
            yield str(first) if first == number else f"{first}-{number}"
            first = after or 0


def _lead(outline: Outline) -> str:
    what = f"{outline.id} ({outline.family}, {outline.architecture})"
    if outline.pass_failed:
        return f"{what}: whether it is supported can't be told from its config: {outline.pass_failed}."
    return f"{what} is supported, as far as its config tells."


def _tables(document: Mapping[str, Any]) -> list[Table]:
    weights, settings, speed = (document[part] for part in ("weights", "settings", "speed"))
    limit = document["max_row_tokens"]
    free = [f"{device['name']}: {as_size(device['free_bytes'])} free" for device in document["devices"]]
    rows: list[list[Cell]] = [
        ["layers", f"{document['layers']}, {document['hidden_size']:,} wide"],
        ["neurons", f"{document['neurons']:,}"],
        ["attention", document["attention"]],
        ["tokens per row", f"{document['row_tokens']:,}" + (f", at most {limit:,}" if limit < 2**31 - 1 else "")],
        ["weights", f"{weights['number']:,}: {as_size(weights['bytes'])} in {weights['dtype']}"],
        ["checkpoint", _checkpoint(weights)],
        ["store of a corpus", f"{as_size(document['store_bytes_per_corpus'])} before compression, with --groups "
                              f"{settings['groups']} --triggers {settings['triggers']}"],
        ["devices", ", ".join(free)],
        ["fits", _fits(document)],
    ]  # fmt: skip
    if document["experts_per_token"]:
        rows.insert(2, ["experts per token", str(document["experts_per_token"])])
    if speed:
        rows.append(["speed", f"{speed['tokens_per_s']:,.0f} tokens/s, {speed['hours_per_billion']:,.1f} hours for a "
                              "billion tokens"])  # fmt: skip
    return [
        Table("model", "", [Column("model"), Column(str(document["model"]["id"]))], rows, look="facts"),
        Table("networks", "", [Column("layers"), Column("networks")], list(document["networks_by_layers"].items())),
        *(
            Table(place, "", [Column(f"memory of a run on {where}"), Column("expected")],
                  [[name, as_size(size)] for name, size in document["memory"][place].items()])
            for place, where in (("host", "this machine"), ("device", "a worker's GPUs"))
            if document["memory"][place]
        ),
    ]  # fmt: skip


def _checkpoint(weights: Mapping[str, Any]) -> str:
    size = "" if weights["checkpoint_bytes"] is None else f", {as_size(weights['checkpoint_bytes'])}"
    method = "" if weights["quantization"] is None else f", quantised by {weights['quantization']}"
    undone = ", dequantised when it is loaded" if weights["is_dequantised"] else ""
    return f"{weights['checkpoint_dtype']}{size}{method}{undone}"


def _fits(document: Mapping[str, Any]) -> str:
    fits, number = document["fits"], len(document["devices"])
    if not fits["host"]:
        return f"no: this machine's memory is too small for {as_size(document['memory']['host']['total'])}"
    needed = fits["devices_needed"]
    return f"{'yes' if fits['devices'] else 'no'}: on {needed} of {number} device{'s' * (number > 1)}"


def _notes(outline: Outline) -> list[str]:
    notes = ["Loading also checks that the checkpoint is whole, and that what is read is what the model computes."]
    if outline.pass_failed:
        notes.insert(0, "Networks are told from structure and config: no pass without weights goes through this model.")
    return notes
