"""Switch neurons off, scale or set them while a model runs or generates. No weight is touched.

activation        act(gate) or act(fc1) becomes 0
coefficient       what multiplies its value vector becomes 0; the same, up to rounding, as `activation`
weights           what a zeroed key gives: its row of the gate or fc1 with its bias, so act(0), which is 0 for
                  every common activation (the row of `up` stays)
weights-no-bias   what a key whose row alone is zeroed gives: act(bias), a constant
mean, set         the coefficient becomes `value`
scale             the coefficient is multiplied by `value`
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from neurotally.profiler.errors import InputError
from neurotally.profiler.model.hook_points import HookPoint, Intervention, Stage, intervening
from neurotally.profiler.model.hooked_model import HookedModel
from neurotally.profiler.model.hooking import hooked
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.whole_files import parsed_file

WAYS = ("activation", "coefficient", "weights", "weights-no-bias", "mean", "set", "scale")
"""What can be done to a neuron."""
_STAGES: Mapping[str, Stage] = {"activation": "activation", "weights": "pre", "weights-no-bias": "pre"}
"""Of the others: the coefficient."""
_WITH_VALUE = ("mean", "set", "scale")

Neurons = Mapping[int, Sequence[int]]
"""By layer: the numbers of neurons."""


@contextmanager
def switched_off(
    model: HookedModel | Any,
    neurons: Neurons | Mapping[str, Any] | str | Path,
    how: str = "activation",
    value: Any = None,
    set_name: str | None = None,
) -> Iterator[None]:
    """Within this context neurons are switched off, scaled or set; afterwards, whatever fails, the model is as before.

    `model`: what `load_model` gives, or a causal `transformers` model; the first time, hook points are put in its
    activation modules' places and verified, and they stay. `neurons`: `{layer: [neurons]}`, or a mask document as
    `lape --out` writes it, or its path; of a document the set `set_name`, else all of its sets together. `how`: one of
    `WAYS`; `value`: for `mean`, `set` and `scale`, one number or an array [L, F]. Contexts may be nested, and what
    reads neurons reads the masked model, whichever was entered first. Raises InputError where a neuron isn't there.

        model = load_model("Qwen/Qwen2.5-Coder-0.5B")
        with switched_off(model, {0: [17, 40], 1: [2]}):
            model.model.generate(**model.tokenizer("def f(", return_tensors="pt"), max_new_tokens=20)
    """
    if how not in WAYS:
        raise InputError(f"how={how!r}: expected one of {', '.join(WAYS)}")
    if (how in _WITH_VALUE) != (value is not None):
        raise InputError(f"how={how!r}, value={value!r}: expected a value for {', '.join(_WITH_VALUE)}, and only there")
    model = hooked(model)
    by_layer = _by_layer(neurons, set_name, model)
    places = [place for layer, of_layer in by_layer.items() for place in model.places(layer, sorted(set(of_layer)))]
    changes = [_intervention(point, index_n, how, value) for point, _, index_n in places]
    with intervening([point for point, *_ in places], changes):
        yield


def _by_layer(neurons: Neurons | Mapping[str, Any] | str | Path, set_name: str | None, model: HookedModel) -> Neurons:
    """The neurons meant, by layer: as they are, or of a mask document or its path."""
    if isinstance(neurons, str | Path):
        neurons = parsed_file(Path(neurons), json.loads, "JSON")
    if not isinstance(neurons, Mapping):
        raise InputError(f"neurons: expected {{layer: [neurons]}} or a mask document, got {type(neurons).__name__}")
    if any(isinstance(key, str) for key in neurons):
        return _of_document(neurons, set_name, model)
    if set_name is not None:
        raise InputError(f"set_name={set_name!r}: expected a mask document with its sets, got neurons by layer")
    return {int(layer): numbers for layer, numbers in neurons.items()}


def _of_document(document: Mapping[Any, Any], set_name: str | None, model: HookedModel) -> Neurons:
    sets = document.get("specific")
    if not isinstance(sets, Mapping):
        raise InputError("neurons: expected a mask document, which has a part 'specific'")
    if set_name is not None and set_name not in sets:
        raise InputError(f"set_name={set_name!r}: the mask document has {', '.join(map(repr, sets))}")
    made_from = (document.get("model") or {}).get("fingerprint")
    if isinstance(model, LoadedModel) and made_from not in (None, model.facts.fingerprint):
        raise InputError(
            f"the mask document is of another model (fingerprint {made_from[:8]}…), expected one of {model.name} "
            f"({model.facts.fingerprint[:8]}…)"
        )
    by_layer: dict[int, list[int]] = {}
    for name in sets if set_name is None else [set_name]:
        try:
            for layer, neuron in sets[name]:
                by_layer.setdefault(int(layer), []).append(int(neuron))
        except (TypeError, ValueError) as error:
            raise InputError(f"set {name!r} of the mask document: expected a list of [layer, neuron]") from error
    return by_layer


def _intervention(point: HookPoint, index_n: torch.Tensor, how: str, value: Any) -> Intervention:
    if how == "weights-no-bias":
        value_n = point.key_bias()[index_n]
    elif how in _WITH_VALUE:
        value_LF = torch.as_tensor(value, dtype=torch.float64)
        value_n = (
            value_LF.expand(len(index_n)) if value_LF.dim() == 0 else value_LF[point.layer][point.first + index_n.cpu()]
        )
    else:
        value_n = torch.zeros(len(index_n))
    stage = _STAGES.get(how, "coefficient")
    return Intervention(stage, index_n, value_n.to(point.device), is_factor=how == "scale")
