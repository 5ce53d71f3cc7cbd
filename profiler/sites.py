"""Sites: the place in each layer where its feed-forward neurons are read, found by structure.

A decoder layer has one activation module: act in `down(act(gate(x)) · up(x))` or in `fc2(act(fc1(x)))`. It is
found by its class wherever the layer keeps it (OPT has no FFN module at all). Whether it is gated is
found by watching what the model does with its result: a product with a tensor of the same shape before
the next matrix product makes it gated.

Capture replaces that module by a `Site` and nothing else: weights, hooks and offloading stay as they are.

At a site, edits and a reader compose: edits replace what some neurons compute, in the order in which they were
entered, and the reader sees what the down projection then reads, whichever of them was entered first.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from neurotally.kernels.activations import activate
from neurotally.profiler.errors import UnsupportedModelError

_ACTIVATION_CLASSES = tuple(
    {entry[0] if isinstance(entry, tuple) else entry for entry in ACT2CLS.values()}
    | {getattr(nn.modules.activation, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"}
)
_ACTIVATION_NAME = re.compile(r"gelu|silu|swish|relu|mish", re.IGNORECASE)
_EXPERTS = re.compile(r"(experts?|moe|moe_?block|moe_?layer)$", re.IGNORECASE)
"""Classes, and names in a layer, of what sends tokens to experts; dense models of the same families have none."""
_PRODUCTS = frozenset(
    {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply}  # type: ignore[attr-defined]
)


@dataclass(frozen=True, eq=False)
class Edit:
    """Some neurons of one layer get given values, at one stage of their computation."""

    stage: Literal["pre", "activation", "coefficient"]
    index_n: Tensor
    """int64, each neuron once."""
    value_n: Tensor

    def applied(self, values_BTF: Tensor) -> Tensor:
        """`values_BTF` with these neurons replaced; out of place, since an activation may return its own input."""
        value_BTn = self.value_n.to(values_BTF.dtype).expand(*values_BTF.shape[:-1], -1)
        return values_BTF.index_copy(-1, self.index_n, value_BTn)


class Edited(NamedTuple):
    """What a layer with edits computes, [B, T, F] each."""

    pre_BTF: Tensor
    """With the value that an edit gave to an activation, so that the neuron counts as active where that is positive."""
    activation_BTF: Tensor
    coefficient_BTF: Tensor


class Site(nn.Module):
    """Stands in for a layer's activation module: the same values, and a place to read or replace coefficients."""

    def __init__(self, act: nn.Module, layer: int, name: str, gated: bool, num_neurons: int, device: torch.device):
        super().__init__()
        self.num_neurons = num_neurons
        self.act = act
        self.layer = layer
        self.name = name
        self.gated = gated
        self.device = device
        """Where the layer computes; its weights may lie elsewhere meanwhile."""
        self.edits: list[Edit] = []
        """In the order in which they were entered."""
        self.edited_n = torch.empty(0, dtype=torch.int64, device=device)
        """int64: the neurons that an edit touches; all others compute what they would without."""
        self.reader: Reader | None = None

    def forward(self, pre_BTF: Tensor) -> Any:
        """act(pre), or what edits and reader make of it; in a gated FFN an object that waits for `up`."""
        if self.reader is None and not self.edits:
            return activate(self.act, pre_BTF)
        return _AwaitsUp(self, pre_BTF) if self.gated else self.coefficient(pre_BTF, None)

    def coefficient(self, pre_BTF: Tensor, up_BTF: Tensor | None) -> Tensor:
        """What the down projection reads. `up_BTF` is None in a plain FFN."""
        if self.reader is not None:
            return self.reader(self, pre_BTF, up_BTF)
        return self.edited(pre_BTF, up_BTF).coefficient_BTF

    def edited(self, pre_BTF: Tensor, up_BTF: Tensor | None) -> Edited:
        """What the layer computes with its edits."""
        for edit in self._edits("pre"):
            pre_BTF = edit.applied(pre_BTF)
        activation_BTF: Tensor = activate(self.act, pre_BTF)
        for edit in self._edits("activation"):
            activation_BTF, pre_BTF = edit.applied(activation_BTF), edit.applied(pre_BTF)
        coefficient_BTF = activation_BTF if up_BTF is None else activation_BTF * up_BTF
        for edit in self._edits("coefficient"):
            coefficient_BTF = edit.applied(coefficient_BTF)
        return Edited(pre_BTF, activation_BTF, coefficient_BTF)

    def add_edit(self, edit: Edit) -> None:
        """Let an edit be in force, after those that are."""
        self._set_edits([*self.edits, edit])

    def remove_edit(self, edit: Edit) -> None:
        """Take an edit off."""
        self._set_edits([one for one in self.edits if one is not edit])

    def _set_edits(self, edits: list[Edit]) -> None:
        # Here and not where they are applied: finding distinct numbers waits for a GPU.
        self.edits = edits
        self.edited_n = torch.unique(torch.cat([self.edited_n[:0], *(edit.index_n for edit in edits)]))

    def _edits(self, stage: str) -> list[Edit]:
        return [edit for edit in self.edits if edit.stage == stage]


