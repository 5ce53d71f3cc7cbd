"""What identifies weights and tokenizers by their content.

Of weights names, shapes, the checkpoint's dtype and a fixed sample of every tensor: it takes seconds at any size and is
the same on every device and in every dtype.
"""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.profiler.model.offloading import brought_in
from neurotally.profiler.model.plain_tensors import plain_parts
from neurotally.profiler.model.sharded_tensors import bfloat16_bits

_SAMPLE = 256


def fingerprint_weights(model: nn.Module, checkpoint_dtype: str) -> str:
    """SHA-256 over names, shapes, the checkpoint's dtype and 256 evenly spaced elements of every tensor.

    The sample is rounded to bfloat16, so that the dtype in which the model was loaded doesn't matter.
    """
    digest = hashlib.sha256(checkpoint_dtype.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        digest.update(_sample(model, name, tensor))
    return digest.hexdigest()


def _sample(model: nn.Module, name: str, tensor: Tensor) -> bytes:
    """Evenly spaced elements of an entry of the model's state."""
    if not tensor.is_meta:
        return b"".join(map(_sample_of, plain_parts(tensor)))
    owner, _, own_name = name.rpartition(".")
    module = model.get_submodule(owner)
    with brought_in(module):
        return b"".join(map(_sample_of, plain_parts(module.state_dict()[own_name])))


def _sample_of(tensor: Tensor) -> bytes:
    index = torch.linspace(0, tensor.numel() - 1, min(_SAMPLE, tensor.numel()), dtype=torch.float64).long()
    if tensor.dtype == torch.int32:  # several weights in one
        return tensor.flatten()[index.to(tensor.device)].cpu().numpy().tobytes()
    return bfloat16_bits(tensor, index).numpy().tobytes()


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """SHA-256 of all that decides which ids a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    digest = hashlib.sha256(backend.to_str().encode() if backend is not None else b"")
    state = {
        "class": type(tokenizer).__name__,
        "vocabulary": sorted(tokenizer.get_vocab().items()) if backend is None else None,
        "special": sorted(tokenizer.all_special_ids),
        "probe": tokenizer("def f(x):\n\treturn [x, 'é']  # 数")["input_ids"],
    }
    digest.update(json.dumps(state, sort_keys=True).encode())
    return digest.hexdigest()
