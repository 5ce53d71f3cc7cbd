"""Layers below the first that is changed compute the same whatever is switched off above: once a batch is enough."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.interventions import switched_off
from neurotally.profiler.model.overrides import in_place
from neurotally.profiler.model.verify import probe_ids


class SharedLayers:
    """Of a batch that runs several times, what comes out of the layers that stay as they are.

    Holds one layer's output. Every layer is computed each time in a model of two stacks, in one whose layers share
    parts, and in one that a short batch shows to come out otherwise, in any bit.
    """

    def __init__(self, model: HookedModel):
        self._blocks = list(model.blocks)
        self.forget()
        parts = [part for block in self._blocks for part in block.modules()]
        if model.is_encoder_decoder or len(set(parts)) < len(parts) or not self._is_exact(model):
            self._blocks = []

    def forget(self) -> None:
        """Before another batch."""
        self._num_kept = 0
        self._output: Any = None

    @contextmanager
    def unchanged_below(self, layer: int) -> Iterator[None]:
        """Within this context the model runs once over the batch, changed in no layer before `layer`.

        From one context to the next, until the batch changes, `layer` never falls.
        """
        kept: list[Any] = []
        with ExitStack() as context:
            for block in self._blocks[: self._num_kept]:
                context.enter_context(in_place(block, "forward", lambda *_args, **_kwargs: _copy(self._output)))
            if self._blocks and layer > self._num_kept:
                last = self._blocks[layer - 1]
                context.enter_context(last.register_forward_hook(lambda *seen: kept.append(_copy(seen[-1]))))
            yield
        if kept:
            self._num_kept, self._output = layer, kept[-1]

    def _is_exact(self, model: HookedModel) -> bool:
        """Whether short runs with the second layer, the last, and none switched off come out as without sharing."""
        ids_BT = probe_ids(model.vocabulary)
        widths = {point.layer: point.neurons.stop for point in model.hook_points}
        second, last = sorted(widths)[:2][-1], max(widths)
        masks = [{layer: range(widths[layer])} for layer in (second, last, last)]
        for mask in (*masks, {}, {}):
            with switched_off(model, mask):
                expected_BTD = model.run_body(ids_BT)
                with self.unchanged_below(min(mask, default=len(self._blocks))):
                    shared_BTD = model.run_body(ids_BT)
            if not torch.equal(expected_BTD.nan_to_num(), shared_BTD.nan_to_num()):
                return False
        self.forget()
        return True


def _copy(output: Any) -> Any:
    """Of a block's output, since the next one may write into it."""
    if isinstance(output, tuple):
        return tuple(map(_copy, output))
    return output.clone() if isinstance(output, Tensor) else output
