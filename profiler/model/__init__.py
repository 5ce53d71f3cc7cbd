"""A model: loaded, its hook points found and verified, and what is changed and read there."""
