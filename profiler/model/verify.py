"""Check, each time a model is loaded, that what we read is what the model computes.

One short batch of random tokens goes through the bare and the captured model:

- which way attention sees: where changing later tokens changes no bit of earlier ones pads on the right are harmless
  (in a mixture of experts, whose products round by how many tokens each expert gets, no more than rounding does, of
  nine states in ten); else pads get a mask, under which their ids change no bit of a token's state, and tokens agree
  with those of a row without pads;
- the decoder of an encoder-decoder is causal, and the whole model runs its two stacks as we do;
- layer by layer, what we call the coefficient h is what the down projection reads;
- counts and extremes equal, and sums agree with, what the formulas give for the layer's own tensors;
- the last hidden states agree.

On the CPU h is equal bitwise. On a GPU our kernels may round some elements otherwise than PyTorch's: at most 1 in
10,000 of a 16-bit h by a unit in the last place, more of a float32 h. Let through, one such difference would reach
almost every hidden state of the layers after it; so each layer is compared by itself, and what the bare model computed
goes on from there. The check is wider than that promise, so that chance refuses no sound model, and narrow enough to
find another activation, another layer's neurons, or neurons in another order (`Rounding`).
"""

from contextlib import ExitStack
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from neurotally.kernels.layer_tally import PAD, TOKEN, LayerTally
from neurotally.profiler.corpus.batches import Batch
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.capture import NeuronReader
from neurotally.profiler.model.experts import ExpertsHookPoint, Rows
from neurotally.profiler.model.hook_points import HookPoint
from neurotally.profiler.model.hooked_model import HookedModel, batch_mask
from neurotally.profiler.model.neurons import NeuronRecorder

_ROWS, _COLUMNS, _PADS = 2, 40, 8
_BEFORE_PADS = slice(0, _COLUMNS - _PADS)
_SHARE_ALIKE = 0.9
"""Of the hidden states of a mixture."""
_SUMS_WITHIN = 2.0**-16
"""Of the sum of absolutes."""


def probe_ids(vocabulary: int) -> Tensor:
    """Random token ids [2, 40], always the same."""
    return torch.randint(0, vocabulary, (_ROWS, _COLUMNS), generator=torch.Generator().manual_seed(0))


def sees_later_tokens(model: HookedModel, ids_BT: Tensor) -> bool:
    """Whether a token's hidden state depends on later tokens."""
    states = [model.run_body(ids)[:, _BEFORE_PADS] for ids in (ids_BT, _with_other_pads(ids_BT, model.vocabulary))]
    return not (_are_about(*states) if model.has_experts else torch.equal(*states))


def verify_masks(model: HookedModel, ids_BT: Tensor) -> None:
    """Raise UnsupportedModelError unless masked pads are as good as none."""
    mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    mask_BT[:, -_PADS:] = False
    padded = (ids_BT, _with_other_pads(ids_BT, model.vocabulary))
    masked_BTD, changed_BTD = (model.run_first_stack(ids, mask_BT)[:, _BEFORE_PADS] for ids in padded)
    unpadded_BTD = model.run_first_stack(ids_BT[:, _BEFORE_PADS])
    if not torch.equal(masked_BTD, changed_BTD) or not _are_about(masked_BTD, unpadded_BTD):
        raise UnsupportedModelError(
            f"{model.name} isn't supported: its tokens see later tokens, and what it computes depends on the length to "
            "which a row is padded in spite of an attention mask"
        )


