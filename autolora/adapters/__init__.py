"""Adapters: small trainable parts attached to a frozen base model."""
