"""All statistics in a trace of nnsight."""

from common import Statistics, arguments, run_all
from nnsight import NNsight
from transformers import AutoModelForCausalLM, AutoTokenizer

options = arguments()
loaded = AutoModelForCausalLM.from_pretrained(options.model).eval()
statistics = Statistics(loaded.config.num_hidden_layers, loaded.config.intermediate_size)
model = NNsight(loaded.model)


def run(batch):
    with model.trace(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False):
        for layer, block in enumerate(model.layers):
            statistics.add(layer, block.mlp.act_fn.output, block.mlp.down_proj.input)


run_all(options.files, AutoTokenizer.from_pretrained(options.model), options.batch, statistics, run)
statistics.save(options.out)
