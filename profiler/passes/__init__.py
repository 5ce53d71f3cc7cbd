"""What a pass reads of a batch: pure functions of (config, unit), run wherever a worker is."""
