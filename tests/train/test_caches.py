"""The caches of latents and text embeddings: what they keep, and how much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autolora.data.concepts import DatasetSettings, load_dataset
from autolora.errors import ModelError
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


BROKEN = {
    "empty": b"",
    "zip": b"PK\x03\x04",
    "cut short": b"\x93NUMPY",
    "shape": np.zeros((4, 1, 1)),
    "nan": np.full((4, 16, 16), np.nan),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_of_the_cache_is_made_again(
    broken: Any, tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    picture = load_dataset(DatasetSettings(path=str(folder))).pictures[:1]
    first = LatentCache(tiny_model, tmp_path).latents(picture)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    if isinstance(broken, bytes):
        path.write_bytes(broken)
    else:
        np.save(path, broken.astype(np.float32))
    assert torch.equal(LatentCache(tiny_model, tmp_path).latents(picture), first) and path.read_bytes() == whole


def test_latents_that_are_no_numbers_are_refused(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model, "encode_images", lambda pixels: torch.full((1, 4, 16, 16), torch.nan))
    with pytest.raises(ModelError, match=r"no numbers: set another model\.vae"):
        LatentCache(tiny_model, tmp_path).latents(load_dataset(DatasetSettings(path=str(folder))).pictures[:1])
    assert not list(tmp_path.iterdir())


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
