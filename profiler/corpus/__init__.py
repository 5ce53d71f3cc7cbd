"""Text: sources, documents, units and the padded batches that a model reads."""
