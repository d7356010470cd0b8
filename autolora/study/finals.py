"""The best trials' best checkpoints judged again with fresh seeds, so that luck in the search wins nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from optuna.trial import FrozenTrial

from autolora.errors import StudyError
from autolora.files import write_atomic
from autolora.progress import Bars
from autolora.scoring.encoders import load_second_encoder
from autolora.scoring.scorer import Scorer, with_encoder, with_fresh_probes
from autolora.study.trial import Point, Record, point
from autolora.study.workbench import Workbench

SWEEP = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
REPEATS = 2  # seeds per prompt, as a multiple of the search's


@dataclass(frozen=True)
class Finalist:
    """A trial's best checkpoint as the finals judged it."""

    trial: FrozenTrial
    record: Record
    point: Point

    def overlaps(self, other: Finalist) -> bool:
        """Whether the two scores' intervals overlap: a tie, as far as can be told."""
        own, its = self.point.score, other.point.score
        return own["low"] <= its["high"] and its["low"] <= own["high"]


@dataclass(frozen=True)
class Finals:
    """How the finals went: the winner first, with the weight that its sweep recommends."""

    scorer: Scorer
    finalists: list[Finalist]
    sweep: Point  # the winner at every weight of SWEEP, by the search's probes

    @property
    def winner(self) -> Finalist:
        """What is exported."""
        return self.finalists[0]

    @property
    def ties(self) -> list[int]:
        """Numbers of the trials that cannot be told from the winner."""
        return [one.trial.number for one in self.finalists[1:] if one.overlaps(self.winner)]


def final_scorer(work: Workbench, bars: Bars) -> Scorer:
    """The search's score with seeds of its own and more of them."""
    bench, second = work.bench, work.scorer.settings.second_encoder
    with bars.task("rendering the base model for the finals", None) as advance:
        scorer = with_fresh_probes(work.scorer, bench.dataset, work.renders, bench.adapter, REPEATS, advance)
    if second is None:
        return scorer
    return replace(scorer, second=with_encoder(scorer, load_second_encoder(second, bench.model)))


def sweep_weights(winner: Finalist, work: Workbench, folder: Path, bars: Bars) -> tuple[Finalist, Point]:
    """The winner with the weight that a sweep from 0.4 to 1.2 recommends, and the point with its terms at every weight.

    The sweep asks the search's probes; it is kept in `sweep.json` and read back.
    """
    key = f"{winner.record.folder.name}@{winner.point.step}"
    known = _read(folder / "sweep.json")
    if key not in known:
        checkpoint = winner.record.load_best()
        work.bench.adapter.load(checkpoint.state)
        scorer = replace(work.scorer, settings=replace(work.scorer.settings, weights=SWEEP))
        known = {key: point(checkpoint, work.score(bars, scorer), work.base_losses)}
        write_atomic(folder / "sweep.json", json.dumps({k: asdict(p) for k, p in known.items()}, indent=1))
    swept = known[key]
    return replace(winner, point=replace(winner.point, weight=swept.weight)), swept


def disagreement(finalists: Sequence[Finalist], encoder: str | None) -> str:
    """Whom the second encoder prefers to the winner: clearly more like it or clearly less bleed, and worse in neither.

    Empty where it prefers nobody.
    """

    def seen(one: Finalist, name: str) -> dict[str, float]:
        return one.point.second[max(one.point.second, key=float)][name]

    winner, *others = finalists
    for one in others if winner.point.second else ():
        closer = seen(one, "fidelity")["low"] > seen(winner, "fidelity")["high"]
        calmer = seen(one, "bleed_class")["high"] < seen(winner, "bleed_class")["low"]
        farther = seen(one, "fidelity")["high"] < seen(winner, "fidelity")["low"]
        bleeds = seen(one, "bleed_class")["low"] > seen(winner, "bleed_class")["high"]
        if (closer or calmer) and not (farther or bleeds):
            reason = "more like the character" if closer else "less bleed"
            return f"the second encoder ({encoder}) disagrees: it sees {reason} in trial {one.trial.number}"
    return ""


def hold_finals(
    found: Sequence[tuple[FrozenTrial, Record]], scorer: Scorer, work: Workbench, count: int, folder: Path, bars: Bars
) -> list[Finalist]:
    """Judge the `count` trials with the best objectives again; the winner first, then by objective.

    Of those whose score cannot be told from the highest the one that bleeds least wins: the limit on bleed is the same
    for all characters, what a bleed means is not. (On development character 9 the highest score bled in 22% of renders,
    the two it tied with in 5 and 10%, at higher likeness.)

    Verdicts are kept in `finals.json` and read back for checkpoints that were judged before.

    Raises:
        StudyError: no trial has a scored checkpoint yet.
    """
    if not found:
        raise StudyError("no trial of this study has a scored checkpoint yet; run it longer")
    known = _read(folder / "finals.json")
    ranked = sorted(found, key=lambda pair: _best(pair[1]).objective, reverse=True)[:count]
    finalists = []
    for trial, record in ranked:
        key = f"{record.folder.name}@{_best(record).step}"
        if key not in known:
            checkpoint = record.load_best()
            work.bench.adapter.load(checkpoint.state)
            known[key] = point(checkpoint, work.score(bars, scorer), work.base_losses)
            write_atomic(folder / "finals.json", json.dumps({k: asdict(p) for k, p in known.items()}, indent=1))
        finalists.append(Finalist(trial, record, known[key]))
    finalists.sort(key=lambda one: (-one.point.objective, one.trial.number))
    tied = [one for one in finalists if not one.point.broken and one.overlaps(finalists[0])]
    winner = min(tied, key=lambda one: one.point.terms["bleed_class"]["value"], default=finalists[0])
    return [winner, *(one for one in finalists if one is not winner)]


def _best(record: Record) -> Point:
    best = record.best()
    assert best is not None
    return best


def _read(path: Path) -> dict[str, Point]:
    if not path.is_file():
        return {}
    return {key: Point(**content) for key, content in json.loads(path.read_text("utf-8")).items()}
