"""Readers of dataset layouts: folders, kohya and Hugging Face metadata files, and TOML files of sd-scripts."""
