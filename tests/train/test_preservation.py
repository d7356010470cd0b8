"""What is shown besides the concepts, and what prior preservation does to the loss."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from autolora.adapters.kinds import LoRA
from autolora.data.step_table import make_step_table
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train.batches import Batch, Stream
from autolora.train.run import Run
from autolora.train.slot import Job, TrainingContext, TrainingSlot
from autolora.train.step import train_step
from tests.train.helpers import ADAMW, class_pictures_of, make_context, preserving, same_state, train_all

pytestmark = pytest.mark.slow  # trains, renders or loads many models


def all_batches(run: Run, context: TrainingContext) -> list[Batch]:
    """Return every batch of a run."""
    stream = Stream(run, context.dataset, context.model, class_pictures_of(context))
    return [stream.next_batch() for _ in range(run.optimizer_steps(context.dataset))]


def test_prior_preservation_shows_images_by_its_ratio(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = make_context(tiny_model, folder, tmp_path)
    context.adapter.detach()
    run, trigger = preserving(0.5), context.dataset.trigger
    batches = all_batches(run, context)
    flagged = [(c, p) for batch in batches for c, p in zip(batch.captions, batch.preserved, strict=True)]
    preserved, trained = [c for c, flag in flagged if flag], [c for c, flag in flagged if not flag]
    plain = [c for c in preserved if c in ("1girl", "")]
    table = make_step_table(context.dataset, (5, 5), 3, run.class_images_per_epoch(context.dataset))
    assert table.class_images == {"class images": 4, "without triggers": 1, "regularization": 0}
    assert len(flagged) == table.steps_total == 3 * (10 + 5)
    assert len(plain) == 3 * 4 and 0 < plain.count("") < len(plain)  # class images have caption dropout too
    assert len(preserved) == 3 * 5  # images without triggers keep their captions
    assert not any(trigger in caption for caption in preserved)
    assert 0 < trained.count("") < len(trained) and all(trigger in caption for caption in trained if caption)
    with pytest.raises(ValueError, match="no class images"):
        Stream(run, context.dataset, tiny_model)


@pytest.mark.parametrize(("min_character_images", "count"), [(0, 5), (10, 5), (15, 8)])
def test_few_concepts_are_shown_more_often_to_reach_min_character_images(
    min_character_images: int, count: int, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = make_context(tiny_model, folder, tmp_path)
    context.adapter.detach()
    run = replace(ADAMW, train=replace(preserving(0.5).train, min_character_images=min_character_images, epochs=1))
    counts = Counter(
        picture.concept
        for batch in all_batches(run, context)
        for picture, preserved in zip(batch.pictures, batch.preserved, strict=True)
        if not preserved
    )
    assert counts == {concept.name: count for concept in context.dataset.concepts}
    assert sum(run.class_images_per_epoch(context.dataset).values()) == round(count * 2 * 0.5)


def test_half_of_the_datasets_images_are_trained_at_the_lower_lora_weight(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    context = make_context(tiny_model, folder, tmp_path)
    context.adapter.detach()
    run = replace(ADAMW, train=replace(preserving(0.5).train, min_lora_multiplier=0.7))
    batches = all_batches(run, context)
    weights = Counter(
        (flag, round(float(w), 4)) for batch in batches for flag, w in zip(batch.preserved, batch.weights, strict=True)
    )
    assert set(weights) == {(False, 0.7), (False, 1.0), (True, 1.0)}
    assert min(weights[False, 0.7], weights[False, 1.0]) > 0.25 * 30


def test_a_lora_weight_of_one_half_trains_as_half_the_alpha(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = replace(ADAMW, train=replace(ADAMW.train, scale_weight_norms=None, epochs=1))
    halved = replace(plain, adapter=LoRA(dim=2, alpha=1.0))
    expected = train_all(make_context(tiny_model, folder, tmp_path), Job(halved))[-1]
    next_batch = Stream.next_batch
    monkeypatch.setattr(
        Stream, "next_batch", lambda self: replace(b := next_batch(self), weights=torch.full_like(b.weights, 0.5))
    )
    weighted = replace(plain, adapter=LoRA(dim=2, alpha=2.0))
    actual = train_all(make_context(tiny_model, folder, tmp_path), Job(weighted))[-1]
    assert actual.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    for key in actual.state:
        if not key.endswith("alpha"):
            assert torch.allclose(actual.state[key], expected.state[key], atol=1e-5)


def test_class_images_do_not_change_a_run_that_does_not_use_them(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    without = train_all(make_context(tiny_model, folder, tmp_path), Job(ADAMW))[-1]
    context = make_context(tiny_model, folder, tmp_path)
    with_class_images = train_all(replace(context, class_pictures=class_pictures_of(context)), Job(ADAMW))[-1]
    assert same_state(without, with_class_images)


def test_the_target_of_prior_preservation_is_the_base_models_prediction(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss is zero before the first step, and above zero when the adapter has changed the model."""
    context = make_context(tiny_model, folder, tmp_path)
    context = replace(context, class_pictures=class_pictures_of(context))
    slot = TrainingSlot(0, Job(preserving(0.5)), context)
    next_batch = Stream.next_batch
    monkeypatch.setattr(
        Stream, "next_batch", lambda self: replace(b := next_batch(self), preserved=(True,) * len(b.pictures))
    )
    train_step(context, {0: slot})
    with torch.no_grad():
        for delta in context.adapter.deltas:
            delta.up.normal_(generator=torch.Generator().manual_seed(0))
    train_step(context, {0: slot})
    context.adapter.detach()
    assert float(slot.losses[0]) == 0.0
    assert float(slot.losses[1]) > 1e-4


def test_a_resumed_run_with_prior_preservation_equals_an_uninterrupted_one(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    def new_context() -> TrainingContext:
        context = make_context(tiny_model, folder, tmp_path)
        return replace(context, class_pictures=class_pictures_of(context))

    uninterrupted = train_all(new_context(), Job(preserving(0.5)))
    resumed = train_all(new_context(), Job(preserving(0.5), uninterrupted[0]))
    assert [c.step for c in resumed] == [15, 30, 45]
    assert all(same_state(a, b) for a, b in zip(uninterrupted, resumed, strict=True))
