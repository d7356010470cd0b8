"""How fast a session renders, measured as it renders."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.models.settings import RenderSettings


@dataclass
class RenderSpeed:
    """The seconds of the renders so far, and their work: images x steps x pixels."""

    seconds: float = 0.0
    work: float = 0.0

    def add(self, seconds: float, renders: int, settings: RenderSettings, resolution: int) -> None:
        """Count renders that took so many seconds."""
        self.seconds += seconds
        self.work += _work(renders, settings, resolution)

    def estimate(self, renders: int, settings: RenderSettings, resolution: int) -> float:
        """The seconds that renders will take; 0 as long as nothing was rendered."""
        return self.seconds / self.work * _work(renders, settings, resolution) if self.work else 0.0


def _work(renders: int, settings: RenderSettings, resolution: int) -> float:
    return float(renders * settings.num_inference_steps * settings.side(resolution) ** 2)
