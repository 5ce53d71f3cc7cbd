"""Next-token loss by document, with some neurons switched off or none.

The loss of a document is the sum over its tokens of -ln p(token | the tokens before it in its row), in nats.
The first token of a row has nothing before it and is not scored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neurotally.kernels.tally import PAD
from neurotally.profiler.batches import Batch, lay_out, rectangles
from neurotally.profiler.model import LoadedModel

_LOGIT_BYTES = 2**28
"""Rectangles are sized so that their float32 logits take no more."""


@dataclass(frozen=True)
class DocumentLosses:
    """Losses of n documents."""

    nats_n: np.ndarray
    """float64: the sum over scored tokens."""
    tokens_n: np.ndarray
    """int64: scored tokens."""

    @property
    def mean(self) -> float:
        """Nats a token over all documents."""
        return float(self.nats_n.sum() / self.tokens_n.sum())


def document_losses(model: LoadedModel, documents: Sequence[Sequence[int]], row_tokens: int) -> DocumentLosses:
    """The losses of tokenised documents, under whatever is switched off at the moment."""
    rows = lay_out(list(enumerate(documents)), model.special_ids, "documents", row_tokens)
    vocabulary = model.model.get_output_embeddings().weight.shape[0]
    nats_n = np.zeros(len(documents))
    tokens_n = np.zeros(len(documents), np.int64)
    for batch in rectangles(rows, max(row_tokens, _LOGIT_BYTES // (4 * vocabulary))):
        nats_BT = _token_losses(model, batch).cpu().numpy()
        is_scored_BT = batch.kind_BT[:, 1:] != PAD
        document = batch.document_BT[:, 1:][is_scored_BT]
        np.add.at(nats_n, document, nats_BT[is_scored_BT])
        np.add.at(tokens_n, document, 1)
    return DocumentLosses(nats_n, tokens_n)


def _token_losses(model: LoadedModel, batch: Batch) -> Tensor:
    """float64 [B, T-1]: the loss of each token but the first of a row; of pads too, which mean nothing."""
    ids_BT = torch.from_numpy(batch.ids_BT).to(model.model.get_input_embeddings().weight.device)
    with torch.inference_mode():
        logits_BTV = model.model(input_ids=ids_BT, use_cache=False).logits[:, :-1].float()
        target_BT = ids_BT[:, 1:].to(logits_BTV.device)
        chosen_BT = logits_BTV.gather(2, target_BT[:, :, None])[:, :, 0]
        nats_BT: Tensor = (logits_BTV.logsumexp(2) - chosen_BT).double()
    return nats_BT
