"""Neurons switched off: mask files, controls, and what they cost."""
