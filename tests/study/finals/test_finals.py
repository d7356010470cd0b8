"""Finals: who wins, what is a tie, and what the second encoder says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from autolora.errors import MemoryFull, StudyError, Unmeasurable
from autolora.evaluation.result import CheckpointResult
from autolora.study.finals.decision import (
    Finals,
    checkpoints_to_score,
    seed_verdict,
    select_winner,
    within_interval_of_best,
)
from autolora.study.finals.finalist import Candidate, Finalist
from autolora.study.finals.finals_runner import FinalsRunner
from autolora.study.finals.run import run as finals
from autolora.study.results.summary import disagreement, seeds_in_words
from autolora.study.settings import Budget, StudySettings


def made_up(step: int, objective: float, bleed: float = 0.0) -> CheckpointResult:
    score = {"value": objective, "low": objective - 0.05, "high": objective + 0.05}
    terms = {"bleed_class": {"value": bleed, "low": bleed, "high": bleed}}
    constraints = {"bleed_class": -objective}  # an objective below 0 is one that breaks a constraint
    return CheckpointResult(step, 0.1, 0.1, [], objective, score, terms=terms, constraints=constraints)


def finalist(number: int, objective: float, bleed: float = 0.0) -> Finalist:
    return Finalist(SimpleNamespace(number=number), None, made_up(100, objective, bleed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figures", "order", "ties"),
    [
        ([(0.75, 0.4), (0.80, 0.1), (0.73, 0.2)], [1, 0, 2], [0, 2]),  # all tie: the highest wins, and that is said
        ([(0.80, 0.4), (0.60, 0.1)], [0, 1], []),  # no tie
        ([(-0.02, 0.9), (-0.30, 0.1)], [0, 1], []),  # none is feasible: the least broken
        ([(0.04, 0.4), (-0.02, 0.1)], [0, 1], [1]),  # an infeasible one wins no tie
    ],
)
def test_the_highest_objective_wins_and_ties_are_told(
    figures: list[tuple[float, float]], order: list[int], ties: list[int]
) -> None:
    found = select_winner(None, [finalist(i, *pair) for i, pair in enumerate(figures)], {})  # type: ignore[arg-type]
    assert [one.trial.number for one in found.finalists] == order
    assert found.ties == ties


@pytest.mark.parametrize(
    ("objectives", "again"),
    [
        ([0.80, 0.75, 0.71], [0, 1, 2]),
        ([0.80, 0.69, 0.72], [0, 2]),  # intervals reach 0.05 to each side
        ([0.30, -0.02, 0.90], [0, 2]),  # the last one ranks lower as it breaks a limit, which renders might clear
        ([None, 0.10], [0, 1]),  # nothing was rendered
    ],
)
def test_only_those_within_reach_of_the_best_are_judged_again(objectives: list[float | None], again: list[int]) -> None:
    def record(objective: float | None) -> Any:
        point = made_up(100, objective or 0.0)
        return SimpleNamespace(best=lambda: point if objective is not None else replace(point, score=None))

    ranked = [(number, record(objective)) for number, objective in enumerate(objectives)]
    assert [number for number, _ in within_interval_of_best(ranked)] == again  # type: ignore[arg-type]


def test_a_trial_is_shown_by_its_best_checkpoint() -> None:
    early, late, other = finalist(3, 0.78), finalist(3, 0.80), finalist(5, 0.79)
    found = select_winner(None, [early, late, other], {})  # type: ignore[arg-type]
    assert found.finalists == [late, other]


@pytest.mark.parametrize(
    ("objectives", "beaten"),
    [
        ({4: [0.80, 0.82, 0.81], 7: [0.70, 0.71, 0.69]}, 7),
        ({4: [0.60, 0.62, 0.61], 7: [0.70, 0.71, 0.69]}, 4),
        ({4: [0.80, 0.70, 0.75], 7: [0.70, 0.80, 0.72]}, None),  # less than two seed deviations apart
        ({4: [0.80, 0.82, -0.1], 7: [0.70, 0.71, 0.69]}, None),  # a seed that breaks a constraint makes it uncertain
        ({4: [0.80, 0.82, 0.81]}, None),
        ({4: [0.80], 7: [0.20]}, None),  # every other seed diverged
        ({}, None),
    ],
)
def test_recipes_are_told_apart_by_two_seed_deviations(objectives: dict[int, list[float]], beaten: int | None) -> None:
    assert seed_verdict({n: [made_up(100, o) for o in own] for n, own in objectives.items()}) == beaten


def test_the_clearly_worse_recipe_cannot_win_by_one_lucky_checkpoint() -> None:
    field = [finalist(4, 0.80), finalist(7, 0.86), finalist(7, 0.60)]
    points = {4: [made_up(100, o) for o in (0.80, 0.80)], 7: [made_up(100, o) for o in (0.70, 0.71)]}
    found = select_winner(None, field, points)  # type: ignore[arg-type]
    assert found.winner.trial.number == 4 and found.ties == []
    assert seeds_in_words(found).endswith("trial 7 is clearly behind")


@pytest.mark.parametrize(("broken", "steps"), [("undercooked", [200, 300]), ("bleed_class", [200])])
def test_of_an_undercooked_trial_the_next_checkpoint_is_judged_too(broken: str, steps: list[int]) -> None:
    points = [replace(made_up(step, -1.0), constraints={broken: 0.1}) for step in (100, 200, 300)]
    record = SimpleNamespace(best=lambda: points[1], around=lambda p: points)
    assert [p.step for p in checkpoints_to_score(record)] == steps  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("objectives", "asked"),
    [
        ({1.25: 0.7, 1.5: 0.8}, [1.25, 1.5]),
        ({1.25: 0.7, 1.5: 0.6}, [1.25, 1.5]),
        ({1.25: 0.5}, [1.25]),  # no better: the next would be worse still
        ({}, [1.25]),  # there was no time for it
    ],
)
def test_the_best_grows_stronger_while_that_is_better(
    objectives: dict[float, float], asked: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tried(finalist(3, 0.6), objectives, monkeypatch) == asked


def test_what_bleeds_grows_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    bleeding = finalist(3, -0.6)
    assert tried(bleeding, {0.8: 0.4}, monkeypatch) == [0.8]
    faint = replace(bleeding.point, constraints=bleeding.point.constraints | {"undercooked": 0.2})
    assert tried(replace(bleeding, point=faint), {}, monkeypatch) == [1.25]  # and does not show enough even so
    faded = replace(faint, constraints=faint.constraints | {"too_strong": 0.1})
    assert tried(replace(bleeding, point=faded), {}, monkeypatch) == [0.8]  # as it shows less the stronger it is


def tried(leader: Finalist, objectives: dict[float, float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The strengths asked for, of which the finals judge those that have an objective."""

    def judge(asked: Sequence[Candidate]) -> list[Finalist]:
        known = [replace(p, objective=objectives[p.strength]) for _, _, p, _ in asked if p.strength in objectives]
        return [replace(leader, point=p) for p in known]

    strengths: list[float] = []

    def copy(record: Any, p: CheckpointResult, strength: float, session: Any) -> tuple[Any, CheckpointResult]:
        strengths.append(strength)
        return record, replace(p, strength=strength)

    monkeypatch.setattr(finals, "rescaled", copy)
    found = finals.rescale_while_better(SimpleNamespace(judge=judge), leader, None)  # type: ignore[arg-type]
    assert [one.point.strength for one in found] == [s for s in strengths if s in objectives]
    return strengths


