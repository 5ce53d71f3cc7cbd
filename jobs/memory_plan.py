"""What a run of `profile` needs: bytes of its store, of the machine's memory and of a GPU's, told before it starts.

F is the width of the widest layer, L the number of layers, N that of neurons (L·F, less where layers differ in width),
G groups, K triggers, W workers. In bytes, by the table of `kernels.statistics`:

    corpus's sums      L·F · Σ (stored, G times where it is kept by group)      in the driver, see below
    corpus's triggers  L·F · 12 K                                               the same: value, document, position
    saving             L·F · 5 K, and the sums again where layers differ        of one corpus at a time
    unit               L·F · (Σ shipped + 4) + N · 24 K                         what a worker sends, while it is made
    tallies            N · Σ on the device                                      on the worker's device
    lists              N · (12 K + 4), and 36 K a neuron of the largest network the same
    activations        by the tokens of a batch                                 the same

The driver has the sums of one corpus; where several workers run, of the next one, too, while the last units come in.

A part's `least` is what surely is in use at one time: pages that nobody has written to, and weights that are read from
their file where it lies, may cost nothing. A run is refused only where that exceeds what is free.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from neurotally.jobs.engines.engine import GROUPS_AT_ONCE
from neurotally.kernels.statistics import statistics_of
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.outline import Outline
from neurotally.profiler.networks import differ_in_tokens

_PROCESS_BYTES = 500_000_000
"""Python, PyTorch and transformers with a small model; measured: 486 MB."""
_TRIGGER_BYTES = 12
_TOKEN_STATES = 6
"""Tensors as wide as the model that are there at a time, about."""
_NETWORK_STATES = 4
"""Of a network's neurons: gate, up, activation, coefficient."""
_SCORE_BYTES = 2 * 2**30
"""Attention scores before and after the softmax, one layer at a time: see `ModelFacts.attention_budget`."""


class MemoryPart(NamedTuple):
    """Memory for one purpose."""

    name: str
    bytes: int
    """Expected at the peak."""
    least: int
    """Surely in use then."""


@dataclass(frozen=True)
class Run:
    """What decides the memory of a run."""

    outline: Outline
    groups: int
    triggers: int
    row_tokens: int
    token_budget: int
    corpora: int = 1
    """Those that are to be made."""
    workers: int = 1
    is_cluster: bool = False
    """Workers use the memory of other machines."""

    @property
    def has_processes(self) -> bool:
        """Whether workers are processes of their own."""
        return self.workers > 1 or self.is_cluster

    @property
    def workers_here(self) -> int:
        """Those that use this machine's memory."""
        return 0 if self.is_cluster else self.workers


def store_bytes(outline: Outline, groups: int, triggers: int) -> int:
    """Of one corpus, before compression and without the list of its documents."""
    by_site = 16 * groups * differ_in_tokens(outline.networks) + 8 * outline.has_experts
    sites = sum(network.sites for network in outline.networks)
    of_neurons = _cells(outline) * (_sum_bytes(outline, groups) + _TRIGGER_BYTES * triggers)
    return of_neurons + 16 * groups + sites * by_site


def host_parts(run: Run) -> list[MemoryPart]:
    """What a run needs of this machine's memory."""
    outline, cells, sums = run.outline, _cells(run.outline), _sum_bytes(run.outline, run.groups)
    is_cpu = outline.device_type == "cpu"
    # Of a checkpoint in the same dtype the file itself is what all processes read.
    is_mapped = outline.dtype == outline.checkpoint_dtype and outline.quantization is None
    copies = (min(1, run.workers_here) if is_mapped else run.workers_here) if is_cpu else 0
    weights = copies * outline.weight_bytes
    processes = 1 + (run.workers_here if run.has_processes else 0)
    alive = min(run.corpora, GROUPS_AT_ONCE) if run.has_processes else 1
    saving = cells * (5 * run.triggers + (sums if outline.has_experts or _is_ragged(outline) else 0))
    computing = total([_unit(run), *(device_parts(run)[1:] if is_cpu else ())])
    parts = [
        MemoryPart("programs", processes * _PROCESS_BYTES, 0),
        MemoryPart("weights", weights, weights if outline.quantization is None and not is_mapped else 0),
        MemoryPart("sums of a corpus", alive * cells * sums, cells * sums),
        MemoryPart("triggers of a corpus", alive * cells * run.triggers * _TRIGGER_BYTES, cells * run.triggers * 8),
    ]
    if run.has_processes:
        sent = (run.workers + 1) * _unit(run).bytes
        parts += [
            MemoryPart("saving a corpus", saving, 0),  # workers may have nothing to do then
            MemoryPart("units on their way", sent, 0),
            MemoryPart("units in the workers", *(run.workers_here * size for size in computing[1:])),
        ]
    else:  # one after the other
        parts.append(MemoryPart("a unit, or saving a corpus", *(max(size, saving) for size in computing[1:])))
    return [part for part in parts if part.bytes]


