"""One HTML page of a store."""
