"""Batches on their way to the devices: the next one is copied while this one runs.

On a GPU the host's tables are copied from pinned memory on a stream of their own, so that the loop over batches
doesn't wait for copies (transformers looks at the positions once a batch, and waits then). On the CPU a batch's arrays
are used as they are.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurotally.profiler.corpus.batches import Batch


@dataclass(frozen=True)
class StagedBatch:
    """A batch on the devices of a model."""

    ids_BT: Tensor
    """int64, where the model takes its input."""
    tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]]
    """By device: kind_BT, document_BT, position_BT, as in `Batch`."""
    mask_BT: Tensor | None = None
    """As in `Batch`, where the model takes its input."""
    decoder: "StagedBatch | None" = None
    """Of an encoder-decoder."""

    @property
    def tensors(self) -> list[Tensor]:
        """All that were copied."""
        own = [self.ids_BT, *itertools.chain.from_iterable(self.tables.values())]
        own += [] if self.mask_BT is None else [self.mask_BT]
        return own if self.decoder is None else own + self.decoder.tensors


class DeviceTables:
    """Tables on the host, copied once to each device that asks for them."""

    def __init__(self, *tables: np.ndarray):
        self._host = tables
        self._on: dict[torch.device, tuple[Tensor, ...]] = {}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """The tables, in their order."""
        if device not in self._on:
            self._on[device] = tuple(torch.from_numpy(table).to(device) for table in self._host)
        return self._on[device]


def staged(
    batches: Iterable[Batch], input_device: torch.device, devices: Sequence[torch.device], with_masks: bool = False
) -> Iterator[StagedBatch]:
    """Each batch in turn: its ids, and its mask if asked for, on `input_device`, its tables on each of `devices`."""
    stager = _Stager(input_device, devices, with_masks)
    # The next one is staged when a pair is asked for, before the one in front of it is handed over.
    ahead = itertools.chain(map(stager.stage, batches), [None])
    for batch, _ in itertools.pairwise(ahead):
        assert batch is not None
        yield stager.hand_over(batch)


class _Stager:
    def __init__(self, input_device: torch.device, devices: Sequence[torch.device], with_masks: bool):
        self._input_device = input_device
        self._with_masks = with_masks
        self._devices = list(dict.fromkeys(devices))
        on_gpu = {device for device in (input_device, *devices) if device.type == "cuda"}
        self._streams = {device: torch.cuda.Stream(device) for device in on_gpu}  # type: ignore[no-untyped-call]

    def stage(self, batch: Batch) -> StagedBatch:
        """Begin to copy a batch."""
        host = (batch.kind_BT, batch.document_BT, batch.position_BT)
        tables = {device: tuple(self._copy(table_BT, device) for table_BT in host) for device in self._devices}
        mask_BT = batch.mask_BT if self._with_masks else None
        return StagedBatch(
            self._copy(batch.ids_BT, self._input_device),
            tables,  # type: ignore[arg-type]
            None if mask_BT is None else self._copy(mask_BT, self._input_device),
            None if batch.decoder is None else self.stage(batch.decoder),
        )

    def hand_over(self, batch: StagedBatch) -> StagedBatch:
        """The batch, once its copies are done: the devices wait for them, the host doesn't."""
        for device, stream in self._streams.items():
            current = torch.cuda.current_stream(device)
            current.wait_stream(stream)
            for tensor in batch.tensors:
                if tensor.device == device:
                    tensor.record_stream(current)
        return batch

    def _copy(self, array: np.ndarray, device: torch.device) -> Tensor:
        host = torch.from_numpy(array)
        if device.type != "cuda":
            return host.to(device)
        with torch.cuda.stream(self._streams[device]):
            return host.pin_memory().to(device, non_blocking=True)
