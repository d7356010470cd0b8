"""Training of runs (recipes with all values fixed), any number at once, from checkpoint to checkpoint."""
