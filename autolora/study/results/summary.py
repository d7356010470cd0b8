"""The finals in words, for the report and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.trial_folder import TrialFolder
from autolora.export.write import ExportedFiles
from autolora.publish.export import PlainLora
from autolora.publish.roundtrip import RoundtripReport
from autolora.study.finals.decision import Finals, seed_verdict
from autolora.study.finals.finalist import Finalist


def describe_disagreement(finals: Finals, encoder: str | None) -> str:
    """The finalist that the second encoder prefers to the winner; empty if it prefers none.

    It prefers a finalist that is clearly more like the character or bleeds clearly less, and is clearly worse in
    neither.
    """

    def term(finalist: Finalist, name: str) -> dict[str, float]:
        by_weight = finalist.result.second
        return by_weight[max(by_weight, key=float)][name]

    winner, *others = finals.finalists
    for other in others if winner.result.second else ():
        closer = term(other, "fidelity")["low"] > term(winner, "fidelity")["high"]
        calmer = term(other, "bleed_class")["high"] < term(winner, "bleed_class")["low"]
        farther = term(other, "fidelity")["high"] < term(winner, "fidelity")["low"]
        bleeds = term(other, "bleed_class")["low"] > term(winner, "bleed_class")["high"]
        if (closer or calmer) and not (farther or bleeds):
            reason = "more like the character" if closer else "less bleed"
            return f"the second encoder ({encoder}) disagrees: it sees {reason} in trial {other.trial.number}"
    return ""


def describe_tag_bleed(winner: CheckpointResult, class_word: str) -> str:
    """How much more often a tagger sees the character's tags on the class word alone; empty without a tagger."""
    shares = [
        f"{share['value']:+.0%} ({share['low']:+.0%} to {share['high']:+.0%}) at weight {weight}"
        for weight, share in winner.tag_bleed.items()
    ]
    if not shares:
        return ""
    tags = ", ".join(winner.tags)
    return f"how often a tagger sees {tags} on `{class_word}` alone, minus the base model's share: {', '.join(shares)}"


def describe_seeds(finals: Finals) -> str:
    """The scores of recipes that were trained again with other seeds; empty if none was."""
    if not finals.retrained:
        return ""
    beaten = seed_verdict(finals.retrained)
    scores = {
        number: ", ".join(f"{result.score['value']:.2f}" for result in results if result.score)
        for number, results in finals.retrained.items()
    }
    trials = [f"trial {number} scores {values}" for number, values in scores.items()]
    if len(finals.retrained) < 2:
        return f"over {len(next(iter(finals.retrained.values())))} training seeds {trials[0]}"
    verdict = "a tie" if beaten is None else f"trial {beaten} is clearly behind"
    return f"over the training seeds {' and '.join(trials)}: {verdict}"


def plain_lora_as_dict(plain_lora: PlainLora, roundtrip: RoundtripReport) -> dict[str, Any]:
    """The plain LoRA of an adapter of another kind, for `result.json`."""
    score = roundtrip.plain_lora_score.as_dict() if roundtrip.plain_lora_score else None
    return {
        "path": str(plain_lora.path),
        "dim": plain_lora.dim,
        "distance": round(plain_lora.apart, 4),
        "score": score,
        **({"dora": str(roundtrip.dora)} if roundtrip.dora else {}),
    }


def describe_copies(plain_lora: PlainLora | None, roundtrip: RoundtripReport, score: float | None) -> list[str]:
    """The files beside an exported one and the copies that were left out, as lines for the terminal.

    Args:
        plain_lora: the plain LoRA of an adapter of another kind.
        roundtrip: what was verified.
        score: the adapter's own score; None: nothing can be measured.
    """
    lines, readers = [], ", ".join(roundtrip.read_by) or "LyCORIS"
    if plain_lora:
        plain_score = f", score {roundtrip.plain_lora_score.value:.3f}" if roundtrip.plain_lora_score else ""
        facts = f"dim {plain_lora.dim}, {plain_lora.apart:.1%} off{plain_score}"
        if roundtrip.dora:
            own_score = f" (score {score:.3f})" if score is not None else ""
            lines.append(f"it is the plain LoRA of a DoRA ({facts}), because other programs render DoRA differently")
            lines.append(f"DoRA:   {roundtrip.dora}{own_score}, for {readers}")
        else:
            lines.append(f"plain:  {plain_lora.path} ({facts}), for programs other than {readers}")
    return [*lines, *roundtrip.left_out]


def describe_baseline(trial_folder: TrialFolder) -> str:
    """How an unchanged recipe ended, and what may help."""
    last, overcooked = trial_folder.results[-1], trial_folder.overcooked_step()
    ending = f"after {last.step} images: {last.verdict}"
    if last.bleed_rate:
        share = max(last.bleed_rate.values())
        ending = f"overcooked after {overcooked} images" if overcooked else "did not overcook"
        ending += f": without the trigger, {share:.0%} of renders show the character after {last.step} images"
    advice = trial_folder.remedy(last)
    return f"{trial_folder.run.name} {ending}" + (f"; try {advice}" if advice else "")


def summarize_study(
    trials: Sequence[tuple[FrozenTrial, TrialFolder]], finals: Finals, exported: ExportedFiles, page: Path
) -> str:
    """The result of a study in a few lines, for the terminal."""
    lines = [describe_baseline(folder) for trial, folder in trials if trial.user_attrs.get("baseline")]
    winner, result = finals.winner, finals.winner.result
    name = f"trial {winner.trial.number} ({winner.trial_folder.run.name})"
    lines.append(f"best: {name}, {result.describe_place}: {result.summary}")
    if finals.ties:
        lines.append(f"its score cannot be told from that of trial {' and '.join(map(str, finals.ties))}")
    lines += [describe_seeds(finals)] if finals.retrained else []
    lines += [finals.choice] if finals.choice else []
    lines += [f"LoRA:   {exported.path}", f"report: {page}"]
    lines += [f"for diffusers: {exported.diffusers.parent}"] if exported.diffusers else []
    return "\n".join(lines)
