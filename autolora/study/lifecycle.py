"""A study in its storage: started, continued, or joined by another worker."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from autolora.errors import ConfigError, StudyError
from autolora.evaluation.identity import Owner, changes, check_folder, claim_folder
from autolora.settings import StudySettings
from autolora.study.definition import StudyDefinition
from autolora.study.optuna_internals import storage_of
from autolora.study.received import check_study
from autolora.study.sampler import PerTrialSeededTPE
from autolora.study.space import as_text, difference, in_storage
from autolora.study.storage import open_storage, redact_url, storage_url
from autolora.study.storage_retry import Log
from autolora.study.trials import ORIGIN, TOKEN
from autolora.study.warm_start import Priors, keep_priors, known_priors, warm_start_trials

FIXED = "fixed"  # user attribute of a study: what must stay the same, besides its space and its base model


def is_started(definition: StudyDefinition, log: Log) -> bool:
    """Whether `autolora tune` has started the study before.

    Raises:
        StudyError: it has, with other settings or images; or its folder holds the results of another study.
    """
    check_folder(definition.folder, _owner(definition))
    try:
        study = load_started_study(definition, log)
    except StudyError:
        return False
    _refuse_changes(definition, study)
    return True


def open_study(definition: StudyDefinition, base_hash: str, log: Log, priors: Priors = ()) -> optuna.Study:
    """Create the study, or continue it where its space, settings, images and base model are unchanged.

    Args:
        definition: the study.
        base_hash: the hash of the base model's weights.
        log: receives what a person must know.
        priors: trials of earlier studies that a new study starts from.

    Raises:
        StudyError: what changed, and what to do; or the storage does not answer.
    """
    check_folder(definition.folder, _owner(definition))
    definition.folder.mkdir(parents=True, exist_ok=True)
    if _is_missing(definition) and (definition.folder / "trials").is_dir():
        log(
            f"{definition.folder} holds trials, but no study.db: the study begins anew; put study.db back to continue "
            "the earlier one"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(definition.storage, log)
    settings = definition.settings
    study = check_study(
        optuna.create_study(storage=storage, study_name=settings.name, direction="maximize", load_if_exists=True)
    )
    if study.user_attrs.get("space") is None:
        _begin(definition, study, priors)
        study.set_user_attr(FIXED, definition.fixed)
        facts = {**as_text(definition.space), "dataset": definition.dataset, "base model": base_hash}
        study.set_user_attr("space", facts)  # last: from now on other workers may join
    elif settings.warm_start and list(settings.warm_start) != study.user_attrs.get("warm_start"):
        log("warm_start changes nothing now: this study has begun already; start another with out=OTHER_FOLDER")
    _refuse_changes(definition, study, base_hash)
    claim_folder(definition.folder, _owner(definition, study))
    return optuna.load_study(
        storage=storage,
        study_name=settings.name,
        **make_sampler_and_pruner(settings, known_priors(definition, storage)),
    )


def _begin(definition: StudyDefinition, study: optuna.Study, priors: Priors) -> None:
    """Fill the queue: the baselines, then the best trials of earlier studies; what is queued already stays."""
    if TOKEN not in study.user_attrs:
        study.set_user_attr(TOKEN, uuid.uuid4().hex)
    queued = {trial.user_attrs.get("baseline") or trial.user_attrs.get(ORIGIN) for trial in study.trials}
    for recipe, values in definition.default_values.items():
        named = {f"{recipe}/{key}": in_storage(value) for key, value in values.items()}
        if recipe not in queued:
            study.enqueue_trial({"recipe": recipe, **named}, user_attrs={"baseline": recipe})
    if priors:
        keep_priors(priors, definition, storage_of(study))
    for prior in warm_start_trials(priors, definition):
        if prior.origin not in queued:
            study.enqueue_trial(prior.params(), user_attrs={ORIGIN: prior.origin})
    study.set_user_attr("warm_start", list(definition.settings.warm_start))
    study.set_user_attr("command", {"study": definition.source, "arguments": list(definition.arguments)})


def join_study(definition: StudyDefinition, base_hash: str, log: Log) -> optuna.Study:
    """The study as `autolora tune` started it.

    Raises:
        StudyError: it was not started, or this worker would continue it with another space, other settings, other
            images or another base model; or its folder holds the results of another study.
    """
    study = load_started_study(definition, log)
    _refuse_changes(definition, study, base_hash)
    claim_folder(definition.folder, _owner(definition, study))
    return study


def load_started_study(definition: StudyDefinition, log: Log) -> optuna.Study:
    """The study as it is, without a check of what changed since it was started.

    Raises:
        StudyError: it was not started.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings, study = definition.settings, None
    if not _is_missing(definition):
        with suppress(KeyError):
            storage = open_storage(definition.storage, log)
            study = optuna.load_study(
                storage=storage,
                study_name=settings.name,
                **make_sampler_and_pruner(settings, known_priors(definition, storage)),
            )
    if study is None or study.user_attrs.get("space") is None:
        where = redact_url(settings.storage) if settings.storage else str(definition.folder)
        raise StudyError(
            f"no study {settings.name} in {where}; run `autolora tune {definition.source}` first, or name its "
            "folder with out=FOLDER or its database with storage=URL"
        )
    return check_study(study)


