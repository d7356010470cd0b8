"""Recipes and settings from Python, without a config file: the presets of `conf/` with some keys set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora import config as cfg
from autolora.errors import ConfigError
from autolora.overrides import quote_list
from autolora.settings import Settings, build_run, build_settings
from autolora.train.run import Run

SECTIONS = ("adapter", "optimizer", "schedule", "train", "captions")  # of a recipe
GROUPS = ("adapter", "optimizer", "schedule")  # whose kind can be chosen by name


def recipe(name: str = "guide-adamw", **values: Any) -> Run:
    """Return a recipe of `conf/recipe/` with some keys set.

    Args:
        name: the recipe's name.
        values: keys by their last part, `dim=16`, or whole with `**{"train.seed": 1}`; `adapter="loha"`,
            `optimizer="adamw"` and `schedule="cosine"` choose another kind.

    Raises:
        ConfigError: no such recipe, kind or key, a key that several sections have, or a value that cannot be.
    """
    kinds = [f"{group}={values[group]}" for group in GROUPS if group in values]
    config = cfg.compose("train", [f"recipe={name}", *kinds])
    keys = {_full_key(config, key): value for key, value in values.items() if key not in GROUPS}
    return build_run(cfg.with_values(config, keys))


def _full_key(config: Mapping[str, Any], key: str) -> str:
    if "." in key:
        section, _, name = key.partition(".")
        if section not in config or name.split(".")[0] not in config[section]:
            raise ConfigError(f"a recipe has no key `{key}`")
        return key
    sections = [section for section in SECTIONS if key in config[section]]
    if len(sections) != 1:
        which = f"write it whole: {', '.join(f'{s}.{key}' for s in sections)}" if sections else "it has no such key"
        raise ConfigError(f"`{key}` of a recipe: {which}")
    return f"{sections[0]}.{key}"


def configure(
    dataset: str | Path,
    *,
    model: str = "paperdoll",
    model_path: str | Path | None = None,
    scoring: str | None = None,
    study: str | Path | None = None,
    out: str | Path | None = None,
    storage: str | None = None,
    values: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings of a training run or a study.

    Args:
        dataset: the folder of captioned images.
        model: a preset of `conf/model/`, such as `sdxl`.
        model_path: the base model's file or folder; None: the preset's own.
        scoring: a preset of `conf/scoring/`; None: `paperdoll` for the synthetic test world, else `character`.
        study: a study of `studies/`, or the path of a YAML file; None: no study.
        out: the folder of the study or the run; None: below `runs/`.
        storage: the URL of the study's storage, see docs/scaling.md; None: SQLite in its folder.
        values: further keys, such as `{"budget.n_trials": 5}`.

    Raises:
        ConfigError: a name, a key or a value that cannot be.
    """
    scoring = scoring or ("paperdoll" if model == "paperdoll" else "character")
    given = {"dataset.path": dataset, "model.path": model_path, "out": out, **(values or {})}
    overrides = [f"model={model}", f"scoring={scoring}"]
    overrides += [f"{key}={_as_override(value)}" for key, value in given.items() if value is not None]
    source = str(study) if study is not None else None
    config = cfg.compose("tune" if source else "train", overrides, source)
    if storage is not None:
        config.storage = storage
    return build_settings(config, source, overrides)


def _as_override(value: Any) -> str:
    if isinstance(value, list | tuple):
        texts = all(isinstance(item, str) for item in value)
        return quote_list(value) if texts else f"[{','.join(_as_override(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
