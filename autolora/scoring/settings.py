"""The settings of the score, from `conf/scoring/`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass

from autolora.errors import ConfigError

BELOW = 2.0  # a broken constraint lowers the objective by this much: scores lie between -1 and 1


@dataclass(frozen=True)
class ScoringSettings:
    """Encoders, evaluation prompts, sample sizes and limits of the score."""

    encoder: str = "paperdoll"  # an open_clip model: `local-dir:FOLDER`, or `paperdoll` for the packaged one
    second_encoder: str | None = None  # a second opinion on finalists: `timm:MODEL`, `vae`, or any name as above
    tagger: str | None = None  # shows the winner's bleed as tags: a folder, a name in the hub's cache, or `paperdoll`
    weights: tuple[float, ...] = (0.7, 1.0)
    trigger_prompts: tuple[str, ...] = ()  # tags that change the scene, the expression or the pose
    outfit_prompts: tuple[str, ...] = ()  # tags that change the character: another outfit, another accessory
    num_class_renders: int = 8  # prompts with the class word and nothing else
    class_prompts: tuple[str, ...] = ()  # tags beside the class word, without the trigger
    bleed_prompts: tuple[str, ...] = ()  # the user's own prompts that must not show the character either
    style_prompts: tuple[str, ...] = ()  # tags that change the style; only in the finals
    person_prompts: tuple[str, ...] = ()  # tags of somebody beside the character; only in the finals
    unrelated_prompts: tuple[str, ...] = ()  # full prompts of scenes without the character; only in the finals
    seeds_per_trigger_prompt: int = 1  # for prompts with the trigger
    seeds_per_class_prompt: int = 3  # for prompts without it; with too few renders bleed can never be ruled out
    num_negative_renders: int = 64  # base renders that the discriminants are fitted against
    seed: int = 1000  # the first seed of the evaluation prompts
    n_bootstrap: int = 400
    max_bleed: float = 0.15
    min_editability: float = 0.85
    min_fidelity: float = 0.5
    max_concept_mixing: float = 0.15
    max_memorization: float = 0.1
    diversity_range: tuple[float, float] = (0.6, 1.3)
    max_oversaturation: float = 1.0

    def __post_init__(self) -> None:
        mistakes = []
        if not self.weights or any(w <= 0 for w in self.weights):
            mistakes.append(f"scoring.weights must hold weights above 0, got {list(self.weights)}")
        for field in (
            "seeds_per_trigger_prompt",
            "num_class_renders",
            "seeds_per_class_prompt",
            "num_negative_renders",
            "n_bootstrap",
        ):
            if getattr(self, field) < 1:
                mistakes.append(f"scoring.{field} must be at least 1, got {getattr(self, field)}")
        if len(self.outfit_prompts) < 2:
            mistakes.append("scoring.outfit_prompts must hold at least 2, so that editability can be measured")
        if not (len(self.diversity_range) == 2 and 0 <= self.diversity_range[0] < self.diversity_range[1]):
            mistakes.append(
                f"scoring.diversity_range must be a lower and an upper limit, got {list(self.diversity_range)}"
            )
        if mistakes:
            raise ConfigError("; ".join(mistakes))
