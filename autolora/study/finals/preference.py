"""Human choice: a person picks between the finalists' pictures, and the final pick weighs it with the score.

The finalists are trials of a preferential study of their own, `<study>-preference`, in which Optuna's dashboard asks
which picture is worst. Only the pictures are shown there, so that nobody is led by a score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna
from optuna.artifacts import upload_artifact
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import Trial, TrialState, create_trial
from optuna_dashboard import register_preference_feedback_component, save_note
from optuna_dashboard.preferential import create_study

from autolora.evaluation.samples import save_grid
from autolora.evaluation.session import Session
from autolora.progress import Bars
from autolora.study.definition import StudyDefinition
from autolora.study.finals.decision import Finals
from autolora.study.finals.finalist import Finalist

KEY = "key"  # user attribute: the checkpoint that a trial of the preferential study stands for
PICTURE = "picture"  # user attribute: its artifact


def apply_preference(
    definition: StudyDefinition, storage: BaseStorage, session: Session, bars: Bars, finals: Finals
) -> Finals:
    """Show the finalists to a person, where that was asked for ever, and weigh what was chosen so far."""
    name = f"{definition.settings.name}-preference"
    if not definition.human_preference and name not in optuna.get_all_study_names(storage):
        return finals
    study = create_study(
        n_generate=len(finals.finalists), storage=storage, sampler=RandomSampler(), study_name=name, load_if_exists=True
    )
    register_preference_feedback_component(study, "artifact", PICTURE)
    known = {trial.user_attrs[KEY] for trial in study.trials}
    finalists = {one.record.key(one.point): one for one in finals.finalists}
    numbers = {key: one.trial.number for key, one in finalists.items()}
    for key in sorted(numbers.keys() - known):  # in an order that says nothing of their scores
        study.add_trial(create_trial(state=TrialState.RUNNING, user_attrs={KEY: key}))
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        if PICTURE not in trial.user_attrs and trial.user_attrs[KEY] in finalists:
            _show(Trial(study._study, trial._trial_id), finalists[trial.user_attrs[KEY]], definition, session, bars)
    pairs = [(better.user_attrs[KEY], worse.user_attrs[KEY]) for better, worse in study.preferences]
    weighed = combine_with_preference(
        finals, [(numbers[a], numbers[b]) for a, b in pairs if a in numbers and b in numbers]
    )
    if weighed.choice:
        return weighed
    command = definition.command.replace("autolora tune", "autolora dashboard", 1)
    return replace(finals, choice=f"choose by pictures: `{command}` shows {name}; then run the same command again")


def _show(trial: Trial, one: Finalist, definition: StudyDefinition, session: Session, bars: Bars) -> None:
    """Give a trial of the preferential study its picture, and a note for whoever looks behind it."""
    save_note(trial, f"trial {one.trial.number} ({one.record.run.name}), step {one.point.step}: {one.point.summary}")
    path = _grid(one, session, bars)
    picture = upload_artifact(artifact_store=definition.store, file_path=str(path), study_or_trial=trial)
    trial.set_user_attr(PICTURE, picture)


def _grid(one: Finalist, session: Session, bars: Bars) -> Path:
    """The pictures that the search scored a checkpoint by; one of a recipe that was trained again has none yet."""
    path = one.record.samples / f"{one.point.step}.png"
    if not path.is_file():
        assert session.scorer is not None
        session.context.adapter.load(one.record.load(one.point))
        save_grid(one.record.samples, one.point.step, session.scorer, session.render(session.scorer, bars))
    return path


def combine_with_preference(finals: Finals, preferences: Sequence[tuple[int, int]]) -> Finals:
    """The finals with a person's choice.

    Of the winner by score and those that cannot be told from it by score, as far as they break no constraint, the one
    wins that was preferred to others of them more often than others to it; where that is equal, the score decides. What
    scores clearly lower, or breaks a constraint, wins by no preference.

    Args:
        finals: as the score decides them.
        preferences: numbers of trials, the better one of each pair first.
    """
    if not preferences:
        return finals
    first = finals.winner
    allowed = [one for one in finals.finalists if one.trial.number in (first.trial.number, *finals.ties)]
    allowed = [one for one in allowed if one is first or not (one.point.broken or first.point.broken)]
    chosen = _preferred(allowed, preferences)
    wish = _preferred(finals.finalists, preferences)
    words = f"chosen by pictures among trials {', '.join(str(n) for n in sorted(one.trial.number for one in allowed))}"
    if len(allowed) == 1:
        words = "pictures decide nothing: no other finalist keeps all limits and ties with the best"
    if wish not in allowed:
        why = f"breaks {', '.join(wish.point.broken)}" if wish.point.broken else "scores clearly lower"
        words = f"{words}; trial {wish.trial.number} is preferred to all of them, but {why}"
    others = [one for one in finals.finalists if one is not chosen]
    same = [one.trial.number for one in others if one in allowed and one.overlaps(chosen)]
    ties = same if chosen is not first else finals.ties
    return replace(finals, finalists=[chosen, *others], ties=ties, choice=words)


def _preferred(among: Sequence[Finalist], preferences: Sequence[tuple[int, int]]) -> Finalist:
    """Who won most of these pairs less those lost; where that is equal, by score."""
    numbers = {one.trial.number for one in among}
    won = Counter[int]()
    for better, worse in preferences:
        if better in numbers and worse in numbers:
            won[better] += 1
            won[worse] -= 1
    return max(among, key=lambda one: (won[one.trial.number], one.point.objective, -one.trial.number))
