"""All statistics by hooks of TransformerLens's bridge."""

import torch
from common import Statistics, arguments, run_all
from transformer_lens.model_bridge import TransformerBridge

options = arguments()
model = TransformerBridge.boot_transformers(options.model, device="cpu")
statistics = Statistics(model.cfg.n_layers, model.cfg.d_mlp)
activation = {}


def keep(gate, hook):
    activation[hook.layer()] = torch.nn.functional.silu(gate)


def add(coefficient, hook):
    statistics.add(hook.layer(), activation.pop(hook.layer()), coefficient)


hooks = [
    (f"blocks.{layer}.mlp.{name}", function)
    for layer in range(model.cfg.n_layers)
    for name, function in [("gate.hook_out", keep), ("out.hook_in", add)]
]


def run(batch):
    model.run_with_hooks(batch.input_ids, attention_mask=batch.attention_mask, fwd_hooks=hooks, return_type=None)


run_all(options.files, model.tokenizer, options.batch, statistics, run)
statistics.save(options.out)
