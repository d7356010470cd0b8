"""Stable Diffusion 2.x and its derivatives: SD1's layout with open_clip's ViT-H; most predict v."""

from __future__ import annotations

from autolora.models.stable_diffusion import StableDiffusion, check_penultimate


class StableDiffusion2(StableDiffusion):
    """A frozen model with the layout of SD2; see `BaseModel` for shapes.

    Its text encoder comes without the last layer, which is never used.
    """

    architecture = "sd2"

    def _check_clip_skip(self) -> None:
        check_penultimate(self.clip_skip, "Stable Diffusion 2")
        self.clip_skip = None  # the last layer of its text encoder is the one before open_clip's last
