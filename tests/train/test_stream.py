"""What each step shows: images of one bucket resolution, mirrored or masked, with the recipe's captions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autolora.data.buckets import BucketSettings
from autolora.data.caption_recipe import CaptionRecipe
from autolora.data.concepts import Dataset, DatasetSettings, load_dataset, with_buckets
from autolora.data.crops import load_cropped
from autolora.data.sources import Picture
from autolora.data.step_table import make_step_table
from autolora.data.tag_report import images_by_tag
from autolora.errors import ConfigError
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train.batches import Batch, Stream
from autolora.train.caches import LatentCache, latent_shape
from autolora.train.loop import train
from autolora.train.loss import PLAIN, diffusion_loss
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job
from tests.data.folders import noise_image, write_zorak
from tests.train.helpers import make_context

pytestmark = pytest.mark.slow  # trains, renders or loads many models

RUN = Run("test", train=TrainSettings(epochs=2, images_per_concept=11, batch_size=4, shuffle_caption=False))


@pytest.fixture
def mixed(tmp_path: Path) -> Dataset:
    """Two outfits with tall, wide and square images, in bucket resolutions for a model of 32 px."""
    root = write_zorak(tmp_path / "zorak", 12)
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        noise_image(number, [(48, 48), (32, 64), (64, 32)][number % 3]).save(path)
    settings = DatasetSettings(str(root), buckets=BucketSettings(count=3, bucket_reso_steps=8))
    return with_buckets(load_dataset(settings), settings, 32)


def all_batches(
    run: Run, dataset: Dataset, model: StableDiffusion, class_pictures: tuple[Picture, ...] = ()
) -> list[Batch]:
    stream = Stream(run, dataset, model, class_pictures)
    return [stream.next_batch() for _ in range(stream.optimizer_steps())]


def test_each_batch_has_one_bucket_resolution_and_concepts_are_shown_as_planned(
    tiny_model: StableDiffusion, mixed: Dataset
) -> None:
    batches = all_batches(RUN, mixed, tiny_model)
    buckets = [{picture.bucket for picture in batch.pictures} for batch in batches]
    assert all(len(in_batch) == 1 for in_batch in buckets) and len(set.union(*buckets)) == 3
    counts = Counter(picture.concept for batch in batches for picture in batch.pictures)
    assert counts == dict.fromkeys(("zorak fit_a", "zorak fit_b"), 22)
    for batch in batches:
        assert tuple(batch.noise.shape[1:]) == latent_shape(tiny_model, batch.pictures[0].bucket)
    assert len(batches) > RUN.optimizer_steps(mixed) - 1


def test_a_bucket_resolution_must_be_a_multiple_of_the_vae_scale(tiny_model: StableDiffusion) -> None:
    assert latent_shape(tiny_model, (24, 40)) == (4, 10, 6) and latent_shape(tiny_model, None) == (4, 8, 8)
    with pytest.raises(ConfigError, match=r"a bucket of 30x32 px .*bucket_reso_steps must be a multiple of 4"):
        latent_shape(tiny_model, (30, 32))


def test_the_seed_decides_the_order_of_bucket_resolutions(tiny_model: StableDiffusion, mixed: Dataset) -> None:
    def order(seed: int) -> list[object]:
        run = replace(RUN, train=replace(RUN.train, seed=seed))
        return [batch.pictures[0].bucket for batch in all_batches(run, mixed, tiny_model)]

    assert order(1) == order(1) != order(2)


def test_slots_with_different_bucket_resolutions_train_as_if_alone(
    tiny_model: StableDiffusion, mixed: Dataset, tmp_path: Path
) -> None:
    """If the slots' batches differ in resolution, the step computes one after the other."""
    other = replace(RUN, name="other", train=replace(RUN.train, seed=5))

    def trained(*runs: Run) -> dict[str, dict[str, torch.Tensor]]:
        context = replace(make_context(tiny_model, mixed.root, tmp_path, RUN, slots=len(runs)), dataset=mixed)
        queue, states = iter([Job(run) for run in runs]), {}
        try:
            for ready in train(lambda: next(queue, None), context):
                states |= {slot.run.name: slot.checkpoint.state for slot in ready if slot.checkpoint}
        finally:
            context.adapter.detach()
        return states

    together = trained(RUN, other)
    for run in (RUN, other):
        alone = trained(run)[run.name]
        assert all(torch.allclose(alone[key], together[run.name][key], atol=1e-5) for key in alone)


