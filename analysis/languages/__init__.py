"""Which neurons belong to which language: LAPE, its error bars, its stability, what sets share."""
