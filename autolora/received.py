"""Data from a file or a storage that somebody else may have written, parsed into typed values before it is used.

Names of files are checked by `files.path_below`, the keys of YAML files by `config.compose`, what a study's storage
holds by `study.received`.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from autolora.errors import BrokenFile, ConfigError

T = TypeVar("T")
MAX_YAML_VALUES = 20_000
MAX_DIGITS = 100
_RESOLVER = re.compile(r"\$\{[^$]*:")  # also where the resolver's name is an interpolation itself


def _interval(term: dict[str, float]) -> dict[str, float]:
    if set(term) != {"value", "low", "high"}:
        raise ValueError("a term needs value, low and high")
    return term


def _weight(text: str) -> str:
    float(text)
    return text


_PARSERS: dict[Any, TypeAdapter[Any]] = {}
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e15, le=1e15)]
Interval = Annotated[dict[str, Finite], AfterValidator(_interval)]  # of a term: value, low, high
Weight = Annotated[str, AfterValidator(_weight)]  # a LoRA weight as a key of JSON


def read_json(path: Path, kind: type[T]) -> T | None:
    """Read a JSON file as a value of a type; None if there is no such file.

    Raises:
        BrokenFile: it holds something else.
    """
    if not path.is_file():
        return None
    try:
        parsed: T = parser(kind).validate_json(path.read_bytes(), strict=True)
        return parsed
    except ValidationError as error:
        raise BrokenFile(
            f"{path} is broken ({first_fault(error)}), or another version of autolora wrote it: restore it from a copy"
        ) from error


def parser(kind: Any) -> TypeAdapter[Any]:
    """The parser of a type; it takes long to build, so each is built once."""
    if kind not in _PARSERS:
        _PARSERS[kind] = TypeAdapter(kind)
    return _PARSERS[kind]


def read_yaml(path: Path) -> str:
    """The text of a YAML file that is small enough to be composed.

    Raises:
        ConfigError: it cannot be read or is no text, is nested too deeply, its aliases expand to too much, or a number
            is too long.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): make it readable") from error
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes it
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        size = _size(root, {}) if root else 0
        if size <= MAX_YAML_VALUES:
            _check_texts(root, path, set())
    except RecursionError as error:
        raise ConfigError(f"{path} is nested too deeply: correct it") from error
    except yaml.YAMLError as error:
        words = " ".join(str(error).split()).replace('"<unicode string>"', str(path))
        raise ConfigError(f"this is no YAML: {words}") from error
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path} holds no keys with values: write them as key: value")
    if size > MAX_YAML_VALUES:
        raise ConfigError(
            f"{path} has more than {MAX_YAML_VALUES:,} values, its aliases counted as often as they occur"
        )
    return text


def refuse_resolvers(key: str, value: str) -> None:
    """Refuse a value such as `${oc.env:NAME}`: a file of somebody else could read the environment and send it away.

    Raises:
        ConfigError: names the key.
    """
    if _RESOLVER.search(value):
        raise ConfigError(
            f"{key}={value} is refused: a config may refer to its own keys, but not read the environment or call "
            'anything; write the value, or let your shell put it in: key="$NAME"'
        )


def _check_texts(node: yaml.Node | None, path: Path, known: set[int]) -> None:
    """Refuse resolvers before Hydra sees them: it resolves names of groups, and its messages show what came out."""
    if isinstance(node, yaml.ScalarNode):
        refuse_resolvers(f"{path} line {node.start_mark.line + 1}", node.value)
    elif node is not None and id(node) not in known:
        known.add(id(node))
        for part in node.value:
            for below in part if isinstance(part, tuple) else (part,):
                _check_texts(below, path, known)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values that a node expands to; huge for one that contains itself and for an endless number."""
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # until it is known: who contains itself is too large
        if isinstance(node, yaml.ScalarNode):
            is_long = node.tag.endswith(":int") and len(node.value) > MAX_DIGITS
            known[id(node)] = MAX_YAML_VALUES + 1 if is_long else 1
        else:
            below = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            known[id(node)] = 1 + sum(_size(part, known) for part in below)
    return known[id(node)]


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong and where, without the content, which is somebody's own."""
    fault = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else fault["msg"]
