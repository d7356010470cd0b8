"""Trains runs: fully fixed recipes, any number of slots at once, one checkpoint after another."""
