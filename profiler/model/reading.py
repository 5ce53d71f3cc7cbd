"""Read what single neurons do on a text: their coefficients, token by token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neurotally.profiler.corpus.tokenise import tokenise
from neurotally.profiler.errors import InputError
from neurotally.profiler.model.config import decoder_start
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.hook_points import HookPoint, reading
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.hooking import hooked
from neurotally.profiler.model.load import LoadedModel

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class NeuronReading:
    """Coefficients of n neurons at T tokens."""

    tokens: tuple[str, ...]
    """The text of each; its id where there is no tokenizer."""
    neurons: tuple[tuple[int, int], ...]
    """(layer, neuron), as asked for."""
    coefficient_Tn: np.ndarray
    """float32: what multiplies the neuron's value vector, as the down projection reads it; NaN where the token isn't
    routed to the neuron's expert."""

    def frame(self) -> "pandas.DataFrame":
        """As a table: a row a token, a column a neuron. Needs pandas."""
        import pandas

        columns = pandas.MultiIndex.from_tuples(self.neurons, names=["layer", "neuron"])
        return pandas.DataFrame(self.coefficient_Tn, index=pandas.Index(self.tokens, name="token"), columns=columns)


def read_neurons(
    model: HookedModel | Any, text: str | Sequence[int], neurons: Sequence[tuple[int, int]], tokenizer: Any = None
) -> NeuronReading:
    """The coefficients of `neurons`, (layer, neuron) each, at every token of a text or of a list of token ids.

    `model`: what `load_model` gives, or a `transformers` language model, which gets hook points the first time; to read
    text it needs its `tokenizer`. Of an encoder-decoder both stacks read all of the text. Within `switched_off` the
    masked model is read. Raises InputError where there is no such neuron, no token, or more tokens than the model
    takes.

        model = load_model("Qwen/Qwen2.5-Coder-0.5B")
        reading = read_neurons(model, "def f(x):", [(0, 17), (1, 2)])
        print(reading.tokens, reading.coefficient_Tn)
    """
    model = hooked(model)
    if isinstance(model, LoadedModel):
        tokenizer = tokenizer or model.tokenizer
    ids_T = _ids(text, tokenizer)
    longest = model.facts.max_row_tokens if isinstance(model, LoadedModel) else len(ids_T)
    if not 1 <= len(ids_T) <= longest:
        raise InputError(f"the text has {len(ids_T)} tokens, expected 1 to {longest}")
    asked = tuple((int(layer), int(neuron)) for layer, neuron in neurons)
    columns, index = {}, {}
    for layer in dict.fromkeys(layer for layer, _ in asked):
        of_layer = np.array([at for at, (other, _) in enumerate(asked) if other == layer])
        for point, which_n, index_n in model.places(layer, [asked[at][1] for at in of_layer]):
            columns[point], index[point] = of_layer[which_n], index_n
    coefficient_Tn = np.full((len(ids_T), len(asked)), np.nan, np.float32)

    def keep(point: HookPoint, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        coefficient_BTF = point.computed(pre_BTF, up_BTF).coefficient_BTF
        if isinstance(point, ExpertsHookPoint):
            read_Tn = point.by_token(coefficient_BTF, len(ids_T), index[point]).cpu().numpy()
            held_Tn = coefficient_Tn[:, columns[point]]  # of the experts that were read before, where they come in turn
            coefficient_Tn[:, columns[point]] = np.where(np.isnan(read_Tn), held_Tn, read_Tn)
        else:
            of_layer_TF = coefficient_BTF.view(-1, point.width)[-len(ids_T) :]  # a decoder's start token is before them
            coefficient_Tn[:, columns[point]] = of_layer_TF[:, index[point]].float().cpu().numpy()
        return coefficient_BTF

    with reading(list(columns), keep):
        started = [decoder_start(model.model), *ids_T]
        model.run_body(
            torch.tensor([ids_T]), decoder_ids_BT=torch.tensor([started]) if model.is_encoder_decoder else None
        )
    texts = [str(token) if tokenizer is None else tokenizer.decode([token]) for token in ids_T]
    return NeuronReading(tuple(texts), asked, coefficient_Tn)


def _ids(text: str | Sequence[int], tokenizer: Any) -> list[int]:
    if not isinstance(text, str):
        return [int(one) for one in text]
    if tokenizer is None:
        raise InputError("text needs a tokenizer: give tokenizer=, token ids, or a model from load_model")
    return tokenise(tokenizer, [text])[0].ids_T
