"""autolora: an overfitting-aware auto-tuning LoRA trainer."""

__version__ = "0.1.0"
