"""The finals: the best checkpoints are scored again with fresh seeds, the best recipes trained again with other seeds.

Both are trials of a study of their own, `<study>/finals`, so that a checkpoint which was merely lucky in the search
does not win. Only the winner is then rendered on every prompt group and at more weights; these renders do not affect
the choice. If the study's minutes are too few, candidates are left out, training again first, or the finals as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import optuna
from optuna.trial import FrozenTrial

from autolora.errors import MemoryFull, StudyError
from autolora.evaluation.result import CheckpointResult
from autolora.evaluation.session import Session, final_scorer
from autolora.evaluation.trial_folder import TrialFolder
from autolora.publish.closing import closing_seconds, shortest_finals_seconds
from autolora.settings import RETRAINED_RECIPES, STRONGER, WEAKER
from autolora.study.finals.candidates import average, rescaled
from autolora.study.finals.decision import (
    Finals,
    best_by_trial,
    best_of,
    checkpoints_to_score,
    select_winner,
    within_interval_of_best,
)
from autolora.study.finals.evaluator import CandidateEvaluator
from autolora.study.finals.finalist import Candidate, Finalist
from autolora.study.finals.finals_runner import FinalsRunner
from autolora.study.optuna_internals import storage_of
from autolora.study.running import RunningStudy

LEFT_OUT = "budget.minutes is too short for the finals: the search's best checkpoint was exported"


def run_finals(
    running: RunningStudy,
    trials: Sequence[tuple[FrozenTrial, TrialFolder]],
    apply_preference: Callable[[Finals], Finals] = lambda finals: finals,
) -> Finals:
    """Score the best trials' checkpoints again, train the two best recipes again, and choose the winner.

    What was scored before is read back from the study `<study>/finals`. If nothing can be measured, the checkpoint of
    the lowest validation loss wins.

    Args:
        running: the study.
        trials: its trials that have a scored checkpoint.
        apply_preference: may change the winner before its full evaluation.

    Raises:
        StudyError: no trial has a scored checkpoint yet.
        MemoryFull: the GPU's memory is too small to score any candidate.
    """
    if not trials:
        raise StudyError("no trial of this study has a scored checkpoint yet; run it longer")
    settings, session = running.definition.settings, running.session
    ranked = sorted(trials, key=lambda pair: pair[1].best_objective(), reverse=True)[: settings.n_finalists]
    if not settings.human_preference:  # a person always gets several finalists to choose from
        ranked = within_interval_of_best(ranked)
    if session.scorer is None:
        choice = "nothing could be rendered that a person might choose by" if settings.human_preference else ""
        return Finals(
            None, [Finalist(trial, folder, best_of(folder)) for trial, folder in ranked], {}, [], choice=choice
        )
    if settings.budget.minutes is not None:
        session.measure_speed()
        running.clock.closing_seconds = closing_seconds(session, len(running.definition.baseline_runs))
    if running.clock.finals_left() < shortest_finals_seconds(session) and not _were_held(running):
        running.bars.log(f"finals: {LEFT_OUT}")
        finalists = [Finalist(trial, folder, best_of(folder)) for trial, folder in ranked]
        return Finals(session.scorer, finalists, {}, [], choice=LEFT_OUT)
    scorer = final_scorer(session.scorer, session, running.bars)
    evaluator = CandidateEvaluator(session, scorer, running.definition.trial_files, running.bars)
    runner = FinalsRunner(running.definition, evaluator, running.clock)
    finalists, retrained = _score_candidates(running, runner, ranked)
    finals = apply_preference(select_winner(evaluator.deciding, finalists, retrained))
    winner = runner.full_evaluation(finals.winner)
    return replace(finals, finalists=[winner, *finals.finalists[1:]], training_seconds=evaluator.training_seconds)


def _were_held(running: RunningStudy) -> bool:
    """Whether the finals have scored a candidate before, which is read back."""
    name, storage = f"{running.definition.settings.name}/finals", storage_of(running.study)
    if name not in optuna.get_all_study_names(storage):
        return False
    trials = optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    return any("point" in trial.user_attrs for trial in trials)


def _score_candidates(
    running: RunningStudy, runner: FinalsRunner, ranked: Sequence[tuple[FrozenTrial, TrialFolder]]
) -> tuple[list[Finalist], dict[int, list[CheckpointResult]]]:
    """Every finalist, and by trial the results of the recipes that were trained again."""
    settings, session = running.definition.settings, running.session
    finalists = runner.judge(
        [Candidate(trial, folder, result) for trial, folder in ranked for result in checkpoints_to_score(folder)]
    )
    if not finalists:
        raise MemoryFull(f"the finals could judge no checkpoint: {runner.memory_error()}")
    leaders = best_by_trial(finalists)[:RETRAINED_RECIPES]
    if settings.average_checkpoints:
        averages = [(leader.trial, average(leader.trial_folder, leader.result, session)) for leader in leaders]
        finalists += runner.judge([Candidate(trial, *copy) for trial, copy in averages if copy])
    if settings.try_lora_scales:
        finalists += rescale_while_better(runner, best_by_trial(finalists)[0], session)
    again = runner.judge(
        [
            Candidate(leader.trial, leader.trial_folder, leader.result, seed)
            for seed in range(1, settings.final_seeds + 1)
            for leader in leaders
        ]
    )
    results: dict[int, list[CheckpointResult]] = {}
    for finalist in again:
        results.setdefault(finalist.trial.number, []).append(finalist.result)
    retrained = {n: [leader.result, *results[n]] for leader in leaders if (n := leader.trial.number) in results}
    return [*finalists, *again], retrained


def rescale_while_better(runner: FinalsRunner, leader: Finalist, session: Session) -> list[Finalist]:
    """Copies of the leader with its strength multiplied, as long as each is better than the one before.

    The strength is lowered if the leader is too strong, or shows the character but bleeds or follows prompts poorly;
    otherwise it is raised.
    """
    best, finalists = leader.result, list[Finalist]()
    too_strong = "too_strong" in best.broken or (
        "undercooked" not in best.broken and bool({"bleed_class", "editability"} & set(best.broken))
    )
    for strength in WEAKER if too_strong else STRONGER:
        copy = rescaled(leader.trial_folder, leader.result, strength, session)
        judged = runner.judge([Candidate(leader.trial, *copy)])
        finalists += judged
        if not judged or judged[0].result.objective <= best.objective:
            break
        best = judged[0].result
    return finalists
