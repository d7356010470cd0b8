"""The finals in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.write import Exported
from autolora.publish.export import PlainLora
from autolora.publish.roundtrip import RoundtripReport
from autolora.study.finals.decision import Finals, seed_verdict
from autolora.study.finals.finalist import Finalist


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


def tags_in_words(winner: CheckpointResult, class_word: str) -> str:
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


def twin_as_dict(twin: PlainLora, proof: RoundtripReport) -> dict[str, Any]:
    """The plain LoRA beside the file, for programs."""
    score = proof.twin_score.as_dict() if proof.twin_score else None
    return {"path": str(twin.path), "dim": twin.dim, "distance": round(twin.apart, 4), "score": score}


def twin_in_words(twin: PlainLora, proof: RoundtripReport) -> str:
    """The plain LoRA beside the file, for a person."""
    score = f", score {proof.twin_score.value:.3f}" if proof.twin_score else ""
    readers = ", ".join(proof.read_by) or "LyCORIS"
    return f"plain:  {twin.path} (dim {twin.dim}, {twin.apart:.1%} off{score}), for programs other than {readers}"


def _fate(record: TrialFolder) -> str:
    """How an unchanged recipe ended, and what may help."""
    last, step = record.results[-1], record.overcooked_step()
    said = f"at step {last.step} {last.verdict}"
    if last.bleed_rate:
        share = max(last.bleed_rate.values())
        said = f"overcooked after step {step}" if step else "did not overcook"
        said += f": without the trigger, {share:.0%} of renders show the character at step {last.step}"
    advice = record.remedy(last)
    return f"{record.run.name} {said}" + (f"; try {advice}" if advice else "")


def _summary(found: list[tuple[FrozenTrial, TrialFolder]], finals: Finals, exported: Exported, page: Path) -> str:
    """The last words of a study."""
    lines = [_fate(record) for trial, record in found if trial.user_attrs.get("baseline")]
    winner, p = finals.winner, finals.winner.point
    name = f"trial {winner.trial.number} ({winner.record.run.name})"
    lines.append(f"best: {name} at {p.describe_place}: {p.summary}")
    if finals.ties:
        lines.append(f"not to be told from it by score: trial {' and '.join(map(str, finals.ties))}")
    lines += [seeds_in_words(finals)] if finals.retrained else []
    lines += [finals.choice] if finals.choice else []
    lines += [f"LoRA:   {exported.path}", f"report: {page}"]
    lines += [f"for diffusers: {exported.diffusers.parent}"] if exported.diffusers else []
    return "\n".join(lines)
