"""The probe suite of the packaged pictures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autolora.config import compose
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset
from autolora.evaluation.session import class_prompts
from autolora.paperdoll.weights import QUICKSTART
from autolora.scoring.eval_prompts import ALL_GROUPS, CLASS_GROUPS, EvalPrompt, build_eval_prompts, neighbours
from autolora.scoring.scorer import negative_requests
from autolora.scoring.settings import ScoringSettings
from autolora.settings import build_settings


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset(DatasetSettings(path=str(QUICKSTART)))


@pytest.fixture(scope="module")
def settings() -> ScoringSettings:
    return build_settings(compose("train", ['scoring.bleed_prompts=["1girl, witch"]'])).scoring


@pytest.fixture(scope="module")
def probes(dataset: Dataset, settings: ScoringSettings) -> tuple[EvalPrompt, ...]:
    return build_eval_prompts(dataset, settings)


def words(dataset: Dataset) -> set[str]:
    return {dataset.trigger, *(concept.trigger for concept in dataset.concepts)}


def test_no_two_prompts_share_a_seed(probes: tuple[EvalPrompt, ...]) -> None:
    seeds = [seed for probe in probes for seed in probe.seeds]
    assert len(set(seeds)) == len(seeds)


def test_only_trigger_and_novel_prompts_ask_for_the_character(dataset: Dataset, probes: tuple[EvalPrompt, ...]) -> None:
    for probe in probes:
        tags = set(probe.prompt.split(", "))
        assert (dataset.trigger in tags) == (probe.group != "class_only")
        assert not words(dataset) & set(probe.base_prompt.split(", "))
        assert dataset.class_word in probe.base_prompt.split(", ")


def test_every_concept_and_every_extra_prompt_is_probed(dataset: Dataset, probes: tuple[EvalPrompt, ...]) -> None:
    assert {p.concept for p in probes if p.group == "trigger"} == {c.name for c in dataset.concepts}
    assert "1girl, witch" in {p.prompt for p in probes if p.group == "class_only"}


def test_the_whole_suite_asks_what_the_search_does_and_more(dataset: Dataset, settings: ScoringSettings) -> None:
    settings = replace(settings, style_prompts=("watercolor",), person_prompts=("crowd",))
    suite = build_eval_prompts(dataset, settings, ALL_GROUPS)
    assert {p.group for p in suite} == set(ALL_GROUPS)
    assert {p.prompt for p in build_eval_prompts(dataset, settings)} < {p.prompt for p in suite}
    for probe in suite:
        asked = dataset.trigger in probe.prompt.split(", ")
        assert asked == (probe.group not in CLASS_GROUPS)


@pytest.mark.parametrize(
    ("trigger", "near"), [("red riding hood", ["red", "riding", "hood"]), ("mona", ["mo"]), ("tifa_x", ["tifa", "x"])]
)
def test_neighbours_are_what_is_left_of_a_trigger(dataset: Dataset, trigger: str, near: list[str]) -> None:
    assert neighbours(replace(dataset, trigger=trigger, concepts=())) == near


def test_nothing_is_both_fitted_on_and_judged(
    dataset: Dataset, settings: ScoringSettings, probes: tuple[EvalPrompt, ...]
) -> None:
    contrast = negative_requests(dataset, settings)
    assert len(contrast) == settings.num_negative_renders == len(set(contrast))
    assert not {seed for _, seed in contrast} & {seed for probe in probes for seed in probe.seeds}
    assert not words(dataset) & {tag for prompt, _ in contrast for tag in prompt.split(", ")}


@pytest.mark.parametrize("tags", [(), ("red hair",), ("red hair, hat", "blue dress", "smile")])
def test_class_prompts_hold_the_class_word_and_no_trigger(dataset: Dataset, tags: tuple[str, ...]) -> None:
    prompts = class_prompts(dataset, tags, 64)
    assert len(prompts) == 64
    assert prompts.count(dataset.class_word) == 48
    for prompt in prompts:
        assert dataset.class_word in prompt.split(", ")
        assert not words(dataset) & set(prompt.split(", "))
    assert all(any(tag in prompt for prompt in prompts) for tag in tags)
