"""Counts alone, by a forward of the feed-forward network that counts, as the papers on LAPE put it into a model."""

from types import MethodType

import torch
from common import Statistics, arguments, run_all
from transformers import AutoModelForCausalLM, AutoTokenizer

options = arguments()
model = AutoModelForCausalLM.from_pretrained(options.model).eval()
statistics = Statistics(model.config.num_hidden_layers, model.config.intermediate_size)
is_token = {}
for layer, block in enumerate(model.model.layers):

    def forward(self, x, layer=layer):
        activation = torch.nn.functional.silu(self.gate_proj(x))
        statistics.active[layer] += ((activation > 0) & is_token["now"]).sum((0, 1))
        return self.down_proj(activation * self.up_proj(x))

    block.mlp.forward = MethodType(forward, block.mlp)


def run(batch):
    is_token["now"] = batch.attention_mask.bool()[..., None]
    model.model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


run_all(options.files, AutoTokenizer.from_pretrained(options.model), options.batch, statistics, run)
statistics.save(options.out)
