"""Adapters: small trainable changes of the layers of a frozen base model."""
