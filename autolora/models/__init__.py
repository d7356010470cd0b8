"""Base models of every family. Other packages never ask which family a model is.

Import `load_model` from `autolora.models.load`; `autolora.models.settings` imports no torch.
"""
