"""The model's own head, run by itself: what turns the last hidden states into logits.

It isn't copied: the model's own forward runs with its body's result put in place. So all that it does beside the
product (a bias, soft caps, scales) is in. Small products are made of more rows than asked for: below some 64 of them
their bits would depend on the number of CPU threads, and so on the number of workers.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from neurotally.profiler.corpus.batches import MIN_BATCH_TOKENS
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.overrides import in_place
from neurotally.profiler.model.threads import few_enough_threads


def head_logits(model: LoadedModel, hidden_ND: Tensor) -> Tensor:
    """The model's logits [N, V], in its own dtype, of last hidden states as `run_body` gives them."""
    device = model.input_device

    def read(hidden_nD: Tensor) -> Tensor:
        ids_1n = torch.zeros(1, len(hidden_nD), dtype=torch.int64, device=device)
        given: dict[str, Any] = {"input_ids": ids_1n}
        if model.is_encoder_decoder:  # else the encoder would be run
            given = {"decoder_input_ids": ids_1n, "encoder_outputs": BaseModelOutput(hidden_nD[None])}
        body_output = _HiddenStates(last_hidden_state=hidden_nD[None])
        with torch.inference_mode(), in_place(model.body, "forward", lambda *_args, **_kwargs: body_output):
            logits_nV: Tensor = model.model(**given, use_cache=False).logits[0]
        return logits_nV

    return of_many_rows(read, hidden_ND)


def of_many_rows(read: Callable[[Tensor], Tensor], x_ND: Tensor) -> Tensor:
    """`read(x_ND)`, which gives a row for a row; rows are repeated if there are too few for bits that stay."""
    number = len(x_ND)
    with few_enough_threads(number, x_ND.device):
        if number >= MIN_BATCH_TOKENS or number == 0:
            return read(x_ND)
        return read(x_ND[torch.arange(MIN_BATCH_TOKENS, device=x_ND.device) % number])[:number]


class _HiddenStates(BaseModelOutput):
    """What a body gives, and None for whatever else a head may hand on: a router's logits, a state."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
