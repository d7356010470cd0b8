"""Stable Diffusion 2.x and its derivatives: SD1's layout with open_clip's ViT-H, often predicting v."""

from __future__ import annotations

from autolora.models.stable_diffusion import StableDiffusion, check_penultimate


class StableDiffusion2(StableDiffusion):
    """A frozen model of SD2 layout; see `BaseModel` for shapes. Its text encoder lacks the last layer, not read."""

    architecture = "sd2"

    def _check_clip_skip(self) -> None:
        check_penultimate(self.clip_skip, "Stable Diffusion 2")
        self.clip_skip = None  # the last layer that its text encoder has is the one before open_clip's last
