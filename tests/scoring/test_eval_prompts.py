"""The evaluation prompts of the packaged dataset."""

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
def prompts(dataset: Dataset, settings: ScoringSettings) -> tuple[EvalPrompt, ...]:
    return build_eval_prompts(dataset, settings)


def words(dataset: Dataset) -> set[str]:
    return {dataset.trigger, *(concept.trigger for concept in dataset.concepts)}


def test_no_two_prompts_share_a_seed(prompts: tuple[EvalPrompt, ...]) -> None:
    seeds = [seed for prompt in prompts for seed in prompt.seeds]
    assert len(set(seeds)) == len(seeds)


def test_only_trigger_and_outfit_prompts_contain_the_trigger(dataset: Dataset, prompts: tuple[EvalPrompt, ...]) -> None:
    for prompt in prompts:
        tags = set(prompt.prompt.split(", "))
        assert (dataset.trigger in tags) == (prompt.group != "class_only")
        assert not words(dataset) & set(prompt.base_prompt.split(", "))
        assert dataset.class_word in prompt.base_prompt.split(", ")


def test_every_concept_and_every_bleed_prompt_is_rendered(dataset: Dataset, prompts: tuple[EvalPrompt, ...]) -> None:
    assert {p.concept for p in prompts if p.group == "trigger"} == {c.name for c in dataset.concepts}
    assert "1girl, witch" in {p.prompt for p in prompts if p.group == "class_only"}


def test_the_finals_render_the_prompts_of_the_search_and_more(dataset: Dataset, settings: ScoringSettings) -> None:
    settings = replace(settings, style_prompts=("watercolor",), person_prompts=("crowd",))
    all_prompts = build_eval_prompts(dataset, settings, ALL_GROUPS)
    assert {p.group for p in all_prompts} == set(ALL_GROUPS)
    assert {p.prompt for p in build_eval_prompts(dataset, settings)} < {p.prompt for p in all_prompts}
    for prompt in all_prompts:
        has_trigger = dataset.trigger in prompt.prompt.split(", ")
        assert has_trigger == (prompt.group not in CLASS_GROUPS)


@pytest.mark.parametrize(
    ("trigger", "near"), [("red riding hood", ["red", "riding", "hood"]), ("mona", ["mo"]), ("tifa_x", ["tifa", "x"])]
)
def test_neighbours_are_parts_of_the_trigger(dataset: Dataset, trigger: str, near: list[str]) -> None:
    assert neighbours(replace(dataset, trigger=trigger, concepts=())) == near


def test_no_render_is_used_for_both_fitting_and_scoring(
    dataset: Dataset, settings: ScoringSettings, prompts: tuple[EvalPrompt, ...]
) -> None:
    negatives = negative_requests(dataset, settings)
    assert len(negatives) == settings.num_negative_renders == len(set(negatives))
    assert not {seed for _, seed in negatives} & {seed for prompt in prompts for seed in prompt.seeds}
    assert not words(dataset) & {tag for prompt, _ in negatives for tag in prompt.split(", ")}


@pytest.mark.parametrize("tags", [(), ("red hair",), ("red hair, hat", "blue dress", "smile")])
def test_class_prompts_contain_the_class_word_and_no_trigger(dataset: Dataset, tags: tuple[str, ...]) -> None:
    prompts = class_prompts(dataset, tags, 64)
    assert len(prompts) == 64
    assert prompts.count(dataset.class_word) == 48
    for prompt in prompts:
        assert dataset.class_word in prompt.split(", ")
        assert not words(dataset) & set(prompt.split(", "))
    assert all(any(tag in prompt for prompt in prompts) for tag in tags)
