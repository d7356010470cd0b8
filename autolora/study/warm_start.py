"""A study that starts from earlier ones: their best trials are tried first, their results inform the sampler.

Their results are kept in a study of their own, `<study>/priors`, which only the sampler reads. So the trials of a study
are always its own.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.evaluation.result import DIVERGED
from autolora.files import expand_user
from autolora.study.definition import StudyDefinition, value_of
from autolora.study.optuna_internals import storage_of
from autolora.study.received import CandidateAttributes, PriorAttributes, check_study
from autolora.study.space import Value, in_storage, sampled_values, suggest
from autolora.study.storage import holds_study, load_study_from_folder, open_storage
from autolora.study.storage_retry import Log
from autolora.study.trials import ORIGIN, WINNER

Priors = Sequence[Sequence["Prior"]]  # by earlier study, the best first


@dataclass(frozen=True)
class Prior:
    """A trial of an earlier study as a trial of this one: a value of every key that its recipe varies here."""

    origin: str
    recipe: str
    values: Mapping[str, Value]
    objective: float

    def params(self) -> dict[str, Value]:
        """The recipe and the values by the names of Optuna's parameters."""
        return {"recipe": self.recipe, **{f"{self.recipe}/{key}": in_storage(v) for key, v in self.values.items()}}


class IncompatibleTrial(Exception):
    """Why a trial cannot be one of this study."""


def gather_priors(definition: StudyDefinition, log: Log) -> list[list[Prior]]:
    """Read the trials of the earlier studies that fit into this study's space, the best of each study first.

    Args:
        definition: the new study; it names the earlier studies.
        log: receives how many trials fit, and why the others do not.

    Raises:
        ConfigError: a name that is no study.
        StudyError: an earlier study has nothing to give, or nothing of any fits.
    """
    found, left_out = [], Counter[str]()
    here = definition.config
    for name in definition.settings.warm_start:
        study, fitting, misfits = _open_earlier(name, definition, log), list[Prior](), Counter[str]()
        there = _configs_of(study)
        for trial in _ranked(study, name):
            try:
                fitting.append(_fit(trial, name, definition, here, there))
            except IncompatibleTrial as reason:
                misfits[str(reason)] += 1
        others = f"; left out: {_in_words(misfits)}" if misfits else ""
        log(f"warm start from {name}: {len(fitting)} trials inform the search{others}")
        found.append(fitting)
        left_out += misfits
    if definition.settings.warm_start and not any(found):
        raise StudyError(
            f"warm_start: no trial of {', '.join(definition.settings.warm_start)} fits into this study "
            f"({_in_words(left_out)}); widen study.recipes, or leave warm_start out"
        )
    return found


def _in_words(misfits: Counter[str]) -> str:
    return ", ".join(f"{count} as {reason}" for reason, count in misfits.most_common())


def _open_earlier(name: str, definition: StudyDefinition, log: Log) -> optuna.Study:
    folder, study = expand_user(name), None
    if holds_study(folder):
        study = load_study_from_folder(folder)
    elif definition.settings.storage:
        with suppress(KeyError):
            study = check_study(optuna.load_study(study_name=name, storage=open_storage(definition.storage, log)))
    if study is None:
        raise ConfigError(
            f"warm_start={name} is no earlier study: give the folder of one (with a study.db or study.log), or the "
            "name of one in the storage=URL of this study"
        )
    return study


