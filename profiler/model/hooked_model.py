"""A language model with hook points at its feed-forward networks, found once and verified."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.offloading import input_device
from neurotally.profiler.model.stacks import Stack, run_stack
from neurotally.profiler.networks import ENCODER, Networks, are_alike, differ_in_tokens, has_experts


@dataclass(frozen=True)
class HookedModel:
    """A model with a hook point at each of its feed-forward networks, ready to run."""

    model: Any
    """As transformers has it."""
    name: str
    stacks: tuple[Stack, ...]
    """Of an encoder-decoder the encoder and the decoder; of all others one."""
    hook_points: list[HookPoint]
    """By layer, then by first neuron."""

    @property
    def body(self) -> nn.Module:
        """What gives the last hidden states; of an encoder-decoder the decoder."""
        return self.stacks[-1].module

    @property
    def blocks(self) -> nn.ModuleList:
        """Its layers."""
        return self.stacks[-1].blocks

    @property
    def num_layers(self) -> int:
        """Layers of all stacks."""
        return sum(len(stack.blocks) for stack in self.stacks)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it has two stacks."""
        return len(self.stacks) > 1

    @property
    def sees_later_tokens(self) -> bool:
        """Whether attention sees later tokens in the stack that reads the text, so that pads need a mask."""
        return any(point.stack == ENCODER for point in self.hook_points)

    @property
    def num_neurons(self) -> int:
        """Neurons of the widest layer."""
        return max(point.first + point.width for point in self.hook_points)

    @property
    def has_experts(self) -> bool:
        """Whether some neurons are in a mixture's experts."""
        return has_experts(self.networks)

    @property
    def differ_in_tokens(self) -> bool:
        """Whether some networks, or experts, see other tokens than others."""
        return differ_in_tokens(self.networks)

    @property
    def networks(self) -> Networks:
        """Where its neurons are; empty where every layer is one network of the same width."""
        networks = tuple(point.network for point in self.hook_points)
        return () if are_alike(networks, self.num_layers) else networks

    @property
    def devices(self) -> list[torch.device]:
        """Where each network computes."""
        return [point.device for point in self.hook_points]

    @property
    def input_device(self) -> torch.device:
        """Where token ids go."""
        return input_device(self.model)

    @property
    def vocabulary(self) -> int:
        """Token ids that the model knows: the rows of its input embedding."""
        size: int = self.model.get_input_embeddings().weight.shape[0]
        return size

    def places(self, layer: int, neurons: Sequence[int]) -> list[tuple[HookPoint, np.ndarray, Tensor]]:
        """The hook points of a layer that have some of these neurons, with int64 [n] twice.

        Which of `neurons` they have, and their numbers in the network, on its device. InputError where there is no such
        layer or neuron.
        """
        if not 0 <= layer < self.num_layers:
            raise InputError(f"{self.name} has no layer {layer}; expected 0 to {self.num_layers - 1}")
        points = [point for point in self.hook_points if point.layer == layer]
        number_n, width = np.asarray(neurons, np.int64), sum(point.width for point in points)
        if wrong := [number for number in number_n.tolist() if not 0 <= number < width]:
            expected = f"no neuron {wrong[0]}; expected 0 to {width - 1}" if width else "no neurons"
            raise InputError(f"layer {layer} has {expected}")
        found = []
        for point in points:
            which_n = np.flatnonzero((number_n >= point.first) & (number_n < point.first + point.width))
            if len(which_n):
                found.append((point, which_n, torch.from_numpy(number_n[which_n] - point.first).to(point.device)))
        return found

    def run_body(self, ids_BT: Tensor, mask_BT: Tensor | None = None, decoder_ids_BT: Tensor | None = None) -> Tensor:
        """The last hidden states [B, T, D] of right-padded rows.

        `mask_BT`: bool, which cells are tokens; looked at where attention sees later ones. `decoder_ids_BT`: what the
        decoder of an encoder-decoder reads, whose states these then are.
        """
        states_BTD = self.run_first_stack(ids_BT, mask_BT)
        if not self.is_encoder_decoder:
            return states_BTD
        assert decoder_ids_BT is not None
        context = {"encoder_hidden_states": states_BTD, "encoder_attention_mask": _mask(ids_BT, mask_BT)}
        return run_stack(self.model, self.body, decoder_ids_BT, **context)

    def run_first_stack(self, ids_BT: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """The last hidden states [B, T, D] of the stack that reads the text: an encoder-decoder's encoder, else all."""
        given = _mask(ids_BT, mask_BT) if self.sees_later_tokens else None
        return run_stack(self.model, self.stacks[0].module, ids_BT, attention_mask=given)

    def run_batch(self, batch: Batch) -> Tensor:
        """`run_body` of a batch."""
        decoder_ids_BT = None if batch.decoder is None else torch.from_numpy(batch.decoder.ids_BT)
        return self.run_body(torch.from_numpy(batch.ids_BT), batch_mask(batch), decoder_ids_BT)


def batch_mask(batch: Batch) -> Tensor | None:
    """Its mask, as a tensor."""
    return None if batch.mask_BT is None else torch.from_numpy(batch.mask_BT)


def _mask(ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
    """As transformers takes masks, 1 and 0; given none, some families take a token of the pad's id for a pad."""
    return torch.ones_like(ids_BT) if mask_BT is None else mask_BT.long()
