"""Data from a file or a storage that somebody else may have written, parsed into typed values before it is used.

Names of files are checked by `files.path_below`, YAML files by `config.compose`, what a study's storage holds by
`study.received`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from autolora.errors import BrokenFile

T = TypeVar("T")


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


def first_fault(error: ValidationError) -> str:
    """The first thing that is wrong and where, without the content, which is somebody's own."""
    fault = error.errors(include_input=False, include_url=False)[0]
    place = ".".join(map(str, fault["loc"]))
    return f"{place}: {fault['msg']}" if place else fault["msg"]
