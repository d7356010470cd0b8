"""Optimizers and schedules, each one frozen dataclass."""