Reader = Callable[[Site, Tensor, "Tensor | None"], Tensor]
"""Called with the site, and pre_BTF and up_BTF (None in a plain FFN) before any edit; returns what the down projection
reads, with the site's edits in it (`Site.edited`)."""


@contextmanager
def editing(sites: Sequence[Site], edits: Sequence[Edit]) -> Iterator[None]:
    """Within this context each site's edit is in force, after those that were entered before."""
    for site, edit in zip(sites, edits, strict=True):
        site.add_edit(edit)
    try:
        yield
    finally:
        for site, edit in zip(sites, edits, strict=True):
            site.remove_edit(edit)


@contextmanager
def reading(sites: Sequence[Site], reader: Reader) -> Iterator[None]:
    """Within this context `reader` reads the sites. A site has one reader at a time."""
    if any(site.reader is not None for site in sites):
        raise RuntimeError("expected sites without a reader: this model is being read already")
    for site in sites:
        site.reader = reader
    try:
        yield
    finally:
        for site in sites:
            site.reader = None


class _AwaitsUp:
    """The activation of a gated FFN on its way to its one use, the product with `up`."""

    def __init__(self, site: Site, gate_BTF: Tensor):
        self._site = site
        self._gate_BTF = gate_BTF

    def __mul__(self, up_BTF: Tensor) -> Tensor:
        if not isinstance(up_BTF, Tensor) or up_BTF.shape != self._gate_BTF.shape:
            raise _unexpected_use(self._site, "a product with something that isn't the up projection")
        return self._site.coefficient(self._gate_BTF, up_BTF)

    __rmul__ = __mul__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        waiting = next(arg for arg in args if isinstance(arg, _AwaitsUp))
        if func in _PRODUCTS and len(args) == 2 and not kwargs:
            return waiting * (args[1] if args[0] is waiting else args[0])
        raise _unexpected_use(waiting._site, getattr(func, "__name__", str(func)))

    def __getattr__(self, name: str) -> Any:
        raise _unexpected_use(self._site, name)


def _unexpected_use(site: Site, use: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"layer {site.layer} ({site.name}): the activation is used in {use}, expected one product with the up "
        "projection; this feed-forward network isn't supported"
    )


@dataclass(frozen=True)
class ActivationModule:
    """One layer's activation module, before capture."""

    parent: nn.Module
    attribute: str
    name: str
    """Full name in the decoder, for messages."""


def find_decoder(model: Any, num_layers: int) -> nn.Module:
    """The part of a causal language model that has its decoder layers and gives the last hidden states.

    `get_decoder()` goes by names and may give a head that is called "decoder".
    """
    named: list[nn.Module] = [model.get_decoder(), model.base_model]
    for part in named:
        if part is not model and _layer_lists(part, num_layers):
            return part
    children: list[nn.Module] = [part for part in model.children() if _layer_lists(part, num_layers)]
    if len(children) == 1:
        return children[0]
    raise UnsupportedModelError(
        f"{type(model).__name__}: found no list of {num_layers} decoder layers; this model isn't supported"
    )


def decoder_layers(decoder: nn.Module, num_layers: int) -> nn.ModuleList:
    """The decoder's list of blocks: its one outermost ModuleList of `num_layers` modules with weight matrices.

    Where there are several, the one whose blocks have activations; an UnsupportedModelError naming them if that
    leaves none or more than one.
    """
    lists = _layer_lists(decoder, num_layers)
    if len(lists) > 1:
        with_activation = {
            name: blocks for name, blocks in lists.items() if any(_is_activation(part) for part in blocks.modules())
        }
        lists = with_activation or lists
    if len(lists) != 1:
        what = f"several lists of {num_layers} layers ({', '.join(lists)})" if lists else f"no list of {num_layers}"
        raise UnsupportedModelError(
            f"{type(decoder).__name__}: expected one list of decoder layers, found {what}; this model isn't supported"
        )
    return next(iter(lists.values()))


def _layer_lists(decoder: nn.Module, num_layers: int) -> dict[str, nn.ModuleList]:
    """Outermost ModuleLists of `num_layers` modules that have a weight matrix each, by their names in the decoder."""
    found: dict[str, nn.ModuleList] = {}
    for name, module in decoder.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            is_inside = any(name.startswith(f"{outer}.") for outer in found)
            if not is_inside and all(weight_matrices(block) for block in module):
                found[name] = module
    return found


