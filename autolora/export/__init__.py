"""Exported LoRA files: kohya's key names, the metadata that programs read, sidecars, and the proof that they load."""