def test_nothing_scored_is_said() -> None:
    with pytest.raises(StudyError, match="run it longer"):
        finals.run_finals(None, [], None, None)  # type: ignore[arg-type]


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
    found = Finals(None, [replace(finalist(i, 0), point=p) for i, p in zip((3, 5), points, strict=True)], {}, [])  # type: ignore[arg-type]
    assert disagreement(found, "vae").endswith(said)
    assert bool(disagreement(found, "vae")) == bool(said)


def test_without_a_second_encoder_nothing_disagrees() -> None:
    assert disagreement(Finals(None, [finalist(3, 0.9), finalist(5, 0.9)], {}, []), None) == ""  # type: ignore[arg-type]


def test_a_second_encoder_that_cannot_tell_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    first = SimpleNamespace(settings=SimpleNamespace(second_encoder="vae"))
    context = SimpleNamespace(dataset=None, adapter=None, model=None)
    said: list[str] = []
    bars = SimpleNamespace(task=lambda *_: nullcontext(lambda count: None), say=said.append)

    def cannot(*_: object) -> None:
        raise Unmeasurable("unmeasurable: vae tells nothing apart")

    monkeypatch.setattr(finals, "with_fresh_probes", lambda *_: first)
    monkeypatch.setattr(finals, "load_second_encoder", lambda *_: None)
    monkeypatch.setattr(finals, "with_encoder", cannot)
    session = SimpleNamespace(context=context, renders=None)
    assert finals.final_scorer(first, session, bars) is first  # type: ignore[arg-type]
    assert said == ["unmeasurable: vae tells nothing apart; going on without a second opinion"]


