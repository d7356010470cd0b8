"""A study in its storage: begun, continued, or joined by another worker."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig
from optuna.trial import FrozenTrial

from autolora import config as cfg
from autolora.errors import ConfigError, StudyError
from autolora.models import load_model
from autolora.study.definition import StudyDefinition, define_study
from autolora.study.search.sampler import PerTrialSeededTPE
from autolora.study.settings import StudySettings
from autolora.study.space import as_text, difference
from autolora.study.storage import open_storage, redact_url, storage_url
from autolora.study.storage_retry import Say
from autolora.study.trials import ORIGIN, TOKEN
from autolora.study.warm_start import Priors, keep_priors, known_priors, warm_start_trials


def is_started(definition: StudyDefinition, say: Say) -> bool:
    """Whether `autolora tune` has started the study before."""
    try:
        return bool(load_started_study(definition, say))
    except StudyError:
        return False


def open_study(
    definition: StudyDefinition, own: dict[str, dict[str, Any]], identity: dict[str, str], say: Say, priors: Priors = ()
) -> optuna.Study:
    """Create the study, or continue it where its space, dataset and model are unchanged.

    Args:
        plan: what it is.
        own: the recipes' own values of the keys that vary.
        identity: what it is about.
        say: is told what a person must know.
        priors: what a new study starts from.

    Raises:
        StudyError: what changed, and what to do; or the storage does not answer.
    """
    definition.folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(definition.storage, say)
    study = optuna.create_study(
        storage=storage, study_name=definition.settings.name, direction="maximize", load_if_exists=True
    )
    if study.user_attrs.get("space") is None:
        _begin(definition, study, own, priors)
        study.set_user_attr("space", {**as_text(definition.space), **identity})  # last: now others may join
    elif definition.warm_start and list(definition.warm_start) != study.user_attrs.get("warm_start"):
        say("warm_start changes nothing now: this study has begun already; start another with out=OTHER_FOLDER")
    _refuse_changes(definition, study, identity)
    return optuna.load_study(
        storage=storage,
        study_name=definition.settings.name,
        **make_sampler_and_pruner(definition.settings, known_priors(definition, storage)),
    )


def _begin(definition: StudyDefinition, study: optuna.Study, own: dict[str, dict[str, Any]], priors: Priors) -> None:
    """Fill the queue: the recipes as they are, then the best of earlier studies; what is there already stays."""
    if TOKEN not in study.user_attrs:
        study.set_user_attr(TOKEN, uuid.uuid4().hex)
    begun = {trial.user_attrs.get("baseline") or trial.user_attrs.get(ORIGIN) for trial in study.trials}
    for recipe, values in own.items():
        named = {f"{recipe}/{key}": value for key, value in values.items()}
        if recipe not in begun:
            study.enqueue_trial({"recipe": recipe, **named}, user_attrs={"baseline": recipe})
    if priors:
        keep_priors(priors, definition, study._storage)
    for prior in warm_start_trials(priors, definition, own):
        if prior.origin not in begun:
            study.enqueue_trial(prior.params(), user_attrs={ORIGIN: prior.origin})
    study.set_user_attr("warm_start", list(definition.warm_start))
    study.set_user_attr("command", {"study": definition.study_name, "arguments": list(definition.arguments)})


def join_study(definition: StudyDefinition, identity: dict[str, str], say: Say) -> optuna.Study:
    """The study as `autolora tune` started it.

    Raises:
        StudyError: it was not started, or otherwise than this worker would go on with it.
    """
    study = load_started_study(definition, say)
    _refuse_changes(definition, study, identity)
    return study


def load_started_study(definition: StudyDefinition, say: Say) -> optuna.Study:
    """The study as it is, whatever is different now.

    Raises:
        StudyError: it was not started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = None
    if not _missing(definition):
        with suppress(KeyError):
            storage = open_storage(definition.storage, say)
            study = optuna.load_study(
                storage=storage,
                study_name=definition.settings.name,
                **make_sampler_and_pruner(definition.settings, known_priors(definition, storage)),
            )
    if study is None or study.user_attrs.get("space") is None:
        where = redact_url(definition.storage_argument) if definition.storage_argument else str(definition.folder)
        raise StudyError(
            f"no study {definition.settings.name} in {where}; run `autolora tune {definition.study_name}` first, or name its "
            "folder with out=FOLDER or its database with storage=URL"
        )
    return study


def _missing(definition: StudyDefinition) -> bool:
    """Whether there is no database in the study's folder; one that is merely asked after is not created."""
    return definition.storage_argument is None and not (definition.folder / "study.db").is_file()


def resolve_study(storage: str | None, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The study file and the arguments of a study known by name and storage; one's own arguments go before its.

    Args:
        storage: its URL.
        arguments: `study=NAME`, and what is different here, such as `out` and `dataset.path`.

    Raises:
        ConfigError: no name or no storage is given.
        StudyError: no such study is there.
    """
    names = [argument.removeprefix("study=") for argument in arguments if argument.startswith("study=")]
    if not names or storage is None:
        raise ConfigError("a worker needs the study that it joins: study=NAME storage=URL, or what `tune` was given")
    behind = open_storage(storage_url(storage, Path()), print)
    try:
        study = optuna.load_study(storage=behind, study_name=names[-1])
    except KeyError as error:
        known = ", ".join(sorted(optuna.get_all_study_names(behind))) or "none"
        raise StudyError(f"no study {names[-1]} in {redact_url(storage)}; it has {known}") from error
    command = study.user_attrs.get("command")
    if command is None:
        raise StudyError(f"study {names[-1]} in {redact_url(storage)} was not started by `autolora tune`")
    own = [argument for argument in arguments if not argument.startswith("study=")]
    return command["study"], [*command["arguments"], *own]


def make_sampler_and_pruner(settings: StudySettings, priors: Sequence[FrozenTrial] = ()) -> dict[str, Any]:
    """Sampler and pruner."""
    return {
        "sampler": PerTrialSeededTPE(settings.seed, settings.n_startup_trials, priors),
        "pruner": optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2),
    }


def _refuse_changes(definition: StudyDefinition, study: optuna.Study, identity: dict[str, str]) -> None:
    old, new = study.user_attrs["space"], {**as_text(definition.space), **identity}
    if old != new:
        changed = "; ".join(difference(old, new))
        raise StudyError(f"study {definition.settings.name} in {definition.folder} was started differently ({changed}); "
                         "undo the change, or start another with out=OTHER_FOLDER (and study.name=ANOTHER in a shared "
                         "storage)")  # fmt: skip


def identity(config: DictConfig, base_hash: str) -> dict[str, str]:
    """What a study is about, by which those who join it know that they mean the same."""
    dataset = Path(cfg.dataset_settings(config).path).expanduser().resolve()
    return {"dataset": dataset.name, "base model": base_hash}


def existing_study(config: DictConfig, study: str | None, arguments: list[str]) -> tuple[StudyDefinition, optuna.Study]:
    assert study is not None
    definition, _ = define_study(config, study, arguments)
    load_started_study(definition, print)  # before anything is loaded
    model = load_model(cfg.model_settings(config))
    return definition, join_study(definition, identity(config, model.base_hash), print)
