"""The finals in words."""

from __future__ import annotations

from autolora.study.finals import Finals, seed_verdict
from autolora.study.stage import Finalist
from autolora.study.trial import Point


def disagreement(finals: Finals, encoder: str | None) -> str:
    """Whom the second encoder prefers to the winner: clearly more like it or clearly less bleed, and worse in neither.

    Empty where it prefers nobody.
    """

    def seen(one: Finalist, name: str) -> dict[str, float]:
        return one.point.second[max(one.point.second, key=float)][name]

    winner, *others = finals.finalists
    for one in others if winner.point.second else ():
        closer = seen(one, "fidelity")["low"] > seen(winner, "fidelity")["high"]
        calmer = seen(one, "bleed_class")["high"] < seen(winner, "bleed_class")["low"]
        farther = seen(one, "fidelity")["high"] < seen(winner, "fidelity")["low"]
        bleeds = seen(one, "bleed_class")["low"] > seen(winner, "bleed_class")["high"]
        if (closer or calmer) and not (farther or bleeds):
            reason = "more like the character" if closer else "less bleed"
            return f"the second encoder ({encoder}) disagrees: it sees {reason} in trial {one.trial.number}"
    return ""


def tags_in_words(winner: Point, class_word: str) -> str:
    """What a tagger sees of the character on the class word alone; empty where none was asked."""
    shown = [
        f"{found['value']:+.0%} ({found['low']:+.0%} to {found['high']:+.0%}) at weight {weight}"
        for weight, found in winner.tag_bleed.items()
    ]
    if not shown:
        return ""
    tags = ", ".join(winner.tags)
    return f"how often a tagger sees {tags} on `{class_word}` alone, less the base model's: {', '.join(shown)}"


def seeds_in_words(finals: Finals) -> str:
    """What training again with other seeds showed; empty where nothing was trained again."""
    if not finals.retrained:
        return ""
    beaten = seed_verdict(finals.retrained)
    scores = {
        number: ", ".join(f"{p.score['value']:.2f}" for p in points if p.score)
        for number, points in finals.retrained.items()
    }
    shown = [f"trial {number} scores {values}" for number, values in scores.items()]
    if len(finals.retrained) < 2:
        return f"over {len(next(iter(finals.retrained.values())))} training seeds {shown[0]}"
    verdict = "a tie" if beaten is None else f"trial {beaten} is clearly behind"
    return f"over the training seeds {' and '.join(shown)}: {verdict}"
