"""Finals: fresh verdicts decide, are kept, and ties are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autolora.errors import StudyError
from autolora.study import finals
from autolora.study.trial import Point


def made_up(step: int, objective: float, half_width: float = 0.05) -> Point:
    score = {"value": objective, "low": objective - half_width, "high": objective + half_width}
    return Point(step, objective, score, 1.0, {}, {}, {}, {}, 0.1, 0.1, "")


@dataclass
class FakeRecord:
    """A trial whose best checkpoint is known."""

    folder: Path
    search: float
    fresh: float

    def best(self) -> Point:
        return made_up(100, self.search)

    def load_best(self) -> Any:
        return SimpleNamespace(state=self)


@dataclass
class FakeWork:
    """Judges whatever was loaded last, and counts."""

    judged: list[float] = field(default_factory=list)
    loaded: Any = None

    @property
    def bench(self) -> Any:
        return SimpleNamespace(adapter=SimpleNamespace(load=lambda state: setattr(self, "loaded", state)))

    def score(self, bars: object, scorer: object) -> float:
        self.judged.append(self.loaded.fresh)
        return float(self.loaded.fresh)


@pytest.fixture(autouse=True)
def points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finals, "point", lambda checkpoint, value: made_up(100, value))


def hold(found: list[tuple[Any, Any]], work: FakeWork, count: int, folder: Path) -> list[finals.Finalist]:
    return finals.hold_finals(found, None, work, count, folder, None)  # type: ignore[arg-type]


def field_of(folder: Path) -> list[tuple[Any, Any]]:
    figures = [(0.5, 0.9), (0.9, 0.6), (0.8, 0.7), (0.7, 0.7)]
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


def test_nothing_scored_is_said(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="run it longer"):
        hold([], FakeWork(), 3, tmp_path)
