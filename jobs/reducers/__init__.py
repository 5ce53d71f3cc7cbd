"""How the results of tasks become a group of the store: folded into sums, or kept as parts."""
