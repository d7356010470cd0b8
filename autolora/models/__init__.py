"""Base models by family. No other package asks which family a model is."""