def verify_decoder(model: HookedModel, ids_BT: Tensor) -> None:
    """Raise UnsupportedModelError unless the decoder is causal, and given its states by the encoder as we give them."""
    batch = probe_batch(model, ids_BT)
    assert batch.decoder is not None
    decoder_ids_BT, mask_BT = torch.from_numpy(batch.decoder.ids_BT), batch_mask(batch)
    changed_BT = _with_other_pads(decoder_ids_BT, model.vocabulary)
    states_BTD, changed_BTD = (model.run_body(ids_BT, mask_BT, ids) for ids in (decoder_ids_BT, changed_BT))
    if not torch.equal(states_BTD[:, :-_PADS], changed_BTD[:, :-_PADS]):
        raise UnsupportedModelError(f"{model.name} isn't supported: its decoder's tokens see later tokens")
    seen: list[Tensor] = []
    device = model.input_device
    with torch.inference_mode(), model.body.register_forward_hook(lambda _body, _args, output: seen.append(output[0])):
        model.model(
            input_ids=ids_BT.to(device), attention_mask=None if mask_BT is None else mask_BT.long().to(device),
            decoder_input_ids=decoder_ids_BT.to(device), use_cache=False,
        )  # fmt: skip
    if len(seen) != 1 or not _states_agree(seen[0], states_BTD):
        raise UnsupportedModelError(
            f"{model.name} isn't supported: its encoder and decoder, run one after the other, don't give its states"
        )


