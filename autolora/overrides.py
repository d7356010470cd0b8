"""Overrides as people type them, `key=value`: a value of a key that takes text is that text, whatever it looks like.

Hydra's grammar would read `2024_05_01` and `1e3` as numbers, and reject most booru tags, such as `^_^` or `it's`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

# `tests/test_overrides.py` compares the keys with the types of the settings.
TEXT_KEYS = {"artifact_store", "cache", "init_lora", "lora", "out", "recipe_name", "save_recipe"}
TEXT_KEYS |= {f"dataset.{key}" for key in ("class_word", "path", "reg_data_dir", "trigger")}
TEXT_KEYS |= {f"model.{key}" for key in ("name", "path", "vae", "render.negative_prompt", "render.prompt_prefix")}
TEXT_KEYS |= {f"scoring.{key}" for key in ("encoder", "second_encoder", "tagger")} | {"study.name", "tagger.path"}
PROMPTS = ("bleed", "class", "outfit", "person", "style", "trigger", "unrelated")
LIST_KEYS = {"adapter.targets", "captions.drop_tags", "captions.swap_tags", "dataset.concepts", "model.class_tags"}
LIST_KEYS |= {f"scoring.{kind}_prompts" for kind in PROMPTS} | {"tagger.exclude", "tagger.prefix", "warm_start"}
_QUOTED = r"""(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
_WHOLE_QUOTED = re.compile(_QUOTED, re.DOTALL)
_ITEM = re.compile(rf"\s*({_QUOTED}|[^,]*?)\s*(?:,|$)", re.DOTALL)


def quote(argument: str) -> str:
    """An override as people type it, quoted where Hydra's grammar would reject or misread it."""
    key, sign, value = argument.partition("=")
    if not sign or not value or key.startswith("~"):
        return argument
    name = key.lstrip("+")
    if name in LIST_KEYS and value.startswith("[") and value.endswith("]"):
        return f"{key}={quote_list(_items(value[1:-1]))}"
    if name in TEXT_KEYS | LIST_KEYS:
        return argument if value == "null" or _WHOLE_QUOTED.fullmatch(value) else f"{key}={quote_text(value)}"
    try:
        parsed = OverridesParser.create().parse_override(argument)
        if not parsed.is_sweep_override() and "\\" not in value and not _is_call(value):
            return argument
    except HydraException:
        pass
    return f"{key}={quote_text(value)}"


def quote_text(text: str) -> str:
    """A text as Hydra's grammar writes it."""
    escaped = re.sub(r"(\\*)'", lambda m: m.group(1) * 2 + "\\'", text)
    tail = re.search(r"\\+$", escaped)
    escaped += tail.group() if tail else ""
    return f"'{escaped}'"


def quote_list(items: Iterable[str]) -> str:
    """A list of texts as Hydra's grammar writes it."""
    return f"[{','.join(map(quote_text, items))}]"


def _items(text: str) -> list[str]:
    """The items between a list's brackets; one that holds a comma is written in quotes."""
    written = [match[1] for match in _ITEM.finditer(text)]
    return [_unquoted(item) if _WHOLE_QUOTED.fullmatch(item) else item for item in written if item]


def _unquoted(item: str) -> str:
    return re.sub(rf"\\({item[0]}|\\(?={item[0]}|$))", r"\1", item[1:-1])


def _is_call(value: str) -> bool:
    return "(" in value and not value.startswith(("'", '"', "[", "{"))
