"""Which tokens reach each neuron: all, those that are routed to its expert, or those that its stack reads.

A rate of activation is conditional by default: of the tokens at which the neuron could be active. The joint one, of all
tokens, is higher where an expert gets more tokens: it confounds routing with firing.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neurotally.profiler import store
from neurotally.profiler.networks import Networks, networks_of, site_numbers

FEW_TOKENS = 1000
"""An expert with fewer is named: its rates are known to a few hundredths at best."""


@dataclass(frozen=True, eq=False)
class Sites:
    """Where neurons are, if layers aren't one network of the same width each, and which tokens reach them."""

    number_LF: np.ndarray
    """int32: the site of each neuron; -1 where there is none."""
    tokens_XS: np.ndarray
    """uint64, by corpus (C) or by group (G): tokens that reached each site."""
    networks: Networks = ()
    """See `profiler.networks`."""

    def came_by(self) -> np.ndarray:
        """uint64 [X, L, F]: tokens that reached each neuron, at least 1; any number where there is none."""
        came_by_XLF: np.ndarray = np.maximum(self.tokens_XS, 1)[:, self.number_LF]
        return came_by_XLF

    def summed(self) -> "Sites":
        """Over all groups, [1, S]."""
        return replace(self, tokens_XS=self.tokens_XS.sum(axis=0, keepdims=True, dtype=np.uint64))


def read_sites(path: Path, corpus: str, tokens_G: np.ndarray) -> Sites | None:
    """Those of a corpus by group; None where every layer is one network of the same width.

    `tokens_G`: its tokens, all of which reach it where the store doesn't say otherwise.
    """
    model = store.store_attributes(path).get("model")
    networks = networks_of(model)
    if model is None or not networks:
        return None
    number_LF = site_numbers(networks, model["num_layers"], model["num_neurons"])
    by_site = store.read_found(path, f"corpora/{corpus}", ["site_tokens"])
    everywhere_GS = np.broadcast_to(tokens_G[:, None], (len(tokens_G), sum(one.sites for one in networks)))
    return Sites(number_LF, by_site.get("site_tokens", everywhere_GS), networks)