def probe_batch(model: HookedModel, ids_BT: Tensor) -> Batch:
    """`ids_BT` with pads at the end of one row; the decoder of an encoder-decoder reads others, fewer."""
    decoder = None
    if model.is_encoder_decoder:
        decoder = _padded(ids_BT.flip(0)[:, _PADS // 2 :])
        decoder.kind_BT[:, 0] = PAD
    return replace(_padded(ids_BT), decoder=decoder)


def _padded(ids_BT: Tensor) -> Batch:
    kind_BT = np.full(tuple(ids_BT.shape), TOKEN, np.uint8)
    kind_BT[1, -_PADS:] = PAD
    zeros_BT = np.zeros(kind_BT.shape, np.int32)
    return Batch(ids_BT.numpy(), kind_BT, zeros_BT, zeros_BT)


def _with_other_pads(ids_BT: Tensor, vocabulary: int) -> Tensor:
    """The same with other tokens at the end of each row."""
    changed_BT = ids_BT.clone()
    changed_BT[:, -_PADS:] = (changed_BT[:, -_PADS:] + 1) % vocabulary
    return changed_BT


class Rounding(NamedTuple):
    """How far a coefficient h = act(x)·up may be from the model's own, by device and dtype."""

    relative: float
    """Of h."""
    of_input: float
    """Of |x·up|: an activation that is nearly 0 there (GELU at -5) is the difference of numbers of its input's size."""
    share: float
    """Of a layer's elements, so many may differ at all, and 10 more."""


BITWISE = Rounding(0.0, 0.0, 0.0)


def gpu_rounding(dtype: torch.dtype) -> Rounding:
    """What a GPU is allowed."""
    return Rounding(2 * torch.finfo(dtype).eps, 2**-20, 1.0 if dtype == torch.float32 else 1e-3)


def verify_hook_points(model: HookedModel, ids_BT: Tensor, rounding: Rounding | None = None) -> None:
    """Raise UnsupportedModelError, naming the layer, where the captured model isn't the bare model.

    `rounding`: by default that of each layer's device.
    """
    checks = {
        point: _ExpertsCheck(point, rounding) if isinstance(point, ExpertsHookPoint) else _LayerCheck(point, rounding)
        for point in model.hook_points
    }
    batch = probe_batch(model, ids_BT)
    with ExitStack() as hooks:
        for check in checks.values():
            check.watch(hooks)
        bare_BTD = model.run_batch(batch)
    recorder = NeuronRecorder(model, num_triggers=0)
    captured_BTD = NeuronReader(model, recorder).read(batch, lambda point, *seen: checks[point].pass_on(*seen))
    if not _states_agree(bare_BTD, captured_BTD):
        raise UnsupportedModelError(
            f"{model.name}: hidden states of the captured and the bare model differ; this model isn't supported"
        )
    for point, check in checks.items():
        check.check_tally(recorder.tallies[point], torch.from_numpy(point.read_of(batch).kind_BT == TOKEN))


class _LayerCheck:
    """One layer of the captured run against the same layer of the bare run."""

    def __init__(self, point: HookPoint, rounding: Rounding | None):
        self._point = point
        self._rounding = rounding
        self._read: list[Tensor] = []

    def watch(self, hooks: ExitStack) -> None:
        """Keep what the bare model's down projection reads, or the norm before it."""

        def keep(_down: nn.Module, args: tuple[Tensor, ...]) -> None:
            self._read.append(args[0])

        reads = self._point.down if self._point.norm is None else self._point.norm
        hooks.enter_context(reads.register_forward_pre_hook(keep))

    def pass_on(self, pre_BTF: Tensor, up_BTF: Tensor | None, h_BTF: Tensor) -> Tensor:
        """What the bare model's down projection read, which our `h_BTF` must equal up to rounding."""
        self._pre_BTF, self._h_BTF = pre_BTF, h_BTF
        input_BTF = pre_BTF if up_BTF is None else pre_BTF.double() * up_BTF
        rounding = self._rounding or (BITWISE if h_BTF.device.type == "cpu" else gpu_rounding(h_BTF.dtype))
        for read in self._read:
            if read.numel() != h_BTF.numel():
                continue
            bare_BTF = read.reshape(h_BTF.shape)
            if _agrees(bare_BTF, h_BTF, input_BTF, rounding):
                return bare_BTF
        raise self._refused(
            "no weight matrix reads what we take for the neurons' coefficients; "
            "this feed-forward network isn't supported"
        )

    def check_tally(self, tally: LayerTally, counted_BT: Tensor) -> None:
        """Hold a layer's tally of the tokens `counted_BT` against the formulas."""
        counted_BT = counted_BT.to(self._h_BTF.device)
        self._hold_against_formulas(tally, self._pre_BTF[counted_BT], self._h_BTF[counted_BT].double())

    def _hold_against_formulas(self, tally: LayerTally, pre_NF: Tensor, h_NF: Tensor) -> None:
        number_NF = h_NF.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
        is_nan_NF = h_NF.isnan()
        equal = {
            "counts": (tally["active"], (pre_NF > 0).sum(0)),
            "largest coefficients": (tally["coefficient_max"], number_NF.masked_fill(is_nan_NF, -torch.inf).amax(0)),
            "smallest coefficients": (tally["coefficient_min"], number_NF.masked_fill(is_nan_NF, torch.inf).amin(0)),
        }
        close = {
            "sums": (tally["coefficient_sum"], h_NF),
            "sums of magnitudes": (tally["coefficient_sum_absolute"], h_NF.abs()),
            "sums of squares": (tally["coefficient_sum_squares"], h_NF.square()),
        }
        wrong = [what for what, (ours_F, theirs_F) in equal.items() if not bool((ours_F == theirs_F).all())]
        wrong += [what for what, (sum_F, term_NF) in close.items() if not _is_sum_of(sum_F, term_NF)]
        if wrong:
            raise self._refused(f"{' and '.join(wrong)} differ from a plain hook's")

    def _refused(self, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._point}: {why}")


class _ExpertsCheck(_LayerCheck):
    """The same of a layer's experts; and each row of a product is of the expert and token it is taken for."""

    _point: ExpertsHookPoint

    def watch(self, hooks: ExitStack) -> None:
        self._products: list[tuple[Rows, Tensor, Tensor]] = []
        """Whose rows they are, and their pre-activations and coefficients [S, F]."""
        hooks.enter_context(self._point.watch_bare(self._read.append))
        hooks.enter_context(self._point.watch_hidden(self._keep_hidden))

    def pass_on(self, pre_BTF: Tensor, up_BTF: Tensor | None, h_BTF: Tensor) -> Tensor:
        rows = self._point.rows
        assert rows is not None
        for expert in torch.unique(rows.expert_S).tolist():
            of_expert = rows.of(expert)
            if not len(of_expert):
                continue
            hidden_ND = self._hidden_ND[rows.token_S[of_expert]]
            expected_NF = self._point.first_product(expert, hidden_ND, rows.score_S[of_expert])
            if expected_NF is not None and not _is_about(pre_BTF[of_expert], expected_NF):
                raise self._refused(
                    f"what is taken for expert {expert}'s rows isn't what its matrix gives for its tokens"
                )
        self._products.append((rows, pre_BTF, h_BTF))
        return super().pass_on(pre_BTF, up_BTF, h_BTF) if len(pre_BTF) else h_BTF

    def check_tally(self, tally: LayerTally, counted_BT: Tensor) -> None:
        width = self._point.expert_width
        for expert in range(self._point.num_experts):
            pre, h = [], []
            for rows, pre_SF, h_SF in self._products:
                of_expert = rows.of(expert)
                is_counted = counted_BT.flatten().to(h_SF.device)[rows.token_S[of_expert]]
                pre.append(pre_SF[of_expert][is_counted])
                h.append(h_SF[of_expert][is_counted].double())
            if sum(map(len, pre)):
                part = tally.of_expert(expert, width)
                self._hold_against_formulas(part, torch.cat(pre), torch.cat(h))

    def _keep_hidden(self, hidden_ND: Tensor) -> None:
        self._hidden_ND = hidden_ND


def _are_about(states_BTD: Tensor, others_BTD: Tensor) -> bool:
    """Whether most hidden states agree but for rounding.

    A mixture's products have as many rows as tokens are sent to an expert, and round by that number; now and then a
    router then decides otherwise.
    """
    others_BTD = others_BTD.float()
    scale_BT = others_BTD.abs().amax(-1).clamp(min=1e-30)
    off_BT = (states_BTD.float() - others_BTD).abs().amax(-1) / scale_BT
    return bool((off_BT <= 256 * torch.finfo(states_BTD.dtype).eps).float().mean() >= _SHARE_ALIKE)


def _is_about(pre_NF: Tensor, expected_NF: Tensor) -> bool:
    """Whether products agree but for rounding, a thousandth of them set aside."""
    scale = expected_NF.abs().amax().clamp(min=1e-30)
    within = 64 * torch.finfo(pre_NF.dtype).eps * scale
    return bool(((pre_NF.double() - expected_NF).abs() <= within).double().mean() >= 0.999)


def _agrees(bare_BTF: Tensor, ours_BTF: Tensor, input_BTF: Tensor, rounding: Rounding) -> bool:
    bare, ours, of_input = (x.nan_to_num().double() for x in (bare_BTF, ours_BTF, input_BTF))
    difference = (bare - ours).abs()
    smallest = torch.finfo(bare_BTF.dtype).smallest_normal  # below it a unit in the last place gets no smaller
    limit = rounding.relative * bare.abs().clamp(min=smallest) + rounding.of_input * of_input.abs()
    allowed = 0 if rounding == BITWISE else 10 + rounding.share * difference.numel()
    return bool((difference <= limit).all()) and int((difference > 0).sum()) <= allowed


def _is_sum_of(sum_F: Tensor, term_NF: Tensor) -> bool:
    """Whether a sum is right to fp32's rounding of some of its steps; where it isn't finite, whether it says so."""
    expected_F = term_NF.sum(0)
    is_close_F = (sum_F - expected_F).abs() <= _SUMS_WITHIN * term_NF.abs().sum(0)
    return bool((is_close_F | (~expected_F.isfinite() & ~sum_F.isfinite())).all())


def _states_agree(bare: Tensor, captured: Tensor) -> bool:
    """Whether the last hidden states agree: bitwise on the CPU, to the dtype's rounding where products may vary."""
    if bare.device.type == "cpu":
        return torch.equal(bare.nan_to_num(), captured.nan_to_num())
    close = torch.isclose(bare.float(), captured.float(), rtol=2 * torch.finfo(bare.dtype).eps, atol=1e-6)
    return bool(close.float().mean() > 0.999)
