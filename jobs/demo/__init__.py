"""`neurotally demo`."""
