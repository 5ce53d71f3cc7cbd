"""Reads stores, writes numbers and pictures. Imports no ray, torch or transformers."""
