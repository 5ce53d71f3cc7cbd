"""Triggers at different places only: documents that repeat an earlier one are counted, but trigger nothing."""

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.tally import RowMaxima
from neurotally.profiler.neurons import NeuronRecorder


class DistinctRecorder(NeuronRecorder):
    """A `NeuronRecorder` for layout `documents` to which rows of `repeats`, numbers of documents, offer no trigger."""

    def __init__(
        self,
        num_neurons: int,
        devices: list[torch.device],
        num_triggers: int,
        bar_LF: np.ndarray | None,
        repeats: np.ndarray,
    ):
        super().__init__(num_neurons, devices, num_triggers, bar_LF)
        self._repeats = torch.from_numpy(repeats.astype(np.int64))

    def offer(self, layer: int, maxima: RowMaxima, document_BT: Tensor, position_BT: Tensor) -> None:
        """Offer the row maxima of one layer as triggers, a repeat's as 0, which is none."""
        is_repeat_B = torch.isin(document_BT[:, 0].long(), self._repeats.to(document_BT.device))
        value_BF = maxima.value_BF.masked_fill(is_repeat_B[:, None], 0)
        super().offer(layer, maxima._replace(value_BF=value_BF), document_BT, position_BT)
