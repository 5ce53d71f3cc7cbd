"""Next-token losses of a batch, under whatever is switched off at the moment.

The loss of a token is -ln p(token | the tokens before it in its row), in nats; it is a *hit* if it is the model's
top-1 prediction (the first of equals). The first token of a row has nothing before it and isn't scored. Of an
encoder-decoder the tokens that its decoder is teacher-forced on are scored, all of them, given what its encoder reads.
An encoder is trained to fill in masked tokens, so it has no such loss.

The body runs over the whole batch; the head, by far the widest layer, over some tokens at a time, so that there
are never more logits than a byte budget allows (see `head`).
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.layer_tally import PAD
from neurotally.profiler.corpus.batches import MIN_BATCH_TOKENS, Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.verify import probe_ids
from neurotally.profiler.passes.head import head_logits

LOGIT_BYTES = 2**28
"""What the float32 logits of one run of tokens may take (128 tokens' at least)."""


class TokenLosses(NamedTuple):
    """The N scored tokens of a batch."""

    row_N: np.ndarray
    column_N: np.ndarray
    """Where they are in the batch, or in what the decoder reads of it."""
    nats_N: np.ndarray
    """float64."""
    is_hit_N: np.ndarray
    """bool."""


class LossReader:
    """Scores batches.

    Raises UnsupportedModelError of an encoder, and where head and body can't be run one after the other.
    """

    def __init__(self, model: LoadedModel, logit_bytes: int = LOGIT_BYTES):
        if model.sees_later_tokens and not model.is_encoder_decoder:
            raise UnsupportedModelError(
                f"{model.facts.id} is an encoder, trained to fill in masked tokens: it has no loss of next tokens, "
                "which masks are judged by; use a causal language model or an encoder-decoder"
            )
        self._model = model
        vocabulary = model.model.get_output_embeddings().weight.shape[0]
        self._tokens_at_once = max(2 * MIN_BATCH_TOKENS, logit_bytes // (4 * vocabulary))
        _verify_head(model)

    def read(self, batch: Batch) -> TokenLosses:
        """The losses of a batch's scored tokens, row by row."""
        scored = batch.decoder or batch
        row_N, before_N = np.nonzero(scored.kind_BT[:, 1:] != PAD)
        hidden_BTD = self._model.run_batch(batch)
        target_N = scored.ids_BT[row_N, before_N + 1]
        nats_N = np.empty(len(row_N))
        is_hit_N = np.empty(len(row_N), bool)
        for part in self._parts(len(row_N)):
            hidden_nD = hidden_BTD[torch.from_numpy(row_N[part]), torch.from_numpy(before_N[part])]
            nats_n, hit_n = _score(self._model, hidden_nD, torch.from_numpy(target_N[part]))
            nats_N[part], is_hit_N[part] = nats_n.cpu().numpy(), hit_n.cpu().numpy()
        return TokenLosses(row_N, before_N + 1, nats_N, is_hit_N)

    def _parts(self, num_tokens: int) -> list[np.ndarray]:
        """Which tokens go through the head together."""
        return np.array_split(np.arange(num_tokens), -(-num_tokens // self._tokens_at_once)) if num_tokens else []


def _score(model: LoadedModel, hidden_nD: Tensor, target_n: Tensor) -> tuple[Tensor, Tensor]:
    """(nats [n] as float64, hits [n]) of the tokens that follow these hidden states."""
    logits_nV = head_logits(model, hidden_nD)
    target_n = target_n.to(logits_nV.device)
    with torch.inference_mode():
        is_hit_n = logits_nV.argmax(1) == target_n
        logits_nV = logits_nV.float()
        chosen_n = logits_nV.gather(1, target_n[:, None])[:, 0]
        return (logits_nV.logsumexp(1) - chosen_n).double(), is_hit_n


def _verify_head(model: LoadedModel) -> None:
    ids_BT = probe_ids(model.vocabulary)
    decoder_ids_BT = ids_BT.flip(0) if model.is_encoder_decoder else None
    given = {"input_ids": ids_BT.to(model.input_device)}
    if decoder_ids_BT is not None:
        given["decoder_input_ids"] = decoder_ids_BT.to(model.input_device)
    with torch.inference_mode():
        whole_BTV = model.model(**given, use_cache=False).logits
    parts_NV = head_logits(model, model.run_body(ids_BT, decoder_ids_BT=decoder_ids_BT).flatten(0, 1))
    whole_NV = whole_BTV.flatten(0, 1).float()
    limit = 16 * torch.finfo(parts_NV.dtype).eps * float(whole_NV.abs().max())
    if float((whole_NV - parts_NV.float()).abs().max()) > limit:
        raise UnsupportedModelError(
            f"{model.facts.id}: its head, run on its body's hidden states, doesn't give its logits; "
            "losses can't be measured on this model"
        )
