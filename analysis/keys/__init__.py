"""Keys as memories: what the triggers of a key have in common."""
