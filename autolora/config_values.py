"""Config nodes as frozen dataclasses: pydantic checks the types, and a mistake is told by its full key."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.listconfig import ListConfig
from pydantic import TypeAdapter, ValidationError

from autolora.errors import ConfigError
from autolora.renamed_keys import refuse_renamed

T = TypeVar("T")
_SCALARS = {"int_type": "int", "float_type": "float", "bool_type": "bool", "string_type": "str"}
_EXPECTED = {"tuple_type": "a list such as [a, b]", "dict_type": "keys with values such as {a: 1}"}


def convert(kind: type[T], node: Any, where: str) -> T:
    """Build a frozen dataclass from its config node; lists become tuples, whole numbers floats where wanted.

    Args:
        kind: the dataclass.
        node: its keys and values; `kind` is left out.
        where: the node's own key, for messages.

    Raises:
        ConfigError: a key that does not exist, or a value of another type.
    """
    container = _plain(node)
    if not isinstance(container, dict):
        raise ConfigError(f"{where}: expected keys with values, got {container!r}")
    values = {str(key): value for key, value in container.items() if key != "kind"}
    missing = [key for key, value in values.items() if value == "???"]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} must be given: add {where}.{missing[0]}=VALUE")
    converted: T = convert_value(kind, values, where)
    return converted


def convert_value(kind: Any, value: Any, where: str) -> Any:
    """Check one value against a type; whole numbers become text where text is wanted, as YAML reads `trigger: 42`.

    YAML reads `1e3` and `yes` as 1000.0 and true: where text is wanted, they must be in quotes.

    Raises:
        ConfigError: it is of another type.
    """
    value = _plain(value)
    while True:
        try:
            return _adapter(kind).validate_json(json.dumps(value), strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] != "string_type" or type(first["input"]) is not int:
                raise ConfigError(_explain(kind, value, first["type"], first["loc"], where)) from error
            value = _replaced(value, first["loc"], str(first["input"]))


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node) if isinstance(node, DictConfig | ListConfig) else node


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _replaced(value: Any, path: Sequence[str | int], new: Any) -> Any:
    """A copy of nested lists and dicts with one value replaced."""
    if not path:
        return new
    copied: Any = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copied


def _explain(kind: Any, value: Any, error: str, path: Sequence[str | int], where: str) -> str:
    """What was got, what was expected, and the full key."""
    expected, key = kind, where
    for part in path:
        fields = {f.name: f for f in dataclasses.fields(expected)} if dataclasses.is_dataclass(expected) else {}
        if error == "unexpected_keyword_argument" and fields and part not in fields:
            refuse_renamed(f"{key}.{part}")
            near = difflib.get_close_matches(str(part), fields, 1)
            hint = f"; did you mean `{near[0]}`?" if near else f"; it has {', '.join(fields)}"
            return f"{key}.{part} does not exist{hint}"
        if not isinstance(value, dict) or part not in value:
            break
        value = value[part]
        expected = _type_of(expected, str(part)) if fields else _SCALARS.get(error, error)
        key = f"{key}.{part}"
    annotation = _EXPECTED.get(error) or getattr(expected, "__name__", None) or str(expected)
    quotes = ": write it in quotes" if error == "string_type" and isinstance(value, int | float) else ""
    return f"{key}: expected {annotation}, got {value!r}{quotes}"


def _type_of(kind: Any, name: str) -> Any:
    """A field's type: the dataclass where it is one, else the annotation as it is written."""
    field = next(f for f in dataclasses.fields(kind) if f.name == name)
    default = field.default_factory if field.default_factory is not dataclasses.MISSING else None
    return default if isinstance(default, type) and dataclasses.is_dataclass(default) else field.type
