"""All statistics by plain forward hooks of PyTorch."""

from common import Statistics, arguments, run_all
from transformers import AutoModelForCausalLM, AutoTokenizer

options = arguments()
model = AutoModelForCausalLM.from_pretrained(options.model).eval()
statistics = Statistics(model.config.num_hidden_layers, model.config.intermediate_size)
activation = {}
for layer, block in enumerate(model.model.layers):

    def keep(_module, _inputs, output, layer=layer):
        activation[layer] = output

    def add(_module, inputs, layer=layer):
        statistics.add(layer, activation.pop(layer), inputs[0])

    block.mlp.act_fn.register_forward_hook(keep)
    block.mlp.down_proj.register_forward_pre_hook(add)


def run(batch):
    model.model(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)


run_all(options.files, AutoTokenizer.from_pretrained(options.model), options.batch, statistics, run)
statistics.save(options.out)
