"""Finals: fresh verdicts decide, are kept, and ties are told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autolora.errors import StudyError
from autolora.study import finals
from autolora.study.finals import Finalist
from autolora.study.trial import Point


def made_up(step: int, objective: float, bleed: float = 0.0) -> Point:
    score = {"value": objective, "low": objective - 0.05, "high": objective + 0.05}
    terms = {"bleed_class": {"value": bleed, "low": bleed, "high": bleed}}
    constraints = {"bleed_class": -objective}  # an objective below 0 is one that breaks a constraint
    return Point(step, objective, score, 1.0, terms, {}, constraints, {}, 0.1, 0.1, [], "")


@dataclass
class FakeRecord:
    """A trial whose best checkpoint is known."""

    folder: Path
    search: float
    fresh: float
    bleed: float = 0.0

    def best(self) -> Point:
        return made_up(100, self.search)

    def load_best(self) -> Any:
        return SimpleNamespace(state=self)


@dataclass
class FakeWork:
    """Judges whatever was loaded last, and counts."""

    judged: list[float] = field(default_factory=list)
    loaded: Any = None

    base_losses: tuple[float, ...] = ()

    @property
    def bench(self) -> Any:
        return SimpleNamespace(adapter=SimpleNamespace(load=lambda state: setattr(self, "loaded", state)))

    def score(self, bars: object, scorer: object) -> FakeRecord:
        self.judged.append(self.loaded.fresh)
        return self.loaded  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finals, "point", lambda checkpoint, card, losses: made_up(100, card.fresh, card.bleed))


def hold(found: list[tuple[Any, Any]], work: FakeWork, count: int, folder: Path) -> list[finals.Finalist]:
    return finals.hold_finals(found, None, work, count, folder, None)  # type: ignore[arg-type]


FIGURES = [(0.5, 0.9), (0.9, 0.6), (0.8, 0.7), (0.7, 0.7)]


def field_of(folder: Path, figures: Sequence[tuple[float, ...]] = FIGURES) -> list[tuple[Any, Any]]:
    return [(SimpleNamespace(number=i), FakeRecord(folder / f"uid{i}", *pair)) for i, pair in enumerate(figures)]


def test_the_fresh_verdict_decides_among_the_best_of_the_search(tmp_path: Path) -> None:
    finalists = hold(field_of(tmp_path), FakeWork(), 3, tmp_path)
    assert [one.trial.number for one in finalists] == [2, 3, 1]  # trial 0 was not among the best three


def test_verdicts_are_kept(tmp_path: Path) -> None:
    work = FakeWork()
    first = hold(field_of(tmp_path), work, 2, tmp_path)
    assert len(work.judged) == 2
    again = hold(field_of(tmp_path), work, 3, tmp_path)
    assert len(work.judged) == 3
    assert [one.point for one in again if one.trial.number in (1, 2)] == [one.point for one in first]


def test_a_tie_is_a_tie(tmp_path: Path) -> None:
    best, equal, worse = hold(field_of(tmp_path), FakeWork(), 3, tmp_path)
    assert best.overlaps(equal) and equal.overlaps(best)
    far = finals.Finalist(worse.trial, worse.record, made_up(100, 0.2))
    assert not best.overlaps(far) and not far.overlaps(best)


@pytest.mark.parametrize(
    ("figures", "order"),
    [
        ([(0.9, 0.80, 0.4), (0.9, 0.75, 0.1), (0.9, 0.73, 0.2)], [1, 0, 2]),  # all tie: the least bleed wins
        ([(0.9, 0.80, 0.4), (0.9, 0.60, 0.1)], [0, 1]),  # no tie
        ([(0.9, -0.02, 0.9), (0.9, -0.05, 0.1)], [0, 1]),  # none is feasible: the least broken
        ([(0.9, 0.04, 0.4), (0.9, -0.02, 0.1)], [0, 1]),  # an infeasible one wins no tie
    ],
)
def test_of_a_tie_the_one_that_bleeds_least_wins(
    figures: list[tuple[float, ...]], order: list[int], tmp_path: Path
) -> None:
    finalists = hold(field_of(tmp_path, figures), FakeWork(), 3, tmp_path)
    assert [one.trial.number for one in finalists] == order


def test_nothing_scored_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="run it longer"):
        hold([], FakeWork(), 3, tmp_path)


def opinion(fidelity: float, bleed: float) -> dict[str, dict[str, dict[str, float]]]:
    """What the second encoder saw, to within .05."""
    near = {"fidelity": fidelity, "bleed_class": bleed}
    return {"1": {name: {"value": v, "low": v - 0.05, "high": v + 0.05} for name, v in near.items()}}


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (opinion(0.8, 0.2), ""),  # as good
        (opinion(0.85, 0.12), ""),  # not clearly better
        (opinion(0.95, 0.2), "more like the character in trial 5"),
        (opinion(0.8, 0.0), "less bleed in trial 5"),
        (opinion(0.95, 0.4), ""),  # liker, but bleeds
        (opinion(0.5, 0.0), ""),  # calmer, but unlike
    ],
)
def test_the_second_encoder_may_disagree(others: dict[str, dict[str, dict[str, float]]], said: str) -> None:
    points = [replace(made_up(100, 0.9), second=seen) for seen in (opinion(0.8, 0.2), others)]
    found = [Finalist(SimpleNamespace(number=i), None, p) for i, p in zip((3, 5), points, strict=True)]  # type: ignore[arg-type]
    assert finals.disagreement(found, "vae").endswith(said)
    assert bool(finals.disagreement(found, "vae")) == bool(said)


def test_without_a_second_encoder_nothing_disagrees() -> None:
    found = [Finalist(SimpleNamespace(number=i), None, made_up(100, 0.9)) for i in (3, 5)]  # type: ignore[arg-type]
    assert finals.disagreement(found, None) == ""
