"""Scores a checkpoint: likeness, editability and bleed, each with an interval, and a verdict in words."""
