"""A checkpoint as files that people use: the LoRA, verified, its model card and its sample images."""
