"""`neurotally bench`."""
