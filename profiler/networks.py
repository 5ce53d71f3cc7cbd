"""Where a model's neurons are: its feed-forward networks, numbered through in every layer. Loads no torch.

Neurons are (layer, neuron) everywhere. A layer's networks follow one another in the order in which the layer's modules
list them; a mixture's experts are E networks of the same width, one after the other. Where layers differ in width
arrays [L, F] are as wide as the widest, and cells that are no neuron hold fill values. Of an encoder-decoder the
encoder's layers come first, then the decoder's.

A *site* is one such network, or one expert: `site_arrays` is the store's table of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DECODER, ENCODER = 0, 1


@dataclass(frozen=True)
class Network:
    """A feed-forward network of a layer, or all experts of a mixture. JSON-ready."""

    layer: int
    first: int
    """The number of its first neuron in the layer."""
    neurons: int
    """Of the network, or of each expert."""
    experts: int | None
    """None: it is no mixture, and every token reaches it."""
    name: str
    """Of its activation module, or of the module that holds the experts, in its stack."""
    stack: int = 0
    """DECODER, or ENCODER where attention sees later tokens."""

    @property
    def sites(self) -> int:
        """Its rows in the table of sites."""
        return 1 if self.experts is None else self.experts

    @property
    def end(self) -> int:
        """The number after its last neuron's."""
        return self.first + self.neurons * self.sites


Networks = tuple[Network, ...]
"""By layer and first neuron; empty where every layer is one network of the same width, so that nothing need be said."""


def networks_of(model: Mapping[str, Any] | None) -> Networks:
    """Those that a store's `model` attribute tells of."""
    entries = (model or {}).get("networks") or ()
    return tuple(entry if isinstance(entry, Network) else Network(**entry) for entry in entries)


def are_alike(networks: Sequence[Network], num_layers: int) -> bool:
    """Whether every layer is one network of the same width, and none is an encoder's or has experts."""
    kinds = {(network.neurons, network.experts, network.stack) for network in networks}
    has_one_each = [network.layer for network in networks] == list(range(num_layers))
    return has_one_each and len(kinds) == 1 and networks[0].experts is None and networks[0].stack == DECODER


def differ_in_tokens(networks: Networks) -> bool:
    """Whether some sites see other tokens than others: experts, or the encoder's and the decoder's."""
    return has_experts(networks) or len({network.stack for network in networks}) > 1


def has_experts(networks: Networks) -> bool:
    """Whether some neurons are in a mixture's experts."""
    return any(network.experts is not None for network in networks)


def is_neuron(networks: Networks, num_layers: int, num_neurons: int) -> np.ndarray:
    """bool [L, F]: which cells of an array are neurons."""
    return site_numbers(networks, num_layers, num_neurons) >= 0


def site_numbers(networks: Networks, num_layers: int, num_neurons: int) -> np.ndarray:
    """int32 [L, F]: the site of each neuron; -1 where there is none. Where `networks` is empty: the layer."""
    if not networks:
        return np.repeat(np.arange(num_layers, dtype=np.int32)[:, None], num_neurons, axis=1)
    number_LF = np.full((num_layers, num_neurons), -1, np.int32)
    first = 0
    for network in networks:
        numbers = np.arange(first, first + network.sites, dtype=np.int32)
        number_LF[network.layer, network.first : network.end] = np.repeat(numbers, network.neurons)
        first += network.sites
    return number_LF


def layer_widths(networks: Networks, num_layers: int, num_neurons: int) -> np.ndarray:
    """int64 [L]: neurons of each layer."""
    width_L: np.ndarray = np.count_nonzero(is_neuron(networks, num_layers, num_neurons), axis=1)
    return width_L


def is_expert(networks: Networks) -> np.ndarray:
    """bool [S]: which sites are experts."""
    flags = [np.full(network.sites, network.experts is not None) for network in networks]
    return np.concatenate([np.zeros(0, np.bool_), *flags])


def site_arrays(networks: Networks) -> dict[str, np.ndarray]:
    """The store's table of sites, a row a site."""
    rows = [
        (
            one.layer,
            one.first + expert * one.neurons,
            one.neurons,
            -1 if one.experts is None else expert,
            one.stack,
            one.name,
        )
        for one in networks
        for expert in range(one.sites)
    ]
    layer, first, neurons, expert, stack, name = zip(*rows, strict=True)
    return {
        "site_layer": np.array(layer, np.uint32),
        "site_first": np.array(first, np.uint32),
        "site_neurons": np.array(neurons, np.uint32),
        "site_expert": np.array(expert, np.int32),
        "site_stack": np.array(stack, np.uint8),
        "site_name": np.array(name, np.dtypes.StringDType()),
    }
