"""Hook points in mixtures of experts; here for families whose experts go through transformers' experts interface.

The others are in `own_experts`. Such a module holds the matrices of all its experts as 3-D parameters. Its forward pass
is given the hidden states [N, D], the k experts of each token and their routing weights, and one product makes a row
for each pair of token and expert. Between that product and the next stands `_apply_gate` (`act_fn` where experts have
no gate), and there is the hook point: pre-activations and `up` come by as [S, F], S = N·k. Which row is whose follows
from how transformers orders them (`_rows`); `verify` holds it against the experts' own matrices.

Some families compute the coefficient by a formula of their own (gpt-oss: (up + 1)·gate·σ(α·gate), both clamped). It is
linear in `up`, so that what they multiply it by, the activation, is its value at up = 1 less that at up = 0.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.integrations import moe

from neurotally.kernels.routing import Routing, route
from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.formulas import as_module
from neurotally.profiler.model.hook_points import Computed, HookPoint, Intervention
from neurotally.profiler.model.offloading import brought_in
from neurotally.profiler.model.overrides import in_place
from neurotally.profiler.model.plain_tensors import is_plain
from neurotally.profiler.model.sharded_tensors import local_part

_ORDERS = ("grouped_mm", "batched_mm")
"""Ways of transformers to compute all experts in one product."""


def has_interface(module: nn.Module) -> bool:
    """Whether a module holds experts that go through transformers' experts interface."""
    return hasattr(module, "_apply_gate") and hasattr(module, "is_concatenated") and hasattr(module, "has_gate")


class Rows(NamedTuple):
    """Whose the S rows of a product of experts are."""

    expert_S: Tensor
    """int64."""
    token_S: Tensor
    """int64: its number among the N."""
    score_S: Tensor
    """The routing weight."""
    weight_S: Tensor | None = None
    """By what the expert's output is multiplied, where that isn't the routing weight."""
    is_routed_S: Tensor | None = None
    """bool: False where the router doesn't send the token to this expert, which computes it all the same. None: all."""

    def of(self, expert: int) -> Tensor:
        """int64: an expert's rows, of the tokens that are routed to it."""
        is_its_S = self.expert_S == expert
        return (is_its_S if self.is_routed_S is None else is_its_S & self.is_routed_S).nonzero()[:, 0]


