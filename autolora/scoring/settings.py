"""What a score is made of, as read from `conf/scoring/`."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.errors import ConfigError


@dataclass(frozen=True)
class ScoringSettings:
    """Probe prompts, sizes and limits of the score."""

    encoder: str = "paperdoll"  # an open_clip model: `local-dir:FOLDER`, or `paperdoll` for the packaged one
    second_encoder: str | None = None  # asked too about finalists: `timm:MODEL`, `vae`, or any name as above
    tagger: str | None = None  # sees the winner's bleed as tags: a folder, a name in the hub's cache, or `paperdoll`
    weights: tuple[float, ...] = (0.7, 1.0)
    contexts: tuple[str, ...] = ()  # what changes around the character: scene, expression, pose
    overrides: tuple[str, ...] = ()  # what contradicts it: another outfit, another accessory
    class_alone: int = 8  # class-only probes of the class word and nothing else
    class_contexts: tuple[str, ...] = ()  # the class word with these tags, without the trigger
    extra_bleed: tuple[str, ...] = ()  # the user's own prompts that must not show it either
    styles: tuple[str, ...] = ()  # how it is drawn, for the final word
    people: tuple[str, ...] = ()  # somebody beside it, for the final word
    unrelated: tuple[str, ...] = ()  # whole prompts of scenes without it, for the final word
    trigger_seeds: int = 1  # seeds per trigger and novel prompt
    class_seeds: int = 3  # seeds per class-only probe; too few renders can never rule bleed out
    contrast: int = 64  # base renders that the margins are fitted against
    first_seed: int = 1000
    bootstrap: int = 400
    bleed_limit: float = 0.15
    editability_limit: float = 0.85
    fidelity_limit: float = 0.5
    cross_limit: float = 0.15
    memorisation_limit: float = 0.1
    spread_limits: tuple[float, float] = (0.6, 1.3)
    burn_limit: float = 1.0

    def __post_init__(self) -> None:
        mistakes = []
        if not self.weights or any(w <= 0 for w in self.weights):
            mistakes.append(f"scoring.weights must hold weights above 0, got {list(self.weights)}")
        for field in ("trigger_seeds", "class_alone", "class_seeds", "contrast", "bootstrap"):
            if getattr(self, field) < 1:
                mistakes.append(f"scoring.{field} must be at least 1, got {getattr(self, field)}")
        if len(self.overrides) < 2:
            mistakes.append("scoring.overrides must hold at least 2, so that editability can be measured")
        if not (len(self.spread_limits) == 2 and 0 <= self.spread_limits[0] < self.spread_limits[1]):
            mistakes.append(f"scoring.spread_limits must be a lower and an upper limit, got {list(self.spread_limits)}")
        if mistakes:
            raise ConfigError("; ".join(mistakes))
