"""The packaged weights: their layout, their size and the attribute classifier's accuracy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from autolora.paperdoll.attribute_classifier import AttributeClassifier
from autolora.paperdoll.drawing import draw
from autolora.paperdoll.look import Look, character_look, novel_character, random_novel_look, sample_values
from autolora.paperdoll.weights import BASE, VERSION, WEIGHTS, weights_hash
from autolora.scoring.encoders import load_encoder

pytestmark = pytest.mark.slow  # trains, renders or loads many models


@pytest.fixture(scope="module")
def classifier() -> AttributeClassifier:
    return AttributeClassifier()


def test_diffusers_alone_loads_the_base() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(BASE)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("1girl, red hair", num_inference_steps=2).images[0].size == (64, 64)


def test_all_weights_are_small_and_in_half_precision() -> None:
    assert sum(p.stat().st_size for p in WEIGHTS.rglob("*")) <= 25e6
    for path in WEIGHTS.rglob("*.safetensors"):
        assert not any(tensor.dtype == torch.float32 for tensor in load_file(path).values()), path


def test_the_weights_are_frozen() -> None:
    """All results were measured with these weights; other weights need another version."""
    assert (VERSION, weights_hash()) == ("paperdoll-v1", "19c4862a9f01d1f7")


def test_the_attribute_classifier_recognizes_new_drawings(classifier: AttributeClassifier) -> None:
    rng = random.Random("test-oracle")
    looks = [Look(sample_values(rng)) for _ in range(300)]
    accuracy = classifier.accuracy(np.stack([np.asarray(draw(x, rng)) for x in looks]), [x.values for x in looks])
    assert all(share >= 0.98 for share in accuracy.values()), accuracy


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_attribute_classifier_recognizes_a_character(classifier: AttributeClassifier, seed: int) -> None:
    character, rng = novel_character(seed, 2), random.Random(seed)
    looks = [character_look(character, character.outfits[i % 2], rng) for i in range(20)]
    images = np.stack([np.asarray(draw(look, rng)) for look in looks])
    assert classifier.shows(images, character).mean() >= 0.95
    assert np.mean([outfit == i % 2 for i, outfit in enumerate(classifier.outfit(images, character))]) >= 0.9
    others = np.stack([np.asarray(draw(random_novel_look(rng), rng)) for _ in range(60)])
    assert classifier.shows(others, character).mean() <= 0.02


def test_the_scoring_encoder_matches_images_with_their_captions() -> None:
    encoder, rng = load_encoder("paperdoll"), random.Random("test-clip")
    looks = [Look(sample_values(rng)) for _ in range(40)]
    images = encoder.embed_pooled(np.stack([np.asarray(draw(look, rng)) for look in looks]))
    texts = encoder.embed_texts([", ".join(look.tags()) for look in looks])
    assert np.allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    assert ((images @ texts.T).argmax(1) == np.arange(40)).mean() >= 0.9
