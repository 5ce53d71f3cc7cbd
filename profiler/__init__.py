"""One process: corpus, units, batches, model, sites, capture, passes, store. Never imports ray."""