def test_mirrored_images_have_their_own_latents(tiny_model: StableDiffusion, mixed: Dataset, tmp_path: Path) -> None:
    plain, flipped = RUN, replace(RUN, train=replace(RUN.train, flip_aug=True))
    assert not any(flip for batch in all_batches(plain, mixed, tiny_model) for flip in batch.flips)
    flips = [flip for batch in all_batches(flipped, mixed, tiny_model) for flip in batch.flips]
    assert 0.25 < np.mean(flips) < 0.75
    cache, picture = LatentCache(tiny_model, tmp_path / "latents"), mixed.pictures[0]
    latents = cache.latents([picture, picture], [False, True])
    mirrored = torch.from_numpy(load_cropped(picture)[:, ::-1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert not torch.equal(latents[0], latents[1])
    assert torch.allclose(latents[1], tiny_model.encode_images(mirrored)[0], atol=1e-5)
    assert len(list((tmp_path / "latents").iterdir())) == 2


def masked(picture: Path, mixed: Dataset) -> Dataset:
    """Return the dataset with the left half of one image masked out."""
    width, height = Image.open(picture).size
    levels = np.zeros((height, width), np.uint8)
    levels[:, width // 2 :] = 255
    Image.fromarray(levels).save(picture.with_suffix(".mask.png"))
    settings = DatasetSettings(str(mixed.root), buckets=BucketSettings(count=1, bucket_reso_steps=8))
    return with_buckets(load_dataset(settings), settings, 32)


def test_a_mask_is_cropped_like_its_image_and_weights_the_loss(
    tiny_model: StableDiffusion, mixed: Dataset, tmp_path: Path
) -> None:
    path = next(p.path for p in mixed.pictures if p.width == p.height)
    dataset = masked(path, mixed)
    picture = next(p for p in dataset.pictures if p.path == path)
    unmasked = [p for p in dataset.pictures if p.mask is None][:1]
    cache = LatentCache(tiny_model, tmp_path / "latents")
    assert cache.masks(unmasked, [False]) is None
    masks = cache.masks([picture, picture, *unmasked], [False, True, False])
    assert masks is not None and masks.shape == (3, 1, 8, 8)
    # image and bucket are square, so the center of the mask does not move the crop
    assert masks[0, 0, :, :3].max() < 0.1 and masks[0, 0, :, 5:].min() > 0.9
    assert torch.allclose(masks[1], masks[0].flip(-1), atol=1e-6) and masks[2].min() == 1
    target, inside, outside = (torch.zeros(1, 4, 8, 8) for _ in range(3))
    inside[..., 5:], outside[..., :3] = 1.0, 1.0
    steps = torch.tensor([10])
    losses = [float(diffusion_loss(tiny_model, p, target, steps, PLAIN, masks[:1])) for p in (inside, outside)]
    assert losses[0] > 0.5 and losses[1] < 0.01
    everywhere = torch.ones(1, 4, 8, 8)
    assert float(diffusion_loss(tiny_model, everywhere, target, steps, PLAIN, masks[:1])) == pytest.approx(1, rel=1e-4)


def test_captions_are_edited_by_the_recipe_and_have_tag_dropout(tiny_model: StableDiffusion, mixed: Dataset) -> None:
    run = replace(RUN, captions=CaptionRecipe(drop_tags=("beach",)))
    edited = {caption for batch in all_batches(run, mixed, tiny_model) for caption in batch.captions}
    assert edited and not any("beach" in caption for caption in edited)
    dropped = replace(RUN, train=replace(RUN.train, caption_tag_dropout_rate=0.5, keep_tokens=2))
    captions = [caption for batch in all_batches(dropped, mixed, tiny_model) for caption in batch.captions]
    assert all(caption.startswith("1girl, zorak") for caption in captions)
    assert 0 < sum("fit_" in caption for caption in captions) < len(captions)


def test_the_step_table_counts_captions_whose_trigger_was_swapped(tiny_model: StableDiffusion, mixed: Dataset) -> None:
    """With whole passes over the images, the expected counts are exact."""
    recipe = CaptionRecipe(trigger_swap_rate=0.4, swap_tags=("blue hair", "gold horns"))
    n_images = len(mixed.concepts[0].pictures)
    run = replace(RUN, train=replace(RUN.train, images_per_concept=3 * n_images), captions=recipe)
    captions = [caption for batch in all_batches(run, mixed, tiny_model) for caption in batch.captions]
    table = make_step_table(run.with_captions(mixed), run.images_by_concept(mixed), run.train.epochs)
    with_trigger = sum("zorak" in caption for caption in captions)
    assert with_trigger == table.character.steps_total == len(captions) - sum("blue hair" in c for c in captions)
    assert table.character.overlap == pytest.approx(2 * (n_images - round(0.4 * n_images)) / n_images)
    tags = {row.tag: row.steps_total for row in images_by_tag(run.with_captions(mixed), dict.fromkeys(
        (c.name for c in mixed.concepts), 3 * n_images), run.train.epochs)}  # fmt: skip
    assert tags["zorak"] == with_trigger and tags["gold horns"] == sum("gold horns" in c for c in captions)
    assert tags["beach"] == sum("beach" in caption for caption in captions)


def test_regularization_images_are_trained_as_they_are(tiny_model: StableDiffusion, mixed: Dataset) -> None:
    class_pictures = tuple(
        replace(p, caption="1girl", concept="", sha256=str(i)) for i, p in enumerate(mixed.validation)
    )
    run = replace(RUN, train=replace(RUN.train, reg_ratio=0.5, num_class_images=2))
    batches = all_batches(run, mixed, tiny_model, class_pictures)
    counts = Counter(p.sha256 for batch in batches for p in batch.pictures if not p.concept)
    assert set(counts) == {"0", "1"} and sum(counts.values()) == 22  # half of the dataset's 44, of two images
    assert abs(counts["0"] - counts["1"]) <= 2
    assert not any(flag for batch in batches for flag in batch.preserved)
    assert {float(w) for batch in batches for w in batch.weights} == {1.0}


def test_noise_offset_shifts_whole_channels_and_changes_no_other_random_number(
    tiny_model: StableDiffusion, mixed: Dataset
) -> None:
    plain, offset = (
        Stream(replace(RUN, train=replace(RUN.train, noise_offset=share)), mixed, tiny_model).next_batch()
        for share in (0.0, 0.5)
    )
    assert plain.captions == offset.captions and torch.equal(plain.timesteps, offset.timesteps)
    shift = offset.noise - plain.noise
    assert shift.std(dim=(2, 3)).max() < 1e-5 and shift.abs().mean() > 0.1
