"""Overrides: what is a word to a person stays a word, and every tag can be in a list of tags."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from autolora.adapters.kinds import ADAPTERS
from autolora.config import compose
from autolora.data.caption_recipe import CaptionRecipe
from autolora.optim.optimizers import OPTIMIZERS
from autolora.optim.schedules import SCHEDULES
from autolora.overrides import LIST_KEYS, TEXT_KEYS, quote, quote_list
from autolora.presets import configure
from autolora.settings import Settings, StudySettings, build_run
from autolora.train.run import TrainSettings

# Words of a fixed list, which no number can be; and keys that are taken out of the overrides before they are composed.
ENUMERATIONS = {"absorb_tags", "dtype", "family", "loss_type", "prediction_type", "quantize", "scheduler"}
ENUMERATIONS |= {
    "timestep_sampling",
    "concept_images",
    "workers",
    "trials_per_device",
    "recipes",
    "storage",
    "source",
    "overrides",
}
BARE = {"artifact_store": "study.artifact_store", "warm_start": "study.warm_start"}  # keys of StudySettings and config
TAGS = ["^_^", ">_<", ";)", "=_=", "!?", "it's", "mona (game)", "笑顔", "émile", "salt & pepper", "1e3", "'tis", "{o}"]
TAGS += ["1_000", "[o]", "null", "true", "a:b", "key=value", r"mona \(game\)", "back\\", "#1", "$5", "100%", "@_@", "~"]
WORDS = ["2024_05_01", "1_000", "1e3", "007", "true", "nan", "inf", "~/mona", "my mona (1)", "a=b", "x, y", "日本/Ünï"]
WORDS += [
    r"C:\data\mona",
    r"C:\data\ ",
    "it's",
    'say "hi"',
    "a'b\\",
    "1girl, (solo)",
    "[mona]",
    "{mona}",
    "a'b'c",
    "x#y",
]


def parsed(override: str) -> Any:
    """The value of an override as Hydra reads it."""
    return OverridesParser.create().parse_override(quote(override)).value()


@pytest.mark.parametrize("typed", WORDS)
@pytest.mark.parametrize("key", ["out", "dataset.trigger", "+lora"])
def test_text_is_taken_as_people_type_it(key: str, typed: str) -> None:
    assert parsed(f"{key}={typed}") == typed


def test_quotes_may_be_written_and_null_is_none() -> None:
    assert parsed("dataset.trigger='1e3'") == "1e3" and parsed('out="a, b"') == "a, b"
    assert parsed("out=null") is None and parsed("dataset.concepts=null") is None and parsed("out='null'") == "null"


@pytest.mark.parametrize("tag", TAGS)
def test_every_tag_can_be_in_a_list(tag: str) -> None:
    assert parsed(f"captions.drop_tags=[hat, {tag} ,smile]") == ["hat", tag, "smile"]
    assert parsed(f"captions.drop_tags=[{tag}]") == [tag]


@pytest.mark.parametrize(
    ("typed", "items"),
    [
        ("[]", []),
        ("[a,]", ["a"]),
        ("['smile, hat', \"a, b\"]", ["smile, hat", "a, b"]),
        (r"['it\'s', \"]", ["it's", r"\""]),
        ("['a'b, c]", ["'a'b", "c"]),
        ("['']", [""]),
    ],
)
def test_items_with_commas_are_quoted(typed: str, items: list[str]) -> None:
    assert parsed(f"scoring.bleed_prompts={typed}") == items


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), max_size=3))
@settings(max_examples=50, deadline=None)
def test_any_texts_make_a_list(items: list[str]) -> None:
    if not any("${" in item for item in items):
        assert parsed(f"captions.drop_tags={quote_list(items)}") == items


@pytest.mark.parametrize("override", ["optimizer.lr=1e-4", "train.epochs=1_0", "dataset.seed=0", "quiet=true"])
def test_other_keys_keep_their_numbers(override: str) -> None:
    assert quote(override) == override and not isinstance(parsed(override), str)


def test_texts_from_python_stay_whole() -> None:
    prompts = ["smile, hat", "it's"]
    chosen = configure("2024_05_01", values={"scoring.bleed_prompts": prompts, "dataset.trigger": "1e3"})
    assert (chosen.dataset.path, chosen.dataset.trigger) == ("2024_05_01", "1e3")
    assert chosen.scoring.bleed_prompts == tuple(prompts)
    assert build_run(compose("train", ["captions.drop_tags=[hat,^_^,1e3]"])).captions.drop_tags == ("hat", "^_^", "1e3")


def keys_of(kind: type[Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a dataclass of settings and of those in it, with its type."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        parts = [part for part in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(part)]
        if field.name == "run" or not parts:
            yield f"{above}{field.name}", str(hint)
        for part in parts if field.name != "run" else ():
            yield from keys_of(typing.cast("type[Any]", part), f"{above}{field.name}.")


def test_every_key_that_takes_text_is_known() -> None:
    tables = {"adapter": ADAPTERS, "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    kinds = [(name, kind) for name, table in tables.items() for kind in table.values()]
    kinds += [("train", TrainSettings), ("captions", CaptionRecipe), ("study", StudySettings)]
    found = {key: hint for name, kind in kinds for key, hint in keys_of(kind, f"{name}.")} | dict(keys_of(Settings))
    texts = {key: hint for key, hint in found.items() if "str" in hint or "Path" in hint}
    texts = {key: hint for key, hint in texts.items() if key.rpartition(".")[2] not in ENUMERATIONS}
    expected = {key for key, hint in texts.items() if "tuple" not in hint}
    lists = {key for key, hint in texts.items() if "tuple" in hint}
    below = set(BARE.values())
    assert expected - below == TEXT_KEYS - {"init_lora", "recipe_name", "artifact_store"}
    assert lists - below == LIST_KEYS - {"warm_start"}
