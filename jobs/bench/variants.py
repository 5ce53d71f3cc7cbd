"""The variants that `neurotally bench` compares: the bare model, what others do to it, and ours.

Each is a function to time and the state of the model around it; see `neurotally.jobs.bench.measure` for the list.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from neurotally.kernels.layer_tally import LayerTally, Statistics
from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.model.capture import LastPointRead, NeuronReader
from neurotally.profiler.model.experts import ExpertsHookPoint
from neurotally.profiler.model.functional import FunctionHookPoint
from neurotally.profiler.model.hook_points import HookPoint, reading, taken_out
from neurotally.profiler.model.load import LoadedModel
from neurotally.profiler.model.neurons import NeuronRecorder

NUM_TRIGGERS = 32

State = Callable[[], AbstractContextManager[Any]]
Variant = tuple[Callable[[], object], State]
"""What is timed, and the state of the model around it."""


def variants_of(model: LoadedModel, batch: Batch) -> dict[str, Variant]:
    """All variants, by name."""
    given = {"input_ids": torch.from_numpy(batch.ids_BT).to(model.input_device)}
    if batch.decoder is not None:
        given["decoder_input_ids"] = torch.from_numpy(batch.decoder.ids_BT).to(model.input_device)

    bare = partial(taken_out, model.hook_points)
    body = partial(model.run_body, given["input_ids"], decoder_ids_BT=given.get("decoder_input_ids"))

    def head() -> object:
        with torch.inference_mode():
            return model.model(**given, use_cache=False)[0]

    def products() -> None:
        with suppress(LastPointRead):
            body()

    def ours(level: Statistics) -> Variant:
        triggers = NUM_TRIGGERS if level == Statistics.EVERYTHING else 0
        recorder = NeuronRecorder(model, triggers)
        reader = NeuronReader(model, recorder, level)
        return partial(reader.tally, [batch]), nullcontext

    found: dict[str, Variant] = {
        "bare": (body, bare),
        "bare_again": (body, bare),
        "head": (head, bare),
    }
    if _has_activation_modules(model):
        found["products"] = (products, partial(_products_alone, model))
        found["eager_counts"] = (body, _eager_counts(model))
        found["eager_everything"] = (body, _eager_everything(model))
        if find_spec("nnsight") is not None and not model.is_encoder_decoder:
            found["nnsight_counts"] = (_nnsight_counts(model, given["input_ids"]), bare)
    return found | {
        "counts": ours(Statistics.COUNTS),
        "moments": ours(Statistics.MOMENTS),
        "full": ours(Statistics.EVERYTHING),
    }


def _has_activation_modules(model: LoadedModel) -> bool:
    """Whether each network has one of its own, for plain hooks to count at: no expert has, nor a functional one."""
    return not any(isinstance(point, ExpertsHookPoint | FunctionHookPoint) for point in model.hook_points)


@contextmanager
def _hooked(model: LoadedModel, register: Callable[[HookPoint], list[Any]]) -> Iterator[None]:
    with ExitStack() as hooks, taken_out(model.hook_points):
        for point in model.hook_points:
            for handle in register(point):
                hooks.enter_context(handle)
        yield


@contextmanager
def _products_alone(model: LoadedModel) -> Iterator[None]:
    """Each network reads what `up`, or a plain one's keys, give; the pass ends before the last one, as ours does."""
    last = model.hook_points[-1]

    def read(point: HookPoint, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        if point is last:
            raise LastPointRead
        return pre_BTF if up_BTF is None else up_BTF

    with reading(model.hook_points, read):
        yield


def _eager_counts(model: LoadedModel) -> State:
    counts = {point: torch.zeros(point.width, dtype=torch.int32, device=point.device) for point in model.hook_points}

    def register(point: HookPoint) -> list[Any]:
        def hook(_module: nn.Module, _args: Any, activation: Tensor) -> None:
            counts[point] += (activation.float() > 0).sum(dim=tuple(range(activation.dim() - 1))).int()

        return [point.activation.register_forward_hook(hook)]

    return partial(_hooked, model, register)


def _eager_everything(model: LoadedModel) -> State:
    """All of our statistics with hooks, as one would write them in eager PyTorch."""
    sums = {point: LayerTally.empty(point.width, point.device) for point in model.hook_points}
    best = {point: torch.zeros(NUM_TRIGGERS, point.width, device=point.device) for point in model.hook_points}

    def register(point: HookPoint) -> list[Any]:
        tally = sums[point]

        def on_act(_module: nn.Module, args: Any, activation: Tensor) -> None:
            over = tuple(range(activation.dim() - 1))
            tally["active"].add_((args[0] > 0).sum(dim=over))
            tally["activation_sum"].add_(activation.float().sum(dim=over))

        def on_down(_module: nn.Module, args: Any) -> None:
            coefficient_BTF = args[0].float()
            over = tuple(range(coefficient_BTF.dim() - 1))
            tally["coefficient_sum"].add_(coefficient_BTF.sum(dim=over))
            tally["coefficient_sum_absolute"].add_(coefficient_BTF.abs().sum(dim=over))
            tally["coefficient_sum_squares"].add_(coefficient_BTF.square().sum(dim=over))
            torch.maximum(tally["coefficient_max"], coefficient_BTF.amax(dim=over), out=tally["coefficient_max"])
            torch.minimum(tally["coefficient_min"], coefficient_BTF.amin(dim=over), out=tally["coefficient_min"])
            maxima_BF = coefficient_BTF.max(dim=-2).values.reshape(-1, coefficient_BTF.shape[-1])
            best[point] = torch.cat([best[point], maxima_BF]).topk(NUM_TRIGGERS, dim=0).values

        return [point.activation.register_forward_hook(on_act), point.down.register_forward_pre_hook(on_down)]

    return partial(_hooked, model, register)


def _nnsight_counts(model: LoadedModel, ids_BT: Tensor) -> Callable[[], object]:
    from nnsight import NNsight

    wrapped = NNsight(model.body)

    def run() -> object:
        counts = []
        with torch.inference_mode(), wrapped.trace(input_ids=ids_BT, use_cache=False):
            for point in model.hook_points:
                activation = wrapped.get(point.name).output
                counts.append((activation.float() > 0).sum(dim=(0, 1)).save())
        return counts

    return run
