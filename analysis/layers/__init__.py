"""What each layer holds: MEXA, the logit lens, agreement with the output."""
