"""Which tokens come by at each neuron: all, those that are routed to its expert, or those that its stack reads.

A rate of activation is conditional by default: of the tokens at which the neuron could be active. The joint one, of all
tokens, is higher where an expert gets more tokens: it confounds routing with firing.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from neurotally.profiler import store
from neurotally.profiler.networks import Networks, networks_of, site_numbers

FEW_TOKENS = 1000
"""An expert with fewer is named: its rates are known to a few hundredths at best."""


@dataclass(frozen=True, eq=False)
class Sites:
    """Where neurons are, if layers aren't one network of the same width each, and which tokens come by."""

    number_LF: np.ndarray
    """int32: the site of each neuron; -1 where there is none."""
    tokens_XS: np.ndarray
    """uint64, by corpus (C) or by group (G): tokens that came by at each site."""
    networks: Networks = ()
    """See `profiler.networks`."""

    @cached_property
    def neuron_N(self) -> np.ndarray:
        """int64: layer · F + neuron of every neuron, ascending."""
        return np.flatnonzero(self.number_LF >= 0)

    def tokens_XN(self) -> np.ndarray:
        """uint64 [X, N]: tokens that came by at each neuron."""
        tokens_XN: np.ndarray = self.tokens_XS[:, self.number_LF.ravel()[self.neuron_N]]
        return tokens_XN

    def spread(self, values_XN: np.ndarray) -> np.ndarray:
        """[X, L, F] of values of all neurons, and 0 where there is none."""
        spread_XM = np.zeros((len(values_XN), self.number_LF.size), values_XN.dtype)
        spread_XM[:, self.neuron_N] = values_XN
        return spread_XM.reshape(-1, *self.number_LF.shape)

    def summed(self) -> "Sites":
        """Over all groups, [1, S]."""
        return replace(self, tokens_XS=self.tokens_XS.sum(axis=0, keepdims=True, dtype=np.uint64))


def read_sites(path: Path, corpus: str, tokens_G: np.ndarray) -> Sites | None:
    """Those of a corpus by group; None where every layer is one network of the same width.

    `tokens_G`: its tokens, all of which come by where the store doesn't say otherwise.
    """
    model = store.store_attributes(path).get("model")
    networks = networks_of(model)
    if model is None or not networks:
        return None
    number_LF = site_numbers(networks, model["num_layers"], model["num_neurons"])
    by_site = store.read_found(path, f"corpora/{corpus}", ["site_tokens"])
    everywhere_GS = np.broadcast_to(tokens_G[:, None], (len(tokens_G), sum(one.sites for one in networks)))
    return Sites(number_LF, by_site.get("site_tokens", everywhere_GS), networks)


def together(sites: "list[Sites | None]") -> Sites | None:
    """Of several corpora, a row each, from theirs by group."""
    known = [one for one in sites if one is not None]
    if not known:
        return None
    return replace(known[0], tokens_XS=np.concatenate([one.summed().tokens_XS for one in known]))


def rates(active_XLF: np.ndarray, tokens_X: np.ndarray, sites: Sites | None) -> np.ndarray:
    """float64 [X, L, F]: the share of the tokens that came by at which each neuron is active; 0 where none did."""
    if sites is None:
        rate_XLF: np.ndarray = active_XLF / tokens_X[:, None, None]
        return rate_XLF
    active_XN = active_XLF.reshape(len(active_XLF), -1)[:, sites.neuron_N]
    return sites.spread(active_XN / np.maximum(sites.tokens_XN(), 1))
