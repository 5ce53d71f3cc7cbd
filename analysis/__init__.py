"""Reads stores, writes numbers and pictures. Imports no ray, torch or transformers.

from neurotally.analysis import open_store

store = open_store("llama.store")
store.corpora
store.lape(per_corpus=100).frame()
"""

from neurotally.analysis.door import Store, open_store

__all__ = ["Store", "open_store"]