def _is_missing(definition: StudyDefinition) -> bool:
    """Whether the study's folder has no database; opening a storage would create one."""
    return definition.settings.storage is None and not (definition.folder / "study.db").is_file()


def resolve_study(storage: str | None, arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The source and the arguments of a study that is known by its name and its storage.

    The worker's own arguments come last, so that they override the study's.

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
    opened = open_storage(storage_url(storage, Path()), print)
    try:
        study = optuna.load_study(storage=opened, study_name=names[-1])
    except KeyError as error:
        existing = ", ".join(sorted(optuna.get_all_study_names(opened))) or "none"
        raise StudyError(f"no study {names[-1]} in {redact_url(storage)}; it has {existing}") from error
    command = check_study(study).user_attrs.get("command")
    if command is None:
        raise StudyError(f"study {names[-1]} in {redact_url(storage)} was not started by `autolora tune`")
    overrides = [argument for argument in arguments if not argument.startswith("study=")]
    return command["study"], [*command["arguments"], *overrides]


def make_sampler_and_pruner(settings: StudySettings, priors: Sequence[FrozenTrial] = ()) -> dict[str, Any]:
    """The sampler and the pruner, as keyword arguments of `optuna.load_study`."""
    return {
        "sampler": PerTrialSeededTPE(settings.seed, settings.n_startup_trials, priors),
        "pruner": optuna.pruners.PercentilePruner(66.0, n_startup_trials=4, n_warmup_steps=2),
    }


def _owner(definition: StudyDefinition, study: optuna.Study | None = None) -> Owner:
    """The study as the owner of its folder; two studies of one name in two storages differ by their token."""
    token = {"id": study.user_attrs[TOKEN]} if study and TOKEN in study.user_attrs else {}
    return Owner("study", definition.settings.name, token)


def _refuse_changes(definition: StudyDefinition, study: optuna.Study, base_hash: str | None = None) -> None:
    """Refuse to continue a study with another space, other settings or images, or another base model if it is known."""
    stored = dict(study.user_attrs["space"])
    base = {"base model": str(stored.pop("base model", base_hash))}
    stored.pop("dataset", None)  # a name, for people: what is in the folder decides
    changed = difference(stored, as_text(definition.space))
    changed += changes(base, {"base model": base_hash} if base_hash else {})
    changed += changes(study.user_attrs.get(FIXED, {}), definition.fixed)
    if changed:
        name = definition.settings.name
        raise StudyError(
            f"study {name} in {definition.folder} was started differently ({'; '.join(changed)}); undo the change, or "
            "start another with out=OTHER_FOLDER (and study.name=ANOTHER in a shared storage)"
        )
