"""Standard metrics on embeddings with a known result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score
from torchvision.models import alexnet

from autolora.scoring.standard_metrics import clip_i, clip_t, kid, lpips, lpips_weights


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


ROWS = unit(np.random.default_rng(0).normal(size=(20, 16)))


def test_cosines_are_the_means_over_pairs() -> None:
    assert clip_t(ROWS, ROWS) == pytest.approx(1)
    assert clip_t(ROWS, -ROWS) == 0
    assert clip_i(np.eye(4), np.eye(4)) == pytest.approx(1 / 4)


def test_kid_grows_with_the_distance_and_is_reproducible() -> None:
    others = unit(np.random.default_rng(1).normal(size=(20, 16)))
    near, far = kid(ROWS, others), kid(ROWS, unit(others + 1))
    assert near < far
    assert kid(ROWS, others) == pytest.approx(near)


def test_kid_of_unequal_sets_is_reproducible_and_keeps_the_global_random_state() -> None:
    others = unit(np.random.default_rng(1).normal(size=(7, 16)))
    before = torch.random.get_rng_state()
    first = kid(ROWS, others)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(1)
    assert kid(ROWS, others) == first


class FakeClip:
    """A CLIP and its processor for which images are their own embeddings and texts are row numbers."""

    config = None

    def __call__(
        self, images: list[Tensor] | None = None, text: list[str] | None = None, **_: object
    ) -> dict[str, Tensor]:
        if images:
            return {"pixel_values": torch.stack(list(images)).flatten(1)}
        rows = torch.tensor([int(row) for row in text])
        return {"input_ids": rows, "attention_mask": rows}

    def to(self, device: object) -> FakeClip:
        return self

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return pixels

    def get_text_features(self, rows: Tensor, mask: Tensor) -> Tensor:
        return torch.from_numpy(ROWS)[rows]


def test_clip_t_is_clip_score_of_torchmetrics() -> None:
    rendered = unit(ROWS + np.random.default_rng(2).uniform(0, 0.3, ROWS.shape))
    images = [torch.from_numpy(row)[None, None] for row in rendered]
    expected = clip_score(images, [str(i) for i in range(len(ROWS))], lambda: (FakeClip(), FakeClip()))
    assert clip_t(rendered, ROWS) == pytest.approx(float(expected) / 100)


def test_lpips_needs_its_weights_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not lpips_weights().is_file()
    lpips_weights().parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), lpips_weights())
    same = np.full((3, 32, 32, 3), 90, np.uint8)
    varied = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), np.uint8)
    assert lpips(same) == pytest.approx(0, abs=1e-6) and lpips(varied) > 0.01
