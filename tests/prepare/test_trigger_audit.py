"""The audit distinguishes names that the base model knows from words without a meaning for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from autolora.errors import ConfigError
from autolora.models.load import load_model
from autolora.models.settings import ModelSettings, RenderSettings
from autolora.paperdoll.look import known_cast, tag_vocabulary
from autolora.prepare.trigger_audit import (
    MEANINGLESS,
    AuditSettings,
    TriggerAudit,
    audit_requests,
    audit_trigger,
    split_words,
    suggest_triggers,
)
from autolora.sampling import BaseRenders
from autolora.scoring.encoders import load_encoder
from autolora.scoring.intervals import Array
from tests import tiny

pytestmark = pytest.mark.slow  # trains, renders or loads many models

TAGS = tag_vocabulary()
KNOWN = {character.name: character for character in known_cast()[0]}


@pytest.fixture(scope="module")
def renders(tmp_path_factory: pytest.TempPathFactory) -> BaseRenders:
    folder = tmp_path_factory.mktemp("renders")
    return BaseRenders(load_model(ModelSettings()), RenderSettings(num_inference_steps=8), folder)


def audit(renders: BaseRenders, trigger: str) -> TriggerAudit:
    return audit_trigger(trigger, renders, load_encoder("paperdoll"), "1girl", TAGS, AuditSettings(seeds=5))


def test_a_known_name_in_a_trigger_is_flagged_with_its_nearest_tags(renders: BaseRenders) -> None:
    assert KNOWN["tafaz"].values["hair_color"] == "white"
    result = audit(renders, "tafaz_doroz")
    assert [word.word for word in result.words] == ["tafaz_doroz", "tafaz", "doroz"]
    part = result.words[1]
    assert part.flagged and part.effect.low > 0.3 and "white hair" in part.nearest
    assert not result.words[2].flagged and result.words[2].effect.high < 0.2
    assert part.spread < result.words[2].spread and part.distance > 2 * result.words[2].distance
    assert result.verdict.startswith("`tafaz_doroz`: ")
    assert "`tafaz` already has a meaning for the base model (nearest: white hair" in result.verdict
    assert "`doroz`" not in result.verdict
    assert "choose another trigger, or train with regularization images of it" in result.verdict
    assert result.tokens == tuple(renders.model.tokens("tafaz_doroz"))


def test_a_meaningless_word_is_not_flagged(renders: BaseRenders) -> None:
    result = audit(renders, "bogiz")
    assert result.flagged == () and result.verdict == "`bogiz`: clean, it has no meaning for the base model"
    assert result.spread.low < result.spread.value < result.spread.high
    assert result.words[0].effect.low <= result.words[0].effect.value <= result.words[0].effect.high


class Colours:
    """An encoder whose embedding is the normalized mean colour."""

    name = "colours"

    def embed_pooled(self, images: NDArray[np.uint8]) -> Array:
        means = images.reshape(len(images), -1, 3).mean(1)
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    def embed_texts(self, prompts: Sequence[str]) -> Array:
        directions = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
        return np.array([directions[prompt] for prompt in prompts], np.float64)


class Painted(BaseRenders):
    """A random colour for every prompt, red for prompts with `rose`; records the requests."""

    def __init__(self, folder: Path) -> None:
        super().__init__(tiny.tiny_model(), RenderSettings(num_inference_steps=1), folder)
        self.requests: list[tuple[str, int]] = []

    def render(self, requests, advance=None, adapter=None):  # type: ignore[no-untyped-def]
        self.requests += requests
        if advance:
            advance(len(requests))
        return np.stack([self.paint(*request) for request in requests])

    @staticmethod
    def paint(prompt: str, seed: int) -> NDArray[np.uint8]:
        generator = np.random.default_rng([seed, sum(map(ord, prompt))])
        color = (250, 20, 20) if "rose" in prompt.casefold() else generator.integers(1, 256, 3)
        return np.full((2, 2, 3), color, np.uint8)


def test_any_encoder_and_class_word_can_be_used(tmp_path: Path) -> None:
    painted, finished = Painted(tmp_path), []
    settings = AuditSettings(seeds=12)
    result = audit_trigger(
        "RoseMirt", painted, Colours(), "chair", ["green", "red", "blue"], settings, advance=finished.append
    )
    assert [word.flagged for word in result.words] == [True, True, False]
    assert result.words[1].nearest == ("red",)
    assert result.words[1].spread == pytest.approx(0, abs=1e-9)
    assert result.words[1].effect.value > 0.9 and result.words[2].effect.value < 0.2
    assert painted.requests == audit_requests("RoseMirt", "chair", settings) and finished == [len(painted.requests)]
    prompts = list(dict.fromkeys(prompt for prompt, _ in painted.requests))
    assert prompts == [
        "chair, RoseMirt",
        "chair, Rose",
        "chair, Mirt",
        "chair",
        *(f"chair, {word}" for word in MEANINGLESS),
    ]


def test_a_known_tag_is_always_flagged(tmp_path: Path) -> None:
    result = audit_trigger("Blue", Painted(tmp_path), Colours(), "chair", ["red", "blue"])
    assert result.words[0].is_known_tag and "`Blue` is a tag that the base model knows" in result.verdict


def test_without_class_word_or_known_tags(tmp_path: Path) -> None:
    painted = Painted(tmp_path)
    result = audit_trigger("rose", painted, Colours(), "", [])
    assert result.flagged[0].nearest == () and "(nearest" not in result.verdict
    assert {prompt for prompt, _ in painted.requests} == {"rose", "", *MEANINGLESS}


def test_the_class_word_and_a_single_word_are_not_audited_again(tmp_path: Path) -> None:
    requests = audit_requests("1girl_mona", "1girl", AuditSettings())
    assert [p for p, s in requests if s == AuditSettings().first_seed][:2] == ["1girl, 1girl_mona", "1girl, mona"]
    assert len(audit_requests("mona", "1girl", AuditSettings(seeds=3))) == 3 * 5


@pytest.mark.parametrize(
    ("trigger", "words"),
    [
        ("Mona_Taco", ("Mona", "Taco")),
        ("mona taco-bell", ("mona", "taco", "bell")),
        ("MonaTaco2", ("Mona", "Taco")),
        ("mona", ("mona",)),
        ("MONA_x_1", ("MONA",)),
        ("mona_mona", ("mona",)),
        (r"mona \(game\)", ("mona", "game")),
        ("Éva_Ñandú", ("Éva", "Ñandú")),
        ("123", ()),
    ],
)
def test_words_of_a_trigger(trigger: str, words: tuple[str, ...]) -> None:
    assert split_words(trigger) == words


@given(st.text("aB_ 1é-", max_size=12))
def test_words_are_parts_of_the_trigger(trigger: str) -> None:
    for word in split_words(trigger):
        assert word in trigger and len(word) > 1 and "_" not in word


@pytest.mark.parametrize(
    ("trigger", "message"),
    [("", "got 0 tags"), (" , ", "got 0 tags"), ("mona, taco", "got 2 tags"), ("a" * 76, "takes 76 tokens.*holds 75")],
)
def test_invalid_triggers_are_refused(tmp_path: Path, trigger: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        audit_trigger(trigger, Painted(tmp_path), Colours(), "chair", [])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": 2}, r"audit\.seeds must be at least 3, got 2"),
        ({"limit": 1.0}, r"audit\.limit must be between 0 and 1"),
        ({"nearest": -1}, r"audit\.nearest"),
        ({"bootstrap": 0}, r"audit\.bootstrap"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AuditSettings(**wrong)  # type: ignore[arg-type]


def test_suggestions_are_new_short_and_reproducible(renders: BaseRenders) -> None:
    model = renders.model
    words = suggest_triggers(model, 5, seed=1, taken=TAGS)
    assert len(set(words)) == 5 and words == suggest_triggers(model, 5, seed=1, taken=TAGS)
    assert words != suggest_triggers(model, 5, seed=2, taken=TAGS)
    sizes = [len(model.tokens(word)) for word in words]
    assert sizes == sorted(sizes) and sizes[0] >= 2 and sizes[-1] <= 3
    assert not set(words) & set(suggest_triggers(model, 5, seed=1, taken=[*TAGS, *words]))
    assert not any("bel" in w for w in suggest_triggers(model, 40, seed=3, taken=["bel"]))


def test_a_word_of_one_token_is_not_suggested() -> None:
    model: Any = SimpleNamespace(tokens=lambda word: [word] if word[0] in "bdfgk" else [word[:2], word[2:]])
    words = suggest_triggers(model, 20, seed=1)
    assert len(words) == 20 and not any(word[0] in "bdfgk" for word in words)


def test_suggestions_must_pass_and_may_be_fewer(renders: BaseRenders) -> None:
    words = suggest_triggers(renders.model, 3, seed=1, passes=lambda word: word.startswith("t"))
    assert words and all(word.startswith("t") for word in words)
    assert suggest_triggers(renders.model, 2, seed=1, passes=lambda word: False) == []
