"""Exported LoRA files: key names, metadata, sidecars, and the proof that other programs read what was trained."""