def _ranked(study: optuna.Study, name: str) -> list[FrozenTrial]:
    """The complete trials: the exported one first, then the finalists by their final score, then the others."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not trials:
        raise StudyError(f"warm_start={name} has no complete trial yet; run it longer")
    judged: dict[str, float] = {}
    with suppress(KeyError):
        finals = optuna.load_study(study_name=f"{study.study_name}/finals", storage=storage_of(study))
        for one in check_study(finals, CandidateAttributes).get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            uid, _, where = one.user_attrs["key"].partition("@")
            if "+" not in where:  # not the recipe trained with another seed
                judged[uid] = float(one.value or 0.0)

    def merit(trial: FrozenTrial) -> tuple[bool, bool, float]:
        uid = trial.user_attrs.get("uid", "")
        return trial.number == study.user_attrs.get(WINNER), uid in judged, judged.get(uid, trial.value or 0.0)

    return sorted(trials, key=merit, reverse=True)


def _configs_of(study: optuna.Study) -> Callable[[str], DictConfig]:
    """A function that composes the recipes of an earlier study with the arguments that it was started with."""

    @functools.cache
    def composed(recipe: str) -> DictConfig:
        command = study.user_attrs.get("command", {"study": None, "arguments": []})
        try:
            return cfg.compose("tune", [f"recipe={recipe}", *command["arguments"]], command["study"])
        except ConfigError as error:
            raise IncompatibleTrial(f"its recipe {recipe} cannot be composed any more ({error})") from error

    return composed


def _fit(
    trial: FrozenTrial,
    name: str,
    definition: StudyDefinition,
    here: Callable[[str], DictConfig],
    there: Callable[[str], DictConfig],
) -> Prior:
    """The trial as one of this study; a key that only one of the studies varies has its fixed value in the other."""
    recipe, varied = sampled_values(trial)
    if recipe not in definition.space:
        raise IncompatibleTrial(f"recipe {recipe} is not in this study")
    ranges = definition.space[recipe]
    values = {key: varied[key] if key in varied else _known(there(recipe), recipe, key) for key in ranges}
    for key, value in values.items():
        if value not in ranges[key]:
            raise IncompatibleTrial(f"{recipe}/{key} was outside {ranges[key].text()}")
    for key in varied.keys() - values.keys():
        fixed = _known(here(recipe), recipe, key)
        if varied[key] != fixed:
            raise IncompatibleTrial(f"{recipe}/{key} is {fixed} here and does not vary")
    return Prior(f"{name}, trial {trial.number}", recipe, values, float(trial.value or 0.0))


def _known(config: DictConfig, recipe: str, key: str) -> Any:
    try:
        return value_of(config, recipe, key)
    except ConfigError as error:
        raise IncompatibleTrial(str(error)) from error


def warm_start_trials(priors: Priors, definition: StudyDefinition) -> list[Prior]:
    """The trials that follow the baselines: the best of each earlier study, then the second of each, and so on.

    As many as `study.n_finalists`, or one of each study where these are more; none twice.
    """
    defaults = definition.default_values
    known = [dict(values, recipe=recipe) for recipe, values in defaults.items()]
    chosen = []
    for prior in itertools.chain.from_iterable(itertools.zip_longest(*priors)):
        if prior is None or prior.objective <= DIVERGED:
            continue
        if (values := dict(prior.values, recipe=prior.recipe)) not in known:
            known.append(values)
            chosen.append(prior)
    most = min(max(definition.settings.n_finalists, len(priors)), definition.settings.budget.n_trials - len(defaults))
    return chosen[: max(0, most)]


def keep_priors(priors: Priors, definition: StudyDefinition, storage: BaseStorage) -> None:
    """Store the trials that inform the sampler; those stored before an interruption are not stored twice."""
    study = _prior_study(definition, storage) or optuna.create_study(
        study_name=f"{definition.settings.name}/priors", storage=storage, direction="maximize"
    )
    known = {trial.user_attrs[ORIGIN] for trial in study.get_trials(deepcopy=False)}
    for prior in itertools.chain.from_iterable(priors):
        if prior.origin not in known:
            study.add_trial(_as_trial(prior, definition))


def known_priors(definition: StudyDefinition, storage: BaseStorage) -> list[FrozenTrial]:
    """The stored trials that inform the sampler besides the study's own."""
    study = _prior_study(definition, storage)
    return study.get_trials() if study else []


def _prior_study(definition: StudyDefinition, storage: BaseStorage) -> optuna.Study | None:
    with suppress(KeyError):
        study = optuna.load_study(study_name=f"{definition.settings.name}/priors", storage=storage)
        return check_study(study, PriorAttributes)
    return None


def _as_trial(prior: Prior, definition: StudyDefinition) -> FrozenTrial:
    """The trial as Optuna stores a finished one, within the ranges of this study."""
    fixed = FixedTrial(prior.params())
    suggest(fixed, definition.space)
    return create_trial(
        value=prior.objective,
        params=fixed.params,
        distributions=fixed.distributions,
        user_attrs={ORIGIN: prior.origin, "recipe": prior.recipe},
    )
