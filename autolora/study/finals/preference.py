"""Human choice: a person picks between the finalists' images, and the final choice weighs that with the score.

The finalists are trials of a preferential study of their own, `<study>-preference`, in which Optuna's dashboard asks
which image is worst. It shows the images only, so that no score influences the person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.artifacts import upload_artifact
from optuna.samplers import RandomSampler
from optuna.trial import Trial, TrialState, create_trial
from optuna_dashboard import register_preference_feedback_component, save_note
from optuna_dashboard.preferential import create_study

from autolora.evaluation.samples import save_grid
from autolora.evaluation.session import Session
from autolora.progress import Bars
from autolora.study.finals.decision import Finals
from autolora.study.finals.finalist import Finalist
from autolora.study.optuna_internals import storage_of, trial_id_of, unlocked_study
from autolora.study.received import CandidateAttributes, check_study
from autolora.study.running import RunningStudy

KEY = "key"  # user attribute: the checkpoint that a trial of the preferential study stands for
PICTURE = "picture"  # user attribute: the artifact of its image


def apply_preference(running: RunningStudy, finals: Finals) -> Finals:
    """Show the finalists to a person, if that was ever asked for, and weigh what was chosen so far."""
    definition, storage = running.definition, storage_of(running.study)
    name = f"{definition.settings.name}-preference"
    if not definition.settings.human_preference and name not in optuna.get_all_study_names(storage):
        return finals
    study = create_study(
        n_generate=len(finals.finalists), storage=storage, sampler=RandomSampler(), study_name=name, load_if_exists=True
    )
    register_preference_feedback_component(study, "artifact", PICTURE)
    check_study(unlocked_study(study), CandidateAttributes, scored=False)
    queued = {trial.user_attrs[KEY] for trial in study.trials}
    finalists = {finalist.key: finalist for finalist in finals.finalists}
    numbers = {key: finalist.trial.number for key, finalist in finalists.items()}
    for key in sorted(numbers.keys() - queued):  # in an order that tells nothing of their scores
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={KEY: key}))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if PICTURE not in trial.user_attrs and trial.user_attrs[KEY] in finalists:
            _show(Trial(unlocked_study(study), trial_id_of(trial)), finalists[trial.user_attrs[KEY]], running)
    pairs = [(better.user_attrs[KEY], worse.user_attrs[KEY]) for better, worse in study.preferences]
    weighed = combine_with_preference(
        finals, [(numbers[a], numbers[b]) for a, b in pairs if a in numbers and b in numbers]
    )
    if weighed.choice:
        return weighed
    command = definition.command.replace("autolora tune", "autolora dashboard", 1)
    return replace(finals, choice=f"choose by images: `{command}` shows {name}; then run the same command again")


def _show(trial: Trial, finalist: Finalist, running: RunningStudy) -> None:
    """Give a trial of the preferential study its image, and a note with its score for whoever opens it."""
    recipe, result = finalist.trial_folder.run.name, finalist.result
    save_note(trial, f"trial {finalist.trial.number} ({recipe}), {result.step} images: {result.summary}")
    path = _grid(finalist, running.session, running.bars)
    image = upload_artifact(artifact_store=running.definition.store, file_path=str(path), study_or_trial=trial)
    trial.set_user_attr(PICTURE, image)


def _grid(finalist: Finalist, session: Session, bars: Bars) -> Path:
    """The grid of renders that the search scored a checkpoint by; a recipe that was trained again is rendered here."""
    trial_folder, result = finalist.trial_folder, finalist.result
    path = trial_folder.samples / f"{result.step}.png"
    if not path.is_file():
        assert session.scorer is not None
        session.context.adapter.load(trial_folder.load(result))
        save_grid(trial_folder.samples, result.step, session.scorer, session.render(session.scorer, bars))
    return path


def combine_with_preference(finals: Finals, preferences: Sequence[tuple[int, int]]) -> Finals:
    """The finals with a person's choice.

    A person chooses among the winner by score and the finalists that tie with it and break no constraint: the one that
    was preferred to the others most often wins, and the score decides between equals. A finalist that scores clearly
    lower, or breaks a constraint, cannot win by preference.

    Args:
        finals: as the score decides them.
        preferences: numbers of trials, the better one of each pair first.
    """
    if not preferences:
        return finals
    first = finals.winner
    tied = [f for f in finals.finalists if f.trial.number in (first.trial.number, *finals.ties)]
    allowed = [f for f in tied if f is first or not (f.result.broken or first.result.broken)]
    chosen = _preferred(allowed, preferences)
    favourite = _preferred(finals.finalists, preferences)
    words = f"chosen by images among trials {', '.join(str(n) for n in sorted(f.trial.number for f in allowed))}"
    if len(allowed) == 1:
        words = "the choice by images decides nothing: no other finalist keeps all limits and ties with the best"
    if favourite not in allowed:
        why = f"breaks {', '.join(favourite.result.broken)}" if favourite.result.broken else "scores clearly lower"
        words = f"{words}; trial {favourite.trial.number} is preferred to all of them, but {why}"
    others = [finalist for finalist in finals.finalists if finalist is not chosen]
    same = [other.trial.number for other in others if other in allowed and other.overlaps(chosen)]
    ties = same if chosen is not first else finals.ties
    return replace(finals, finalists=[chosen, *others], ties=ties, choice=words)


def _preferred(finalists: Sequence[Finalist], preferences: Sequence[tuple[int, int]]) -> Finalist:
    """The finalist that won most of its pairs, less those lost; the score decides between equals."""
    numbers = {finalist.trial.number for finalist in finalists}
    won = Counter[int]()
    for better, worse in preferences:
        if better in numbers and worse in numbers:
            won[better] += 1
            won[worse] -= 1
    return max(finalists, key=lambda f: (won[f.trial.number], f.result.objective, -f.trial.number))
