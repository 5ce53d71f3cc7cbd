"""Passes beside the neuron pass: what runs a model and leaves a group in the store."""