@dataclass(eq=False)
class ExpertsHookPoint(HookPoint):
    """The experts of a layer; neuron e·F + j is the j-th of expert e."""

    experts: Any = field(kw_only=True)
    """The module that holds them."""
    num_experts: int = field(kw_only=True)
    rows: Rows | None = None
    """Of the product that is computed now."""
    calls_left: int = 0
    """How many more products this pass has, where each expert has one of its own."""

    @property
    def expert_width(self) -> int:
        """Neurons of an expert, F."""
        return self.width // self.num_experts

    @property
    def has_own_formula(self) -> bool:
        """Whether the coefficient is something else than act(gate)·up or act(up)."""
        return False

    @abstractmethod
    def watch_hidden(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        """Within this context `keep` is shown the hidden states [N, D] that experts are given."""

    @abstractmethod
    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        """Within this context `keep` is shown what the second product of the bare experts reads, [S, F] or parts."""

    @abstractmethod
    def first_product(self, expert: int, hidden_ND: Tensor, score_N: Tensor) -> Tensor | None:
        """float64 [N, F]: an expert's pre-activations by its own matrix; None where that holds no plain numbers."""

    def key_bias(self) -> Tensor:
        raise UnsupportedModelError(f"{self}: the bias of experts' keys isn't read; switch neurons off in another way")

    def changed(self, intervention: Intervention, values_BTF: Tensor) -> Tensor:
        """`values_BTF` [S, F] with some experts' neurons changed, out of place."""
        assert self.rows is not None
        values_SF, width = values_BTF.clone(), self.expert_width
        value_n = intervention.value_n.to(values_SF.dtype)
        for expert in torch.unique(intervention.index_n // width).tolist():
            is_its_n = intervention.index_n // width == expert
            at = self.rows.of(expert)[:, None], (intervention.index_n[is_its_n] % width)[None]
            values_SF[at] = values_SF[at] * value_n[is_its_n] if intervention.is_factor else value_n[is_its_n]
        return values_SF

    def by_token(self, values_SF: Tensor, num_tokens: int, index_n: Tensor) -> Tensor:
        """float32 [N, n]: what neurons have at each token, NaN where it isn't among these rows."""
        assert self.rows is not None
        values_Nn = torch.full((num_tokens, len(index_n)), torch.nan, device=values_SF.device)
        for column, number in enumerate(index_n.tolist()):
            expert, neuron = divmod(number, self.expert_width)
            rows = self.rows.of(expert)
            values_Nn[self.rows.token_S[rows], column] = values_SF[rows, neuron].float()
        return values_Nn

    def routing(self, row_cells: int) -> Routing:
        """Whose the rows are that are computed now; `row_cells`: T, of batches [B, T]."""
        assert self.rows is not None
        weight_S = self.rows.score_S if self.rows.weight_S is None else self.rows.weight_S
        return route(self.rows.expert_S, self.rows.token_S, weight_S, row_cells)


class InterfaceExperts(ExpertsHookPoint):
    """Experts that go through transformers' experts interface."""

    @property
    def has_own_formula(self) -> bool:
        return self.gated and (
            type(self.experts)._apply_gate is not moe._default_apply_gate or not self.experts.is_concatenated
        )

    def computed(self, pre_BTF: Tensor, up_BTF: Tensor | None) -> Computed:
        if not self.has_own_formula:
            return super().computed(pre_BTF, up_BTF)
        assert up_BTF is not None
        for one in self._at("pre"):
            pre_BTF = self.changed(one, pre_BTF)
        coefficient_BTF = self._own_formula(pre_BTF, up_BTF)
        at_one, at_zero = (self._own_formula(pre_BTF, torch.full_like(up_BTF, up)) for up in (1.0, 0.0))
        activation_BTF = at_one - at_zero
        for one in self._at("activation"):
            activation_BTF, pre_BTF = self.changed(one, activation_BTF), self.changed(one, pre_BTF)
            coefficient_BTF = self.changed(one, coefficient_BTF)
        for one in self._at("coefficient"):
            coefficient_BTF = self.changed(one, coefficient_BTF)
        return Computed(pre_BTF, activation_BTF, coefficient_BTF)

    def install(self) -> None:
        self._hook = self.experts.register_forward_pre_hook(self._keep_routing, with_kwargs=True)
        if not self.gated:
            super().install()
            return
        self._original: Callable[[Tensor], Tensor] = self.experts._apply_gate
        self.experts._apply_gate = self._gate

    def take_out(self) -> None:
        self._hook.remove()
        if not self.gated:
            super().take_out()
        else:
            del self.experts._apply_gate

    def watch_hidden(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        def hook(_experts: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            keep(routed_inputs(self.experts, args, kwargs)[0])

        handle: AbstractContextManager[Any] = self.experts.register_forward_pre_hook(hook, with_kwargs=True)
        return handle

    @contextmanager
    def watch_bare(self, keep: Callable[[Tensor], None]) -> Iterator[None]:
        if not self.gated:
            with self.experts.act_fn.register_forward_hook(lambda _module, _args, output: keep(output)):
                yield
            return
        original = self.experts._apply_gate

        def kept(product_SF: Tensor) -> Tensor:
            coefficient_SF: Tensor = original(product_SF)
            keep(coefficient_SF)
            return coefficient_SF

        with in_place(self.experts, "_apply_gate", kept):
            yield

    def first_product(self, expert: int, hidden_ND: Tensor, score_N: Tensor) -> Tensor | None:
        name = "gate_up_proj" if self.gated else "up_proj"
        with brought_in(self.experts):
            weight = getattr(self.experts, name)
            if not is_plain(weight) or weight.dim() != 3:
                return None
            bias = getattr(self.experts, f"{name}_bias", None)
            matrix = weight[expert].double()
            product = hidden_ND.double() @ (matrix if self.experts.is_transposed else matrix.T)
            product = product if bias is None else product + bias[expert].double()
        return self.halves(product)[0] if self.gated else product

    def halves(self, product_SF: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations and `up` [S, F] of a product [S, 2F]."""
        if self.experts.is_concatenated:
            pre_SF, up_SF = product_SF.chunk(2, dim=-1)
            return pre_SF, up_SF
        return product_SF[..., ::2], product_SF[..., 1::2]

    def _gate(self, product_SF: Tensor) -> Tensor:
        """What stands in for `_apply_gate`."""
        if self.is_idle:
            return self._original(product_SF)
        return self.coefficient(*self.halves(product_SF))

    def _own_formula(self, pre_SF: Tensor, up_SF: Tensor) -> Tensor:
        pairs = (pre_SF, up_SF)
        joined = torch.cat(pairs, -1) if self.experts.is_concatenated else torch.stack(pairs, -1).flatten(-2)
        coefficient_SF: Tensor = type(self.experts)._apply_gate(self.experts, joined)
        return coefficient_SF

    def is_linear_in_up(self) -> bool:
        """Whether the coefficient is, for small `up`: the activation is then what it grows by."""
        pre_SF = torch.linspace(-3, 3, 64, device=self.device)[:, None].expand(-1, self.expert_width)
        at_zero, at_half, at_one = (self._own_formula(pre_SF, torch.full_like(pre_SF, up)) for up in (0.0, 0.5, 1.0))
        return torch.allclose(at_half - at_zero, at_one - at_half, rtol=1e-4, atol=1e-6)

    def _keep_routing(self, _experts: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.is_idle:
            return
        _, index_Nk, weight_Nk = routed_inputs(self.experts, args, kwargs)
        self.rows = _rows(self, index_Nk, weight_Nk)


def routed_inputs(experts: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [N, D], experts [N, k] and routing weights [N, k] that a mixture's experts are given."""
    # The class's: a module that is spread over devices has a wrapper in its place.
    given = inspect.signature(type(experts).forward).bind(experts, *args, **kwargs).arguments
    _, hidden_ND, index_Nk, weight_Nk, *_ = given.values()
    return hidden_ND, index_Nk, weight_Nk


def _rows(point: ExpertsHookPoint, index_Nk: Tensor, weight_Nk: Tensor) -> Rows:
    """The rows of the product, as transformers orders them."""
    flat_S, k = index_Nk.reshape(-1), index_Nk.shape[-1]
    if _order_of(point.experts, str(point)) == "batched_mm":
        return Rows(flat_S, torch.arange(len(flat_S), device=flat_S.device) // k, weight_Nk.reshape(-1))
    expert_S, permutation_S = torch.sort(flat_S)  # the very call: equal numbers come in the order that it gives
    return Rows(expert_S, permutation_S // k, weight_Nk.reshape(-1)[permutation_S])


def _order_of(experts: Any, where: str) -> str:
    """How transformers computes a mixture's experts, one of `_ORDERS`; UnsupportedModelError where otherwise."""
    order = str(getattr(experts.config, "_experts_implementation", None) or "eager")
    if order not in _ORDERS:
        raise UnsupportedModelError(
            f"{where}: its experts are computed by {order!r}, whose neurons can't be read; "
            "call model.set_experts_implementation('grouped_mm')"
        )
    return order


def interface_experts(layer: int, name: str, experts: Any) -> InterfaceExperts:
    """The hook point of a module of experts; UnsupportedModelError, naming the layer, where it can't be read."""
    where = f"layer {layer} ({name})"
    if getattr(experts, "_is_expert_parallel", False):
        raise UnsupportedModelError(f"{where}: experts spread over devices (expert parallel) aren't supported")
    _order_of(experts, where)
    down = getattr(experts, "down_proj", None)
    if not isinstance(down, Tensor) or down.dim() != 3:
        raise UnsupportedModelError(f"{where}: its experts have no matrix down_proj [E, …]; they aren't supported")
    if down.is_meta and hasattr(experts, "_hf_hook"):
        raise UnsupportedModelError(
            f"{where}: experts that don't fit on their device (offloaded) can't be read; let more devices hold the "
            "model (profile --devices-per-worker)"
        )
    if not is_plain(local_part(down)):
        raise UnsupportedModelError(
            f"{where}: its experts are quantised ({down.dtype}) and computed by kernels of their own, whose rows can't "
            "be told from outside; expected a checkpoint whose experts have 16 bits or more"
        )
    num_experts, *columns = local_part(down).shape
    width = columns[0] if experts.is_transposed else columns[1]
    point = InterfaceExperts(
        layer=layer, name=name, activation=as_module(getattr(experts, "act_fn", nn.Identity())),
        place=(experts, "act_fn"), gated=bool(experts.has_gate), keys=None, up=None, down=experts,
        width=num_experts * width, device=down.device, experts=experts, num_experts=num_experts,
    )  # fmt: skip
    if point.has_own_formula and not down.is_meta and not point.is_linear_in_up():
        raise UnsupportedModelError(
            f"{where}: what its experts compute isn't linear in `up`, so that their activations can't be told; "
            "they aren't supported"
        )
    return point
