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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from neurotally.profiler.errors import UnsupportedModelError
from neurotally.profiler.model.experts import ExpertsHookPoint, Rows
from neurotally.profiler.model.hook_points import PRODUCTS
from neurotally.profiler.model.watching import functions_shown

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

    router: Any = field(default=None, kw_only=True)
    """Llama 4's and JetMoe's, whose results tell the routing."""
    _products: list[Rows] = field(default_factory=list)
    """Those to come in this pass."""

    @staticmethod
    @abstractmethod
    def parts(experts: Any) -> _Parts:
        """What a module of this kind is made of."""

    @abstractmethod
    def watch_routing(self, keep: KeepRouting) -> AbstractContextManager[Any]:
        """Within this context `keep` is told, in each pass, what experts are given."""

    @abstractmethod
    def gate_matrix(self, expert: int) -> Tensor:
        """[F, D]: an expert's."""

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
        return hidden_ND.double() @ self.gate_matrix(expert).double().T

    def watch_hidden(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        return self.watch_routing(lambda hidden_ND, _products: keep(hidden_ND))

    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        return _operands_shown(self.experts, _MATRIX_PRODUCTS, keep)

    def _keep_routing(self, hidden_ND: Tensor, products: list[Rows]) -> None:
        if self.reader is None and not self.interventions:
            return
        self._products = products
        if not products:  # no token goes to an expert that has neurons
            none_S = torch.zeros(0, dtype=torch.int64, device=hidden_ND.device)
            self._products = [Rows(none_S, none_S, hidden_ND[:0, 0])]
            none_SF = hidden_ND.new_zeros(0, self.expert_width)
            self.coefficient(none_SF, none_SF)


class _ProductOfEach(OwnExperts):
    """A product for each expert that has tokens."""

    def watch_routing(self, keep: KeepRouting) -> AbstractContextManager[Any]:
        def hook(_experts: nn.Module, args: tuple) -> None:
            hidden, index_Nk, score_Nk = args
            keep(hidden.reshape(-1, hidden.shape[-1]), self._products_of(index_Nk, score_Nk))

        handle: AbstractContextManager[Any] = self.experts.register_forward_pre_hook(hook)
        return handle

    def _products_of(self, index_Nk: Tensor, score_Nk: Tensor) -> list[Rows]:
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

    def gate_matrix(self, expert: int) -> Tensor:
        matrix: Tensor = self.experts.mlp.w1.view(self.num_experts, self.expert_width, -1)[expert]
        return matrix


class _LongcatFlash(_ProductOfEach):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        return _Parts((experts, "act_fn"), experts.num_routed_experts, experts.intermediate_size, experts)

    def gate_matrix(self, expert: int) -> Tensor:
        matrix: Tensor = self.experts.gate_up_proj[expert, : self.expert_width]
        return matrix


class _JetMoe(OwnExperts):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        num_experts = experts.input_linear.num_experts
        return _Parts((experts, "activation"), num_experts, experts.hidden_size, experts.output_linear)

    def watch_routing(self, keep: KeepRouting) -> AbstractContextManager[Any]:
        def hook(_router: nn.Module, args: tuple, output: tuple) -> None:
            _, token_S, score_S, rows_E, _ = output
            expert_E = torch.arange(self.num_experts, device=token_S.device)
            expert_S = torch.repeat_interleave(expert_E, torch.tensor(rows_E, device=token_S.device))
            keep(args[0], [Rows(expert_S, token_S, score_S)])

        handle: AbstractContextManager[Any] = self.router.register_forward_hook(hook)
        return handle

    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        handle: AbstractContextManager[Any] = self.down.register_forward_pre_hook(lambda _down, args: keep(args[0]))
        return handle

    def gate_matrix(self, expert: int) -> Tensor:
        matrix: Tensor = self.experts.input_linear.weight[expert, : self.expert_width]
        return matrix


class _Llama4(OwnExperts):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        return _Parts((experts, "act_fn"), experts.num_experts, experts.expert_dim, experts)

    def watch_routing(self, keep: KeepRouting) -> AbstractContextManager[Any]:
        def hook(_router: nn.Module, args: tuple, output: tuple) -> None:
            score_NE = output[0]
            token_N = torch.arange(len(score_NE), device=score_NE.device)
            expert_E = torch.arange(self.num_experts, device=score_NE.device)
            score_S = score_NE.T.reshape(-1)
            rows = Rows(
                expert_E.repeat_interleave(len(token_N)), token_N.repeat(len(expert_E)), score_S,
                weight_S=torch.ones_like(score_S), is_routed_S=score_S > 0,
            )  # fmt: skip
            keep(args[0], [rows])

        handle: AbstractContextManager[Any] = self.router.register_forward_hook(hook)
        return handle

    def gate_matrix(self, expert: int) -> Tensor:
        matrix: Tensor = self.experts.gate_up_proj[expert, :, : self.expert_width].T
        return matrix

    def first_product(self, expert: int, hidden_ND: Tensor, score_N: Tensor) -> Tensor | None:
        return super().first_product(expert, hidden_ND * score_N[:, None], score_N)


class _InklingShared(OwnExperts):
    @staticmethod
    def parts(experts: Any) -> _Parts:
        num_experts, width, _ = experts.gate_proj.shape
        return _Parts((experts, "act_fn"), num_experts, width, experts)

    def watch_routing(self, keep: KeepRouting) -> AbstractContextManager[Any]:
        def hook(_experts: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden_ND = args[0].reshape(-1, args[0].shape[-1])
            token_N = torch.arange(len(hidden_ND), device=hidden_ND.device)
            expert_E = torch.arange(self.num_experts, device=hidden_ND.device)
            score_S = kwargs["gammas"].reshape(len(token_N), -1).T.reshape(-1)
            keep(hidden_ND, [Rows(expert_E.repeat_interleave(len(token_N)), token_N.repeat(len(expert_E)), score_S)])

        handle: AbstractContextManager[Any] = self.experts.register_forward_pre_hook(hook, with_kwargs=True)
        return handle

    def watch_bare(self, keep: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
        # The second product reads the coefficient times its weight, so that the coefficient is a factor of it.
        return _operands_shown(self.experts, PRODUCTS, keep)

    def gate_matrix(self, expert: int) -> Tensor:
        matrix: Tensor = self.experts.gate_proj[expert]
        return matrix


_KINDS: dict[str, type[OwnExperts]] = {
    "DbrxExperts": _Dbrx,
    "InklingSharedExperts": _InklingShared,
    "JetMoeMoE": _JetMoe,
    "Llama4TextExperts": _Llama4,
    "LongcatFlashExperts": _LongcatFlash,
}
"""By the class that holds the experts."""


def own_experts(layer: int, name: str, first: int, experts: Any, block: nn.Module) -> OwnExperts:
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
    return kind(
        layer=layer, name=name, first=first, activation=getattr(*place), place=place, gated=True, keys=None, up=None,
        down=down, width=num_experts * width, device=next(experts.parameters()).device,
        experts=experts, num_experts=num_experts, router=next(filter(None, routers), None),
    )  # fmt: skip


def _operands_shown(
    module: nn.Module, functions: frozenset[Any], keep: Callable[[Tensor], None]
) -> AbstractContextManager[Any]:
    """Within this context `keep` is shown the first operand of these functions in the module's forward pass."""

    def see(func: Any, args: tuple, _kwargs: dict[str, Any], _result: Any) -> None:
        if func in functions:
            keep(args[0])

    return functions_shown(module, see)
