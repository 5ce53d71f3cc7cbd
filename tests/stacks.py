"""Small random encoders and encoder-decoders, and where each keeps its projections, from its own modeling file.

The references run the bare model, whole, on one row at a time: nothing is padded there and nothing needs a mask.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from families import _FORMULAS, VOCABULARY, Seen, each, randomised, tiny_config
from families import SMALL as SMALL_DECODERS
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

ENCODER_LAYERS, DECODER_LAYERS = 2, 3
SMALL = {
    **SMALL_DECODERS, **each("dim embedding_size", 64), "hidden_dim": 96, "d_kv": 16, "d_ff": 96,
    **each("encoder_layers num_layers", ENCODER_LAYERS), **each("decoder_layers num_decoder_layers", DECODER_LAYERS),
    "decoder_ffn_dim": 80,
}  # fmt: skip


@dataclass(frozen=True)
class Layers:
    """Where a stack's layers are, and in a layer the projections; `gated`: `keys` gives gate and up, one beside the
    other, or the name of up's projection."""

    layers: str
    keys: str
    down: str
    gated: bool | str = False


@dataclass(frozen=True)
class Stacks:
    """The stacks of one family, by their names in the model."""

    encoder: Layers
    decoder: Layers | None = None
    act: str = "gelu"
    family: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    has_head: bool = True


_BERT = Stacks(Layers("bert.encoder.layer", "intermediate.dense", "output.dense"))
_ROBERTA = replace(_BERT, encoder=replace(_BERT.encoder, layers="roberta.encoder.layer"))
_GATED = Layers("model.layers", "mlp.gate_proj", "mlp.down_proj", gated="mlp.up_proj")
_BART = Stacks(Layers("model.encoder.layers", "fc1", "fc2"), Layers("model.decoder.layers", "fc1", "fc2"))
_T5 = Stacks(
    Layers("encoder.block", "layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"),
    Layers("decoder.block", "layer.2.DenseReluDense.wi", "layer.2.DenseReluDense.wo"), act="relu",
)  # fmt: skip
_GATED_T5 = Stacks(
    *(replace(of, keys=of.keys + "_0", gated=of.keys + "_1") for of in (_T5.encoder, _T5.decoder) if of), act="gelu_new"
)
_SMALL_GEMMA = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": VOCABULARY, "pad_token_id": 2,
}  # fmt: skip
STACKS = {
    "bert": _BERT,
    "bert, without a head": replace(
        _BERT, family="bert", encoder=replace(_BERT.encoder, layers="encoder.layer"), has_head=False),
    "roberta": _ROBERTA,
    "roberta, without a head": replace(
        _ROBERTA, family="roberta", encoder=replace(_BERT.encoder, layers="encoder.layer"), has_head=False),
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "electra": replace(_BERT, encoder=replace(_BERT.encoder, layers="electra.encoder.layer")),
    "deberta-v2": replace(_BERT, encoder=replace(_BERT.encoder, layers="deberta.encoder.layer")),
    "distilbert": Stacks(Layers("distilbert.transformer.layer", "ffn.lin1", "ffn.lin2")),
    "modernbert": Stacks(Layers("model.layers", "mlp.Wi", "mlp.Wo", gated=True)),
    "eurobert": Stacks(_GATED, act="silu"),
    "bart": _BART,
    "plbart": _BART,
    "mbart": _BART,
    "marian": replace(_BART, config={"activation_function": "gelu"}),
    "pegasus": _BART,
    "m2m_100": replace(_BART, act="relu"),
    "t5gemma": Stacks(
        replace(_GATED, layers="model.encoder.layers"), replace(_GATED, layers="model.decoder.layers"),
        act="gelu_pytorch_tanh", config={
            "encoder": {**_SMALL_GEMMA, "num_hidden_layers": ENCODER_LAYERS},
            "decoder": {**_SMALL_GEMMA, "num_hidden_layers": DECODER_LAYERS}, "pad_token_id": 2}),
    "t5": _T5,
    "t5, gated": replace(_GATED_T5, family="t5", config={
        "feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new"}),
    "mt5": _GATED_T5,
    "umt5": _GATED_T5,
    "longt5": _T5,
}  # fmt: skip


def tiny_stacks(name: str, small: dict[str, Any] = SMALL) -> Any:
    """A model of STACKS, random: the same each time."""
    one = STACKS[name]
    torch.manual_seed(0)
    of_kind = {"decoder_start_token_id": 0} if one.decoder else {"is_decoder": False}
    auto = AutoModelForSeq2SeqLM if one.decoder else AutoModelForMaskedLM if one.has_head else AutoModel
    return randomised(auto.from_config(tiny_config(one.family or name, {**of_kind, **one.config}, small)).eval())


class StackHooks:
    """Forward hooks on a bare model's own projections."""

    def __init__(self, model: Any, name: str):
        self.model, self.stacks = model, STACKS[name]
        self._kept: dict[tuple[int, int, str], Tensor] = {}
        for number, of in enumerate(self._layers()):
            for layer, block in enumerate(model.get_submodule(of.layers)):
                self._keep(block.get_submodule(of.keys), (number, layer, "keys"), is_input=False)
                self._keep(block.get_submodule(of.down), (number, layer, "coefficient"), is_input=True)

    def _layers(self) -> list[Layers]:
        return [self.stacks.encoder] + ([self.stacks.decoder] if self.stacks.decoder else [])

    def _keep(self, module: nn.Module, key: tuple[int, int, str], is_input: bool) -> None:
        def hook(_module: nn.Module, args: Any, output: Tensor) -> None:
            self._kept[key] = args[0] if is_input else output

        module.register_forward_hook(hook)

    def run(self, ids_T: list[int], decoder_ids_T: list[int] | None = None) -> Iterator[tuple[int, int, Seen]]:
        """The whole model over one row; (0 encoder or 1 decoder, its layer, what the layer did), [T, F] each."""
        given = {"input_ids": torch.tensor([ids_T])}
        if decoder_ids_T is not None:
            given |= {"decoder_input_ids": torch.tensor([decoder_ids_T]), "use_cache": False}
        self._kept.clear()
        with torch.no_grad():
            self.model(**given)
        formula = _FORMULAS[self.stacks.act]
        for number, of in enumerate(self._layers()):
            for layer in range(len(self.model.get_submodule(of.layers))):
                keys_TF = self._kept[number, layer, "keys"].flatten(0, -2)
                pre_TF = keys_TF.chunk(2, dim=-1)[0] if of.gated is True else keys_TF
                coefficient_TF = self._kept[number, layer, "coefficient"].flatten(0, -2)
                yield number, layer, Seen(pre_TF, formula(pre_TF.double()), coefficient_TF)