class Judging(FinalsRunner):
    """A stage whose clock and memory a test sets: every checkpoint takes ten seconds, unless there is no room."""

    room = True

    def _found(self, asked: Candidate) -> CheckpointResult:
        if not self.room:
            raise MemoryFull("set model.offload=true")
        return replace(asked[2], constraints={})


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Judging]:
    ticks = itertools.count(step=10)
    monkeypatch.setattr(
        "autolora.study.finals.finals_runner.time", SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    )
    definition: Any = SimpleNamespace(
        storage=f"sqlite:///{tmp_path / 'study.db'}", settings=SimpleNamespace(name="night")
    )
    files = {"fetch": lambda name: tmp_path / name}
    search = SimpleNamespace(at=lambda *_: SimpleNamespace(renders=5))
    session: Any = SimpleNamespace(scorer=search)  # a last word takes half as many renders, five seconds
    scorer: Any = SimpleNamespace(only=lambda *_: SimpleNamespace(renders=20), renders=5)
    said: list[str] = []

    def made(seconds: float) -> Judging:
        found = Judging(definition, session, scorer, cast(Any, SimpleNamespace(say=said.append)), seconds)
        found.definition.files, found.said = SimpleNamespace(**files), said  # type: ignore[attr-defined, misc]
        monkeypatch.setattr(found, "_record", lambda asked: asked[1])
        return found

    return made


def candidate(number: int, seed: int | None = None) -> Candidate:
    """A checkpoint of 100 images whose recipe trained at half a second each."""
    attributes = {"training_seconds": 200.0, "step": 400}
    record: Any = SimpleNamespace(key=lambda point: f"{number}-{point.step}")
    trial: Any = SimpleNamespace(number=number, user_attrs=attributes)
    return trial, record, made_up(100, 0.5), seed


def test_finals_leave_out_what_there_is_no_time_for(stage: Callable[[float], Judging]) -> None:
    """Each takes ten seconds, training again is expected to take fifty more, and the last word five."""
    held = stage(95.0)
    assert len(held.judge([candidate(0), candidate(1), candidate(2)])) == 3
    again = [candidate(0, 1), candidate(1, 1)]
    assert [one.trial.number for one in held.judge(again)] == [0]  # 30 + 10 + 50 + 5 fit, once more do not
    assert held.said[-1] == (  # type: ignore[attr-defined]
        "finals: trial 1 trained again with seed 1 is left out: there is no time for it within budget.minutes"
    )
    assert len(stage(1000.0).judge(again)) == 1  # it stays so when the report is written again
    assert len(stage(1000.0).judge([candidate(0)])) == 1


def test_the_first_finalist_is_judged_however_late_it_is(stage: Callable[[float], Judging]) -> None:
    assert [one.trial.number for one in stage(-5.0).judge([candidate(0), candidate(1)])] == [0]


def test_finals_that_find_no_memory_are_not_lost(stage: Callable[[float], Judging]) -> None:
    held = stage(math.inf)
    held.room = False
    assert held.judge([candidate(0)]) == []
    assert held.too_large() == "set model.offload=true"
    assert "is left out: set model.offload=true" in held.said[-1]  # type: ignore[attr-defined]
    assert len(stage(math.inf).judge([candidate(0)])) == 1  # tried again, with other settings


def test_the_finals_have_what_the_search_left_of_the_time() -> None:
    night = StudySettings("night", {}, Budget(minutes=100))
    assert (night.search_minutes, night.finals_seconds(3000.0)) == (70, 3000.0)
    assert replace(night, final_seeds=0).finals_seconds(6000.0) == math.inf
    assert replace(night, budget=Budget()).finals_seconds(6000.0) == math.inf
