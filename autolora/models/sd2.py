"""Stable Diffusion 2.x and its derivatives: SD1's layout with open_clip's ViT-H, often predicting v."""

from __future__ import annotations

from autolora.models.stable_diffusion import StableDiffusion


class StableDiffusion2(StableDiffusion):
    """A frozen model of SD2 layout; see `BaseModel` for shapes. Its text encoder lacks the last layer, not read."""

    architecture = "sd2"
