"""The search space of a study: its recipes, and for each key that varies one explicit kind of range."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from autolora.errors import ConfigError

KINDS = ("log", "linear", "int", "log_int", "choice")
Value = float | int | str | bool | list[float | int | str | bool | None] | None


@dataclass(frozen=True)
class Range:
    """The values that one key may take: two bounds for a numeric kind, a list for `choice`."""

    kind: str
    values: tuple[Value, ...]

    def __contains__(self, value: object) -> bool:
        if self.kind == "choice":
            return value in self.values
        low, high = self.values
        return isinstance(value, int | float) and low <= value <= high  # type: ignore[operator]

    @property
    def extremes(self) -> tuple[Value, ...]:
        """All values of a choice; the bounds of another kind, as a trial would have them."""
        if self.kind == "choice":
            return self.values
        return tuple(map(int if self.kind.endswith("int") else float, self.values))  # type: ignore[arg-type]

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Value:
        """Sample a value for a trial."""
        if self.kind == "choice":
            return from_storage(trial.suggest_categorical(name, [in_storage(value) for value in self.values]))
        low, high = self.values
        log = self.kind.startswith("log")
        if self.kind.endswith("int"):
            return trial.suggest_int(name, int(low), int(high), log=log)  # type: ignore[arg-type]
        return trial.suggest_float(name, float(low), float(high), log=log)  # type: ignore[arg-type]

    def text(self) -> str:
        """The range as it is written in a study."""
        return f"{self.kind}: {list(self.values)}"


def in_storage(value: Any) -> float | int | str | bool | None:
    """A value as Optuna stores it: a list, which it cannot store, as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value


def from_storage(value: Any) -> Value:
    """The inverse of `in_storage`; no key takes a text that begins with a bracket."""
    decoded: Value = json.loads(value) if isinstance(value, str) and value.startswith("[") else value
    return decoded


Space = dict[str, dict[str, Range]]  # recipe -> key -> range


def highest(values: Sequence[Value]) -> Value:
    """The highest number among a key's values, or the first where there is none."""
    return max(values, key=lambda value: value if isinstance(value, int | float) else 0)


def parse_space(recipes: Mapping[str, Any]) -> Space:
    """Read the `recipes` of a study.

    Raises:
        ConfigError: every mistake found, each with its full key and what was expected.
    """
    mistakes: list[str] = []
    space: Space = {}
    for recipe, keys in recipes.items():
        space[recipe] = {}
        for key, given in (keys or {}).items():
            try:
                space[recipe][key] = parse_range(given)
            except ConfigError as error:
                mistakes.append(f"study.recipes.{recipe}.{key}: {error}")
    if not space:
        mistakes.append("study.recipes is empty; name at least one recipe of conf/recipe/")
    if mistakes:
        raise ConfigError("; ".join(mistakes))
    return space


def parse_range(given: Any) -> Range:
    """Read one range such as `{log: [1e-4, 1e-3]}`.

    Raises:
        ConfigError: not exactly one known kind, or bounds that cannot be.
    """
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in KINDS:
        raise ConfigError(
            f"expected one of {', '.join(KINDS)} with its values, such as {{log: [1e-4, 1e-3]}}, got {given}"
        )
    kind, values = next(iter(given.items()))
    if not isinstance(values, list | tuple) or not values:
        raise ConfigError(f"{kind} needs a list of values, got {values}")
    if kind == "choice":
        if len(set(map(repr, values))) != len(values):
            raise ConfigError(f"choice repeats a value: {list(values)}")
        flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
        if any(isinstance(item, Mapping | list) for item in flat):
            raise ConfigError(f"choice takes numbers, words, true, false, null and lists of them, got {list(values)}")
        return Range(kind, tuple(values))
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(values) != 2 or len(numbers) != 2:
        raise ConfigError(f"{kind} needs two numbers [low, high], got {list(values)}")
    low, high = numbers
    if low > high:
        raise ConfigError(f"low {low} is above high {high}; swap them")
    if kind.startswith("log") and low <= 0:
        raise ConfigError(f"a log range must start above 0, got {low}")
    if kind.endswith("int") and not (float(low).is_integer() and float(high).is_integer()):
        raise ConfigError(f"{kind} needs whole numbers, got {list(values)}")
    return Range(kind, tuple(values))


def suggest(trial: optuna.trial.BaseTrial, space: Space) -> tuple[str, dict[str, Value]]:
    """Sample a recipe and its keys; parameters are named `recipe/key`, as recipes may differ in their ranges."""
    recipe = trial.suggest_categorical("recipe", list(space)) if len(space) > 1 else next(iter(space))
    return recipe, {key: values.suggest(trial, f"{recipe}/{key}") for key, values in space[recipe].items()}


def sampled_values(trial: optuna.trial.FrozenTrial) -> tuple[str, dict[str, Value]]:
    """The recipe and the values of a trial, as `suggest` sampled them."""
    recipe = str(trial.user_attrs.get("recipe"))
    prefix = f"{recipe}/"
    return recipe, {k.removeprefix(prefix): from_storage(v) for k, v in trial.params.items() if k.startswith(prefix)}


def as_text(space: Space) -> dict[str, str]:
    """Every range by its full name, as the study stores it to detect changes."""
    listed = {f"{recipe}/{key}": values.text() for recipe, keys in space.items() for key, values in keys.items()}
    return {**dict.fromkeys(space, "recipe"), **listed}


def difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """The changes between two stored spaces, one line each."""
    lines = [f"{key}: was {old[key]}, now {new[key]}" for key in old if key in new and old[key] != new[key]]
    lines += [f"{key}: removed (was {old[key]})" for key in old if key not in new]
    return lines + [f"{key}: added ({new[key]})" for key in new if key not in old]
