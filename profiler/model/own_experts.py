"""Hook points in mixtures whose experts don't go through transformers' experts interface.

Their experts have an activation module of their own, and that is the hook point. Each family has its rows in an order
of its own, written down here from its modeling file; `verify` holds it against the experts' own matrices.

dbrx, longcat_flash   a product for each expert that has tokens, in ascending order; its tokens come by their place
                      among a token's k experts, then by number. LongCat's further experts, which return what they are
                      given, have no neurons.
inkling (shared)      one product [E, N, F]: every expert computes every token.
jetmoe                one product, by expert, in the order that the router gives.
llama4                one product [E, N, F]: every expert computes every token, and one that isn't routed to it is given
                      zeros, so that it adds exactly 0. Such rows count as little as pads: they enter no denominator,
                      count, sum, extreme or trigger, and no intervention changes them.

Llama 4 multiplies an expert's *input* by the routing weight w, and adds up the outputs as they are. So the coefficient,
as the second product reads it, is act(gate(w·x))·up(w·x): it has the weight in it. What its value vector is multiplied
by in the sum of experts is that coefficient alone, and the weighted coefficient is therefore the coefficient itself,
whereas the sum of routing weights of a site is that of w.
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.experts import ExpertsHookPoint, Rows
from neurotally.profiler.model.hook_points import PRODUCTS
from neurotally.profiler.model.overrides import functions_shown

_MATRIX_PRODUCTS = frozenset({functional.linear, torch.matmul, Tensor.matmul, torch.bmm, Tensor.bmm})
KeepRouting = Callable[[Tensor, list[Rows]], None]
"""Given the hidden states [N, D] and the rows of each product to come."""


def has_own_experts(module: nn.Module) -> bool:
    """Whether a module holds experts of a family that is known here."""
    return type(module).__name__ in _KINDS


class _Parts(NamedTuple):
    """Of a module of experts."""

    place: tuple[nn.Module, str]
    """Where its activation module is."""
    num_experts: int
    width: int
    """Neurons of an expert."""
    down: nn.Module


@dataclass(eq=False)
class OwnExperts(ExpertsHookPoint):
    """Experts whose activation module is the hook point."""

    router: nn.Module | None = field(default=None, kw_only=True)
    """What tells the routing, once it has run; None: the experts are told it."""
    _products: list[Rows] = field(default_factory=list)
    """Those to come in this pass."""

    has_router: ClassVar[bool] = False
    """Whether the routing is what a router gives."""

    @staticmethod
    @abstractmethod
    def parts(experts: Any) -> _Parts:
        """What a module of this kind is made of."""

    @abstractmethod
    def products(self, told: tuple) -> list[Rows]:
        """The rows of each product to come.

        `told`: what the router gives, or what experts are given beside the hidden states.
        """

    @abstractmethod
    def gate_matrix(self, expert: int) -> Any:
        """[F, D]: an expert's."""

    def watch_routing(self, keep: KeepRouting) -> AbstractContextManager[Any]:
        """Within this context `keep` is told, in each pass, what experts are given."""

        def before(_experts: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden, *told = (*args, *kwargs.values())
            hidden_ND = hidden.reshape(-1, hidden.shape[-1])
            keep(hidden_ND, self.products(tuple(told)))

        def after(_router: nn.Module, args: tuple, output: tuple) -> None:
            keep(args[0], self.products(output))

        handle: AbstractContextManager[Any] = (
            self.experts.register_forward_pre_hook(before, with_kwargs=True)
            if self.router is None
            else self.router.register_forward_hook(after)
        )
        return handle

    def install(self) -> None:
        super().install()
        self._watch = ExitStack()
        self._watch.enter_context(self.watch_routing(self._keep_routing))

    def take_out(self) -> None:
        super().take_out()
        self._watch.close()

    def coefficient(self, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        assert up_BTF is not None
        self.rows, *self._products = self._products
        self.calls_left = len(self._products)
        by_row = (-1, self.expert_width)
        return super().coefficient(pre_BTF.view(by_row), up_BTF.view(by_row)).view(pre_BTF.shape)

    def first_product(self, expert: int, hidden_ND: Tensor, score_N: Tensor) -> Tensor | None:
        matrix: Tensor = self.gate_matrix(expert)
        return hidden_ND.double() @ matrix.double().T

    def watch_hidden(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        return self.watch_routing(lambda hidden_ND, _products: keep(hidden_ND))

    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        return _operands_shown(self.experts, _MATRIX_PRODUCTS, keep)

    def _keep_routing(self, hidden_ND: Tensor, products: list[Rows]) -> None:
        if self.is_idle:
            return
        self._products = products
        if not products:  # no token goes to an expert that has neurons
            none_S = torch.zeros(0, dtype=torch.int64, device=hidden_ND.device)
            self._products = [Rows(none_S, none_S, hidden_ND[:0, 0])]
            none_SF = hidden_ND.new_zeros(0, self.expert_width)
            self.coefficient(none_SF, none_SF)


class _ProductOfEach(OwnExperts):
    """A product for each expert that has tokens."""

    def products(self, told: tuple) -> list[Rows]:
        index_Nk, score_Nk = told
        products = []
        for expert in torch.unique(index_Nk).tolist():
            if expert < self.num_experts:
                place_S, token_S = torch.where(expert == index_Nk.T)
                products.append(Rows(torch.full_like(token_S, expert), token_S, score_Nk[token_S, place_S]))
        return products


class _Dbrx(_ProductOfEach):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        return _Parts((experts.mlp, "activation_fn"), experts.num_experts, experts.ffn_hidden_size, experts)

    def gate_matrix(self, expert: int) -> Any:
        return self.experts.mlp.w1.view(self.num_experts, self.expert_width, -1)[expert]


class _LongcatFlash(_ProductOfEach):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        return _Parts((experts, "act_fn"), experts.num_routed_experts, experts.intermediate_size, experts)

    def gate_matrix(self, expert: int) -> Any:
        return self.experts.gate_up_proj[expert, : self.expert_width]


class _JetMoe(OwnExperts):
    has_router = True

    @staticmethod
    def parts(experts: Any) -> _Parts:
        num_experts = experts.input_linear.num_experts
        return _Parts((experts, "activation"), num_experts, experts.hidden_size, experts.output_linear)

    def products(self, told: tuple) -> list[Rows]:
        _, token_S, score_S, rows_E, _ = told
        expert_E = torch.arange(self.num_experts, device=token_S.device)
        return [Rows(expert_E.repeat_interleave(torch.tensor(rows_E, device=token_S.device)), token_S, score_S)]

    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        handle: AbstractContextManager[Any] = self.down.register_forward_pre_hook(lambda _down, args: keep(args[0]))
        return handle

    def gate_matrix(self, expert: int) -> Any:
        return self.experts.input_linear.weight[expert, : self.expert_width]


class _Llama4(OwnExperts):
    has_router = True

    @staticmethod
    def parts(experts: Any) -> _Parts:
        return _Parts((experts, "act_fn"), experts.num_experts, experts.expert_dim, experts)

    def products(self, told: tuple) -> list[Rows]:
        rows = _rows_of_all(told[0])
        return [rows._replace(weight_S=torch.ones_like(rows.score_S), is_routed_S=rows.score_S > 0)]

    def gate_matrix(self, expert: int) -> Any:
        return self.experts.gate_up_proj[expert, :, : self.expert_width].T

    def first_product(self, expert: int, hidden_ND: Tensor, score_N: Tensor) -> Tensor | None:
        return super().first_product(expert, hidden_ND * score_N[:, None], score_N)


class _InklingShared(OwnExperts):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        num_experts, width, _ = experts.gate_proj.shape
        return _Parts((experts, "act_fn"), num_experts, width, experts)

    def products(self, told: tuple) -> list[Rows]:
        (gamma,) = told
        return [_rows_of_all(gamma.reshape(-1, self.num_experts))]

    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        # The second product reads the coefficient times its weight, so that the coefficient is a factor of it.
        return _operands_shown(self.experts, PRODUCTS, keep)

    def gate_matrix(self, expert: int) -> Any:
        return self.experts.gate_proj[expert]


def _rows_of_all(score_NE: Tensor) -> Rows:
    """The rows of a product [E, N, F] in which every expert computes every token."""
    num_tokens, num_experts = score_NE.shape
    expert_E, token_N = (torch.arange(number, device=score_NE.device) for number in (num_experts, num_tokens))
    return Rows(expert_E.repeat_interleave(num_tokens), token_N.repeat(num_experts), score_NE.T.reshape(-1))


_KINDS: dict[str, type[OwnExperts]] = {
    "DbrxExperts": _Dbrx,
    "InklingSharedExperts": _InklingShared,
    "JetMoeMoE": _JetMoe,
    "Llama4TextExperts": _Llama4,
    "LongcatFlashExperts": _LongcatFlash,
}
"""By the class that holds the experts."""


def own_experts(layer: int, name: str, experts: Any, block: nn.Module) -> OwnExperts:
    """The hook point of a module of such experts in a layer's block; UnsupportedModelError where it can't be read."""
    if any(parameter.is_meta and hasattr(experts, "_hf_hook") for parameter in experts.parameters()):
        raise UnsupportedModelError(
            f"layer {layer} ({name}): experts that don't fit on their device (offloaded) aren't supported yet"
        )
    if any(isinstance(parameter, DTensor) for parameter in experts.parameters()):
        raise UnsupportedModelError(
            f"layer {layer} ({name}): experts of this kind can't be shared by several devices yet; let one device hold "
            "the model"
        )
    kind = _KINDS[type(experts).__name__]
    place, num_experts, width, down = kind.parts(experts)
    routers = (getattr(part, "router", None) for part in block.modules() if experts in (part, *part.children()))
    router = next(filter(None, routers), None) if kind.has_router else None
    return kind(
        layer=layer, name=name, activation=getattr(*place), place=place, gated=True, keys=None, up=None,
        down=down, width=num_experts * width, device=next(experts.parameters()).device,
        experts=experts, num_experts=num_experts, router=router,
    )  # fmt: skip


def _operands_shown(
    module: nn.Module, functions: frozenset[Any], keep: Callable[[Tensor], None]
) -> AbstractContextManager[Any]:
    """Within this context `keep` is shown the first operand of these functions in the module's forward pass."""

    def see(func: Any, args: tuple, _kwargs: dict[str, Any], _result: Any) -> None:
        if func in functions:
            keep(args[0])

    return functions_shown(module, see)
