"""Says in words what a scorecard means, and what may help."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autolora.scoring.intervals import Estimate
from autolora.scoring.metrics import CONSTRAINTS, METRICS
from autolora.scoring.settings import ScoringSettings

REMEDIES = {  # in the order in which they are suggested
    "collapsed": "a lower learning rate (optimizer.lr, optimizer.d_coef)",
    **{
        constraint.name: constraint.remedy
        for constraint in sorted(CONSTRAINTS, key=lambda constraint: constraint.remedy_rank or constraint.gravity)
    },
}


def verdict(
    terms: Mapping[str, Estimate],
    constraints: Mapping[str, float],
    bleed_rate: Mapping[str, float],
    settings: ScoringSettings,
) -> str:
    """Return one sentence with the gravest fault, or that there is none.

    Args:
        terms: the metrics at the strongest weight.
        constraints: above 0 where broken.
        bleed_rate: by weight, the share of renders of the class word that show the character.
        settings: the limits.
    """
    rates = ", ".join(f"{rate:.0%} at weight {weight}" for weight, rate in reversed(list(bleed_rate.items())))
    bleed = f"the class word alone shows the character in {rates}"
    shares = {metric.name for metric in METRICS if metric.is_share}
    values = {
        name: f"{min(max(term.value, 0.0), 1.0):.0%}" if name in shares else f"{term.value:.2f}"
        for name, term in terms.items()
    }
    for constraint in sorted(CONSTRAINTS, key=lambda constraint: constraint.gravity):
        if constraints.get(constraint.name, 0.0) > 0:
            if constraint.name != "bleed_class":
                return constraint.fault.format(**values)
            if terms["bleed_class"].value > settings.max_bleed:
                return f"{constraint.fault}: {bleed}"
    if constraints["bleed_class"] > 0:
        return f"bleed not ruled out: {bleed}"
    return f"good: {values['likeness']} of renders with the trigger pass for the real images, {bleed}"


def remedy(constraints: Mapping[str, float], against_bleed: Sequence[str] = ()) -> str:
    """Return what may help against the gravest broken constraint; empty if none is broken.

    Only one remedy is returned, because what helps against one fault often causes another (more images, fewer images).

    Args:
        constraints: above 0 where broken.
        against_bleed: remedies against class bleed for this training run, the best first.
    """
    gravest = next((name for name in REMEDIES if constraints.get(name, 0.0) > 0), None)
    if gravest is None:
        return ""
    return ", or ".join(against_bleed) if gravest == "bleed_class" and against_bleed else REMEDIES[gravest]
