"""The finals: the winner, ties, what the second encoder prefers, and what is left out for lack of time or memory."""

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
from autolora.evaluation import session as evaluation
from autolora.evaluation.result import CheckpointResult
from autolora.settings import Budget, StudySettings
from autolora.study.finals import run as finals
from autolora.study.finals.decision import (
    Finals,
    checkpoints_to_score,
    seed_verdict,
    select_winner,
    within_interval_of_best,
)
from autolora.study.finals.finalist import Candidate, Finalist
from autolora.study.finals.finals_runner import FinalsRunner
from autolora.study.results.summary import describe_disagreement, describe_seeds


def made_up(step: int, objective: float, bleed: float = 0.0) -> CheckpointResult:
    score = {"value": objective, "low": objective - 0.05, "high": objective + 0.05}
    terms = {
        name: {"value": bleed, "low": bleed, "high": bleed}
        for name in ("bleed_class", "fidelity", "likeness", "editability")
    }
    constraints = {"bleed_class": -objective}  # an objective below 0 breaks a constraint
    return CheckpointResult(step, 0.1, 0.1, [1.0], objective, score, terms=terms, constraints=constraints)


def finalist(number: int, objective: float, bleed: float = 0.0) -> Finalist:
    return Finalist(SimpleNamespace(number=number), None, made_up(100, objective, bleed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("figures", "order", "ties"),
    [
        ([(0.75, 0.4), (0.80, 0.1), (0.73, 0.2)], [1, 0, 2], [0, 2]),  # all tie: the highest wins
        ([(0.80, 0.4), (0.60, 0.1)], [0, 1], []),  # no tie
        ([(-0.02, 0.9), (-0.30, 0.1)], [0, 1], []),  # all break a constraint: the smallest violation wins
        ([(0.04, 0.4), (-0.02, 0.1)], [0, 1], [1]),  # a checkpoint that breaks a constraint wins no tie
    ],
)
def test_the_highest_objective_wins_and_ties_are_named(
    figures: list[tuple[float, float]], order: list[int], ties: list[int]
) -> None:
    outcome = select_winner(None, [finalist(i, *pair) for i, pair in enumerate(figures)], {})
    assert [one.trial.number for one in outcome.finalists] == order
    assert outcome.ties == ties


@pytest.mark.parametrize(
    ("objectives", "again"),
    [
        ([0.80, 0.75, 0.71], [0, 1, 2]),
        ([0.80, 0.69, 0.72], [0, 2]),  # intervals reach 0.05 to each side
        ([0.30, -0.02, 0.90], [0, 2]),  # the last one ranks lower as it breaks a limit, which renders might clear
        ([None, 0.10], [0, 1]),  # nothing was rendered
    ],
)
def test_only_trials_whose_interval_reaches_the_best_are_scored_again(
    objectives: list[float | None], again: list[int]
) -> None:
    def trial_folder(objective: float | None) -> Any:
        result = made_up(100, objective or 0.0)
        return SimpleNamespace(best_result=lambda: result if objective is not None else replace(result, score=None))

    ranked = [(number, trial_folder(objective)) for number, objective in enumerate(objectives)]
    assert [number for number, _ in within_interval_of_best(ranked)] == again  # type: ignore[arg-type]


def test_a_trial_is_shown_by_its_best_checkpoint() -> None:
    early, late, other = finalist(3, 0.78), finalist(3, 0.80), finalist(5, 0.79)
    assert select_winner(None, [early, late, other], {}).finalists == [late, other]


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
    results = {number: [made_up(100, objective) for objective in values] for number, values in objectives.items()}
    assert seed_verdict(results) == beaten


def test_the_clearly_worse_recipe_cannot_win_by_one_lucky_checkpoint() -> None:
    finalists = [finalist(4, 0.80), finalist(7, 0.86), finalist(7, 0.60)]
    retrained = {4: [made_up(100, o) for o in (0.80, 0.80)], 7: [made_up(100, o) for o in (0.70, 0.71)]}
    outcome = select_winner(None, finalists, retrained)
    assert outcome.winner.trial.number == 4 and outcome.ties == []
    assert describe_seeds(outcome).endswith("trial 7 is clearly behind")


@pytest.mark.parametrize(("broken", "steps"), [("undercooked", [200, 300]), ("bleed_class", [200])])
def test_of_an_undercooked_trial_the_next_checkpoint_is_scored_too(broken: str, steps: list[int]) -> None:
    results = [replace(made_up(step, -1.0), constraints={broken: 0.1}) for step in (100, 200, 300)]
    trial_folder: Any = SimpleNamespace(best_result=lambda: results[1], rendered_neighbours=lambda result: results)
    assert [result.step for result in checkpoints_to_score(trial_folder)] == steps


@pytest.mark.parametrize(
    ("objectives", "strengths"),
    [
        ({1.25: 0.7, 1.5: 0.8}, [1.25, 1.5]),
        ({1.25: 0.7, 1.5: 0.6}, [1.25, 1.5]),
        ({1.25: 0.5}, [1.25]),  # no better: the next would be worse still
        ({}, [1.25]),  # there was no time for it
    ],
)
def test_the_strength_is_raised_as_long_as_that_is_better(
    objectives: dict[float, float], strengths: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tried_strengths(finalist(3, 0.6), objectives, monkeypatch) == strengths


def test_the_strength_of_a_bleeding_checkpoint_is_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    bleeding = finalist(3, -0.6)
    assert tried_strengths(bleeding, {0.8: 0.4}, monkeypatch) == [0.8]
    faint = replace(bleeding.result, constraints=bleeding.result.constraints | {"undercooked": 0.2})
    assert tried_strengths(replace(bleeding, result=faint), {}, monkeypatch) == [1.25]  # it shows too little even so
    faded = replace(faint, constraints=faint.constraints | {"too_strong": 0.1})
    assert tried_strengths(replace(bleeding, result=faded), {}, monkeypatch) == [0.8]  # it shows less when stronger


def tried_strengths(leader: Finalist, objectives: dict[float, float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The strengths that are tried; the finals score those that have an objective."""

    def judge(candidates: Sequence[Candidate]) -> list[Finalist]:
        results = [candidate.result for candidate in candidates if candidate.result.strength in objectives]
        return [replace(leader, result=replace(p, objective=objectives[p.strength])) for p in results]

    strengths: list[float] = []

    def copy(folder: Any, result: CheckpointResult, strength: float, session: Any) -> tuple[Any, CheckpointResult]:
        strengths.append(strength)
        return folder, replace(result, strength=strength)

    monkeypatch.setattr(finals, "rescaled", copy)
    copies = finals.rescale_while_better(cast(Any, SimpleNamespace(judge=judge)), leader, cast(Any, None))
    assert [one.result.strength for one in copies] == [s for s in strengths if s in objectives]
    return strengths


def test_finals_without_a_scored_checkpoint_are_refused() -> None:
    with pytest.raises(StudyError, match="run it longer"):
        finals.run_finals(cast(Any, None), [])


def opinion(fidelity: float, bleed: float) -> dict[str, dict[str, dict[str, float]]]:
    """The terms of the second encoder, with intervals of .05 to each side."""
    near = {"fidelity": fidelity, "bleed_class": bleed}
    return {"1": {name: {"value": v, "low": v - 0.05, "high": v + 0.05} for name, v in near.items()}}


@pytest.mark.parametrize(
    ("other", "preferred"),
    [
        (opinion(0.8, 0.2), ""),  # as good
        (opinion(0.85, 0.12), ""),  # not clearly better
        (opinion(0.95, 0.2), "more like the character in trial 5"),
        (opinion(0.8, 0.0), "less bleed in trial 5"),
        (opinion(0.95, 0.4), ""),  # more like the character, but bleeds
        (opinion(0.5, 0.0), ""),  # bleeds less, but is unlike the character
    ],
)
def test_the_second_encoder_may_disagree(other: dict[str, dict[str, dict[str, float]]], preferred: str) -> None:
    results = [replace(made_up(100, 0.9), second=terms) for terms in (opinion(0.8, 0.2), other)]
    finalists = [replace(finalist(number, 0), result=p) for number, p in zip((3, 5), results, strict=True)]
    text = describe_disagreement(Finals(None, finalists, {}, []), "vae")
    assert text.endswith(preferred) and bool(text) == bool(preferred)


def test_without_a_second_encoder_nothing_disagrees() -> None:
    assert describe_disagreement(Finals(None, [finalist(3, 0.9), finalist(5, 0.9)], {}, []), None) == ""


def test_a_second_encoder_that_cannot_tell_images_apart_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    first = SimpleNamespace(settings=SimpleNamespace(second_encoder="vae"))
    context = SimpleNamespace(dataset=None, adapter=None, model=None)
    lines: list[str] = []
    bars: Any = SimpleNamespace(task=lambda *_: nullcontext(lambda count: None), log=lines.append)

    def cannot(*_: object) -> None:
        raise Unmeasurable("unmeasurable: vae tells nothing apart")

    monkeypatch.setattr(evaluation, "with_fresh_prompts", lambda *_: first)
    monkeypatch.setattr(evaluation, "load_second_encoder", lambda *_: None)
    monkeypatch.setattr(evaluation, "with_encoder", cannot)
    session: Any = SimpleNamespace(context=context, renders=None)
    assert evaluation.final_scorer(cast(Any, first), session, bars) is first
    assert lines == ["unmeasurable: vae tells nothing apart; going on without a second opinion"]


class QuickEvaluator:
    """An evaluator that renders nothing; a full evaluation takes half the renders of a candidate."""

    full_evaluation_renders = 10
    deciding = SimpleNamespace(num_renders=20)

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.bars = SimpleNamespace(log=self.lines.append)
        self.has_memory = True

    def evaluate(self, candidate: Candidate) -> CheckpointResult:
        if not self.has_memory:
            raise MemoryFull("set model.offload=true")
        return replace(candidate.result, constraints={})

    def folder_of(self, candidate: Candidate) -> Any:
        return candidate.trial_folder


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], tuple[FinalsRunner, QuickEvaluator]]:
    """A runner of finals that may take so many seconds; each candidate takes ten, a full evaluation five."""
    ticks = itertools.count(step=10)
    monkeypatch.setattr(
        "autolora.study.finals.finals_runner.time", SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    )
    definition: Any = SimpleNamespace(
        storage=f"sqlite:///{tmp_path / 'study.db'}", settings=StudySettings("night", {}, Budget())
    )

    def create(seconds: float) -> tuple[FinalsRunner, QuickEvaluator]:
        evaluator = QuickEvaluator()
        finals_runner = FinalsRunner(definition, cast(Any, evaluator), cast(Any, None))

        def left() -> float:
            trials = finals_runner.study.get_trials(deepcopy=False)
            return seconds - sum(trial.user_attrs.get("seconds", 0.0) for trial in trials)

        finals_runner.clock = cast(Any, SimpleNamespace(finals_left=left, beat=lambda: None))
        return finals_runner, evaluator

    return create


Create = Callable[[float], tuple[FinalsRunner, QuickEvaluator]]


def candidate(number: int, seed_offset: int | None = None) -> Candidate:
    """A checkpoint after 100 images whose recipe trained at half a second each."""
    attributes = {"training_seconds": 200.0, "step": 400}
    trial_folder: Any = SimpleNamespace(key=lambda result: f"{number}-{result.step}")
    trial: Any = SimpleNamespace(number=number, user_attrs=attributes)
    return Candidate(trial, trial_folder, made_up(100, 0.5), seed_offset)


def test_candidates_without_time_are_left_out(runner: Create) -> None:
    """Each takes ten seconds, training again is expected to take fifty more, and the full evaluation five."""
    finals_runner, evaluator = runner(95.0)
    assert len(finals_runner.judge([candidate(0), candidate(1), candidate(2)])) == 3
    again = [candidate(0, 1), candidate(1, 1)]
    assert [one.trial.number for one in finals_runner.judge(again)] == [0]  # 30 + 10 + 50 + 5 fit, once more do not
    assert evaluator.lines[-1] == (
        "finals: trial 1 trained again with seed 1 is left out: there is no time for it within budget.minutes"
    )
    assert len(runner(1000.0)[0].judge(again)) == 1  # it stays left out when the finals are held again
    assert len(runner(1000.0)[0].judge([candidate(0)])) == 1


def test_the_first_candidate_is_scored_without_time(runner: Create) -> None:
    assert [one.trial.number for one in runner(-5.0)[0].judge([candidate(0), candidate(1)])] == [0]


def test_candidates_without_memory_are_tried_again_later(runner: Create) -> None:
    finals_runner, evaluator = runner(math.inf)
    evaluator.has_memory = False
    assert finals_runner.judge([candidate(0)]) == []
    assert finals_runner.memory_error() == "set model.offload=true"
    assert "is left out: set model.offload=true" in evaluator.lines[-1]
    assert len(runner(math.inf)[0].judge([candidate(0)])) == 1  # with other settings


def test_candidates_of_finals_that_were_killed_are_left_alone(runner: Create) -> None:
    """More trials were run since, so that others are judged now."""
    killed = runner(math.inf)[0]
    killed.study.enqueue_trial({}, user_attrs={"key": "7-100"})
    assert [one.trial.number for one in killed.judge([candidate(0)])] == [0]
    assert [trial.state.name for trial in killed.study.trials] == ["WAITING", "COMPLETE"]


def test_two_processes_share_the_candidates(runner: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one scores a candidate, the other takes the next one, and waits for the first."""
    (here, evaluator), (there, others) = runner(math.inf), runner(math.inf)
    judged: list[str] = []
    monkeypatch.setattr("autolora.study.finals.finals_runner.sleep", lambda _: judged.append("waits"))
    monkeypatch.setattr("autolora.study.search.leases.is_gone", lambda *_: False)
    candidates, score = [candidate(0), candidate(1)], evaluator.evaluate

    def evaluate(one: Candidate) -> CheckpointResult:
        judged.append(f"here {one.trial.number}")
        if one.trial.number == 0:
            taken = there._claim({one.key for one in candidates}, leases)
            assert taken is not None and taken.number == 1
            others.bars.task = lambda *_: nullcontext()
            there._run(taken, candidates[1])
        return score(one)

    monkeypatch.setattr(evaluator, "evaluate", evaluate)
    with there._leases() as leases:
        assert [one.trial.number for one in here.judge(candidates)] == [0, 1]
    assert judged == ["here 0"] and len(here.study.trials) == 2
