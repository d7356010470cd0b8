"""What a scorecard means, in words, and what may help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autolora.scoring.intervals import Estimate
from autolora.scoring.settings import ScoringSettings


def verdict(
    terms: Mapping[str, Estimate],
    constraints: Mapping[str, float],
    capture: Mapping[str, float],
    settings: ScoringSettings,
) -> str:
    """One sentence that a person understands: the gravest fault, else that there is none.

    Args:
        terms: the terms at the strongest weight judged.
        constraints: above 0 where broken.
        capture: by weight, the share of class-only renders that show the character.
        settings: the limits.
    """
    captured = ", ".join(f"{share:.0%} at weight {weight}" for weight, share in reversed(list(capture.items())))
    shown = f"the class word alone shows the character in {captured}"
    faults = {
        "bleed_class": f"overcooked: {shown}" if terms["bleed_class"].value > settings.max_bleed else None,
        "memorisation": "copied: {memorisation} of renders are as near to a training picture as those to one another",
        "burn": "burnt: colours or edges {burn} deviations beyond the base model and the training pictures",
        "too_strong": "too strong: {fidelity} of the way from the base model to the pictures, less than when weaker",
        "undercooked": "undercooked: only {fidelity} of the way from the base model to the real pictures",
        "bleed_cross": "mixed up: {bleed_cross} more of one concept's renders show another than of its real pictures",
        "editability": "stiff: prompts are followed {editability} as well as by the base model",
        "spread": "narrowed or scattered: renders of the class word differ {spread} as much as the base model's",
    }
    shares = ("fidelity", "likeness", "memorisation", "bleed_cross")
    values = {
        name: f"{min(max(term.value, 0.0), 1.0):.0%}" if name in shares else f"{term.value:.2f}"
        for name, term in terms.items()
    }
    for name, words in faults.items():
        if words and constraints.get(name, 0.0) > 0:
            return words.format(**values)
    if constraints["bleed_class"] > 0:
        return f"bleed not ruled out: {shown}"
    return f"good: {values['likeness']} of renders with the trigger pass for the real pictures, {shown}"


REMEDIES = {
    "collapsed": "a lower learning rate (optimizer.lr, optimizer.d_coef)",
    "bleed_class": "more preservation (train.prior_preservation_ratio), a lower weight, an earlier checkpoint",
    "memorisation": "fewer steps, more and more varied pictures",
    "burn": "a lower learning rate, train.scale_weight_norms=1",
    "too_strong": "a lower weight, fewer steps, a lower learning rate",
    "bleed_cross": "a trigger of its own for each concept, more steps per concept",
    "undercooked": "more steps, a higher learning rate, a larger dim",
    "editability": "fewer steps, preservation (train.prior_preservation_ratio), more varied captions",
    "spread": "preservation (train.prior_preservation_ratio), fewer steps",
}


def remedy(constraints: Mapping[str, float], against_bleed: Sequence[str] = ()) -> str:
    """What may help against the gravest broken constraint; empty where none is broken.

    The others wait: what helps against one often feeds another (more steps, fewer steps).

    Args:
        constraints: above 0 where broken.
        against_bleed: what is known of the run to help against class bleed, the best first.
    """
    gravest = next((name for name in REMEDIES if constraints.get(name, 0.0) > 0), None)
    if gravest is None:
        return ""
    return ", or ".join(against_bleed) if gravest == "bleed_class" and against_bleed else REMEDIES[gravest]
