"""The passes: each runs a model over texts and leaves groups in the store."""
