"""The caches of latents and text embeddings: what they keep, and how much."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train import caches
from autolora.train.caches import LatentCache, PromptCache


def test_latents_are_cached_by_content(tiny_model: StableDiffusion, folder: Path, tmp_path: Path) -> None:
    dataset = load_dataset(DatasetSettings(path=str(folder)))
    first = LatentCache(tiny_model, tmp_path).latents(dataset.pictures)
    files = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    again = LatentCache(tiny_model, tmp_path).latents(dataset.pictures)
    assert torch.equal(first, again)
    assert files == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} and len(files) == len(dataset.pictures)


def test_the_prompt_cache_is_limited_in_number(tiny_model: StableDiffusion) -> None:
    cache = PromptCache(tiny_model, size=3)
    expected = tiny_model.encode_prompts(["b"])
    for words in (["a", "b"], ["c", "d"], ["b"]):
        embeddings = cache.contexts(words, False)
    assert torch.allclose(embeddings.tokens, expected.tokens, atol=1e-6)
    assert len(cache._embeddings) == 3


def test_the_prompt_cache_is_limited_in_memory(tiny_model: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    size = tiny_model.encode_prompts(["a"]).nbytes
    monkeypatch.setattr(caches, "MAX_PROMPT_BYTES", 2 * size + 1)
    cache = PromptCache(tiny_model)
    for words in (["a", "b", "c"], ["d"], ["c"], ["e"]):
        assert len(cache.contexts(words, False)) == len(words)
    assert list(cache._embeddings) == ["c", "e"] and cache._bytes == 2 * size
