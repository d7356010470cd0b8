"""Optimizers and learning-rate schedules, each one frozen dataclass."""