def weight_matrices(block: nn.Module) -> list[nn.Module]:
    """The modules of a block that have a matrix `weight`: its projections, of whatever class."""
    weights = [(module, getattr(module, "weight", None)) for module in block.modules()]
    return [module for module, weight in weights if isinstance(weight, Tensor) and weight.dim() == 2]


def find_experts(module: nn.Module) -> list[str]:
    """Names of a module's parts that are experts or send tokens to them."""
    return [
        name
        for name, part in module.named_modules()
        if name and (_EXPERTS.search(type(part).__name__) or _EXPERTS.fullmatch(name.rpartition(".")[2]))
    ]


def find_activations(decoder: nn.Module, num_layers: int) -> list[ActivationModule]:
    """The activation module of each layer's FFN; an UnsupportedModelError naming what is missing or one too many."""
    layers = decoder_layers(decoder, num_layers)
    names = {module: name for name, module in decoder.named_modules()}
    found = []
    for index, layer in enumerate(layers):
        if experts := find_experts(layer):
            raise UnsupportedModelError(
                f"layer {index} ({names[layer]}.{experts[0]}): its neurons are in experts (mixture of experts), which "
                "isn't supported yet"
            )
        here = [
            ActivationModule(parent, attribute, f"{names[parent]}.{attribute}")
            for parent in layer.modules()
            for attribute, child in parent.named_children()
            if _is_activation(child)
        ]
        if len(here) != 1:
            what = ", ".join(module.name for module in here) or "none"
            raise UnsupportedModelError(
                f"layer {index} ({names[layer]}): expected one activation module, found {what}; "
                "this feed-forward network isn't supported"
            )
        found += here
    return found


def install_sites(decoder: nn.Module, num_layers: int, run: Callable[[], object]) -> list[Site]:
    """Replace each layer's activation module by a `Site`. `run` passes a short batch through the model.

    Its first call watches how each activation's result is used, which tells gated from plain.
    """
    activations = find_activations(decoder, num_layers)
    watchers = [_Watcher(getattr(found.parent, found.attribute)) for found in activations]
    for found, watcher in zip(activations, watchers, strict=True):
        setattr(found.parent, found.attribute, watcher)
    try:
        run()
    finally:
        for found, watcher in zip(activations, watchers, strict=True):
            setattr(found.parent, found.attribute, watcher.act)
    sites = []
    for layer, (found, watcher) in enumerate(zip(activations, watchers, strict=True)):
        if watcher.gated is None:
            raise UnsupportedModelError(
                f"layer {layer} ({found.name}): the activation never reached a matrix product; "
                "this feed-forward network isn't supported"
            )
        if watcher.num_neurons != watchers[0].num_neurons:
            raise UnsupportedModelError(
                f"layer {layer} ({found.name}) has {watcher.num_neurons} neurons, layer 0 has "
                f"{watchers[0].num_neurons}; models whose layers differ in width aren't supported"
            )
        sites.append(Site(watcher.act, layer, found.name, watcher.gated, watcher.num_neurons, watcher.device))
    for found, site in zip(activations, sites, strict=True):
        setattr(found.parent, found.attribute, site)
    return sites


def _is_activation(module: nn.Module) -> bool:
    if any(True for _ in module.children()):
        return False
    if isinstance(module, _ACTIVATION_CLASSES):
        return True
    return not any(True for _ in module.parameters()) and bool(_ACTIVATION_NAME.search(type(module).__name__))


class _Watcher(nn.Module):
    """Marks an activation's result, to see what becomes of it."""

    def __init__(self, act: nn.Module):
        super().__init__()
        self.act = act
        self.gated: bool | None = None
        self.num_neurons = 0
        self.device = torch.device("meta")

    def forward(self, pre_BTF: Tensor) -> Tensor:
        self.num_neurons, self.device = pre_BTF.shape[-1], pre_BTF.device
        marked: Tensor = self.act(pre_BTF).as_subclass(_Marked)
        marked._watcher = self  # type: ignore[attr-defined]
        return marked


class _Marked(Tensor):
    """A tensor that tells its watcher whether a product of like shapes or a matrix product came first."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        watcher = next((arg._watcher for arg in tensors if hasattr(arg, "_watcher")), None)
        if watcher is None or watcher.gated is not None or not isinstance(result, Tensor):
            return result
        if func in _PRODUCTS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            watcher.gated = True
        elif len(tensors) >= 2:
            watcher.gated = False
        else:  # a view, a dropout that is off: still the same values
            marked = result.as_subclass(_Marked)
            marked._watcher = watcher  # type: ignore[attr-defined]
            return marked
        return result