def device_parts(run: Run) -> list[MemoryPart]:
    """What each worker needs of its device; on a CPU that is the machine's memory."""
    outline, itemsize = run.outline, {"float32": 4}.get(run.outline.dtype, 2)
    largest = max(network.end - network.first for network in outline.networks)
    of_a_token = max(
        network.neurons * (1 if network.experts is None else outline.experts_per_token or 1)
        for network in outline.networks
    )
    states = itemsize * (_NETWORK_STATES * of_a_token + _TOKEN_STATES * outline.hidden_size)
    scores = min(_SCORE_BYTES, 4 * outline.num_heads * run.token_budget * run.row_tokens)
    tally = sum(np.dtype(statistic.dtype).itemsize for statistic in statistics_of(outline.has_experts))
    lists, neurons = run.triggers * _TRIGGER_BYTES + (4 if run.triggers else 0), outline.num_neurons
    return [
        MemoryPart("weights", outline.weight_bytes, 0),
        MemoryPart("tallies", neurons * tally, neurons * tally),
        MemoryPart("trigger lists", neurons * lists + 36 * run.triggers * largest, neurons * 8 * run.triggers),
        MemoryPart("a batch's activations", run.token_budget * states + scores * (outline.attention == "eager"), 0),
    ]


def total(parts: Sequence[MemoryPart]) -> MemoryPart:
    """All of them at once."""
    return MemoryPart("total", sum(part.bytes for part in parts), sum(part.least for part in parts))


def memory_note(run: Run, free_bytes: int) -> str:
    """What a run is expected to need, in one line."""
    host = total(host_parts(run)).bytes
    largest = sorted(host_parts(run), key=lambda part: -part.bytes)[:2]
    parts = ", ".join(f"{part.name} {as_size(part.bytes)}" for part in largest)
    note = f"memory: some {as_size(host)} ({parts}); {as_size(free_bytes)} are free"
    if run.outline.device_type == "cuda":
        note += f"; and some {as_size(total(device_parts(run)).bytes)} of each worker's GPUs"
    return note


def refuse_too_large(run: Run, free_bytes: int, free_gpu_bytes: int | None = None) -> None:
    """InputError, naming settings that would fit, where a run surely needs more than is free here."""
    checks = [("this machine's memory", host_parts, free_bytes)]
    if free_gpu_bytes is not None and run.outline.device_type == "cuda" and not run.is_cluster:
        checks.append(("the GPUs' memory", device_parts, free_gpu_bytes))
    for what, parts, free in checks:
        if (least := total(parts(run)).least) > free:
            fitting = list(_fitting(run, parts, free))
            raise InputError(
                f"profile needs at least {as_size(least)} of {what}, of which {as_size(free)} are free: "
                + (f"it would fit with {', or '.join(fitting)}" if fitting else "no setting makes it fit")
            )


def _fitting(run: Run, parts: Callable[[Run], list[MemoryPart]], free_bytes: int) -> Iterator[str]:
    """Settings with which a run would fit: each changed by itself, or all of them where none does."""

    def largest(name: str, base: Run) -> int | None:
        def least(value: int) -> int:
            changed: dict[str, Any] = {name: value}
            return total(parts(replace(base, **changed))).least

        values = range(0 if name == "triggers" else 1, getattr(base, name) + 1)
        fitting = bisect_right(values, free_bytes, key=least)
        return values[fitting - 1] if fitting else None

    alone = {name: largest(name, run) for name in ("triggers", "groups", "workers")}
    if any(value is not None for value in alone.values()):
        for name, value in alone.items():
            if value is not None:
                yield f"--{name} {value}"
    elif (triggers := largest("triggers", replace(run, groups=1, workers=1))) is not None:
        yield f"--groups 1 --workers 1 --triggers {triggers}"


def as_size(num_bytes: float) -> str:
    """1.4 GB, 30 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            value = num_bytes / size
            return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"
    return f"{num_bytes / 1e3:.3g} kB"


def _unit(run: Run) -> MemoryPart:
    """A unit's result on the host."""
    outline, cells = run.outline, _cells(run.outline)
    shipped = sum(np.dtype(statistic.shipped).itemsize for statistic in statistics_of(outline.has_experts))
    sums = cells * (shipped + 4)
    return MemoryPart("a unit's result", sums + 2 * _TRIGGER_BYTES * run.triggers * outline.num_neurons, sums)


def _cells(outline: Outline) -> int:
    """Of an array [L, F]."""
    return outline.num_layers * outline.widest_layer


def _sum_bytes(outline: Outline, groups: int) -> int:
    """Of a cell's sums."""
    statistics = statistics_of(outline.has_experts)
    return sum(np.dtype(statistic.stored).itemsize * (groups if statistic.by_group else 1) for statistic in statistics)


def _is_ragged(outline: Outline) -> bool:
    return outline.num_neurons < _cells(outline) or len(outline.networks) > outline.num_layers
