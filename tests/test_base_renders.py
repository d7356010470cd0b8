"""The cache of base renders: what its keys contain, and that broken files are rendered again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autolora.adapters.adapter_set import AdapterSet, attach
from autolora.adapters.kinds import LoRA
from autolora.models.settings import RenderSettings
from autolora.models.stable_diffusion import StableDiffusion
from autolora.sampling import BaseRenders, RenderRequest, render
from tests import tiny
from tests.test_sampling import SETTINGS, difference, fill, interrupt


@pytest.fixture(params=[False, True], ids=["unet", "unet+text"])
def adapter(request: pytest.FixtureRequest, tiny_model: StableDiffusion) -> Iterator[AdapterSet]:
    attached = attach(tiny_model.modules, LoRA(dim=2, alpha=2.0, text_encoder=request.param))
    yield fill(attached)
    attached.detach()


def test_base_renders_are_read_from_the_cache(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [("a", 1), ("b", 2), ("a", 1)]
    done: list[int] = []
    first = BaseRenders(tiny_model, SETTINGS, tmp_path).render(requests, done.append)
    assert sum(done) == 3
    assert difference(first, render(tiny_model, [RenderRequest(p, s, 0.0) for p, s in requests], SETTINGS)) <= 1
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".png", ".png"]  # no temporary files
    monkeypatch.setattr(tiny_model, "predict", interrupt)
    assert np.array_equal(BaseRenders(tiny_model, SETTINGS, tmp_path).render(requests, done.append), first)
    assert sum(done) == 6


def test_the_cache_key_contains_everything_that_changes_a_render(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    def path(settings: RenderSettings, prompt: str = "a", seed: int = 1) -> Path:
        return BaseRenders(tiny_model, settings, tmp_path).path(prompt, seed)

    changes: list[dict[str, Any]] = [{"num_inference_steps": 5}, {"guidance_scale": 2.0}, {"negative_prompt": "b"}]
    changes += [{"prompt_prefix": "b"}, {"scheduler": "euler"}, {"guidance_rescale": 0.5}]
    changed = [dataclasses.replace(SETTINGS, **change) for change in changes]
    assert path(SETTINGS) == path(dataclasses.replace(SETTINGS, batch_size=9))
    assert len({path(SETTINGS), path(SETTINGS, "b"), path(SETTINGS, seed=2), *map(path, changed)}) == 9


def test_the_cache_key_contains_how_the_model_is_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    models = [tiny.load_tiny(tiny_model_dir, **options) for options in ({}, {"dtype": "bfloat16"}, {"clip_skip": 2})]
    assert len({BaseRenders(model, SETTINGS, tmp_path).path("a", 1) for model in models}) == 3


def test_the_cache_key_is_the_same_in_every_process(
    tiny_model: StableDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = BaseRenders(tiny_model, SETTINGS, tmp_path).path("a", 1)
    sampler = tiny_model.sampler()
    changed = {**sampler.config, "_use_default_values": ["any", "order"], "_diffusers_version": "9"}
    monkeypatch.setattr(type(sampler), "config", changed)
    monkeypatch.setattr(tiny_model, "sampler", lambda *_: sampler)
    assert BaseRenders(tiny_model, SETTINGS, tmp_path).path("a", 1) == key


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_a_broken_cache_file_is_rendered_again(
    content: bytes | str, tiny_model: StableDiffusion, tmp_path: Path
) -> None:
    renders = BaseRenders(tiny_model, SETTINGS, tmp_path)
    good, path = renders.render([("a", 1)]), renders.path("a", 1)
    good_bytes = path.read_bytes()
    path.write_bytes(good_bytes[: len(good_bytes) // 2] if isinstance(content, str) else content)
    assert np.array_equal(BaseRenders(tiny_model, SETTINGS, tmp_path).render([("a", 1)]), good)
    assert path.read_bytes() == good_bytes


def test_finished_batches_are_kept_after_an_interrupt(tiny_model: StableDiffusion, tmp_path: Path) -> None:
    requests = [("a", seed) for seed in range(6)]
    with pytest.raises(KeyboardInterrupt):
        BaseRenders(tiny_model, SETTINGS, tmp_path).render(requests, interrupt_after_the_second_batch)
    assert len(list(tmp_path.glob("*.png"))) == 4


def interrupt_after_the_second_batch(ready: int) -> None:
    if ready == 2:
        raise KeyboardInterrupt


def test_base_renders_switch_an_attached_adapter_off(
    tiny_model: StableDiffusion, adapter: AdapterSet, tmp_path: Path
) -> None:
    requests = [("mona", 1)]
    with pytest.raises(ValueError, match="an adapter is attached"):
        BaseRenders(tiny_model, SETTINGS, tmp_path / "refused").render(requests)
    attached = BaseRenders(tiny_model, SETTINGS, tmp_path / "attached").render(requests, adapter=adapter)
    adapter.detach()
    assert difference(attached, BaseRenders(tiny_model, SETTINGS, tmp_path / "bare").render(requests)) <= 1
