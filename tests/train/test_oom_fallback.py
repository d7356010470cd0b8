"""If the GPU's memory is too small, training needs less memory and gives the same result, or says what to set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autolora.errors import MemoryFull
from autolora.models.base import Context
from autolora.models.stable_diffusion import StableDiffusion
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import train
from autolora.train.loss import validation_losses
from autolora.train.slot import Job, TrainingSlot
from tests.tiny import load_tiny
from tests.train.helpers import ADAMW, make_context, train_all

pytestmark = pytest.mark.slow  # trains, renders or loads many models

RUN = replace(ADAMW, train=replace(ADAMW.train, scale_weight_norms=None, epochs=1, images_per_concept=8, batch_size=5))


@pytest.fixture
def model(tiny_model_dir: Path) -> StableDiffusion:
    """A model for one test alone, because gradient checkpointing stays on once it is turned on."""
    return load_tiny(tiny_model_dir)


class SmallGpu:
    """A model that runs out of memory above so many images, without and with gradient checkpointing."""

    def __init__(self, model: StableDiffusion, plain: int, checkpointed: int, patch: pytest.MonkeyPatch) -> None:
        self.model, self.max_images, self.real_predict = model, (plain, checkpointed), model.predict
        self.passes: list[int] = []  # images of each successful training pass
        patch.setattr(model, "predict", self.predict)

    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Context) -> Tensor:
        out = self.real_predict(noisy, timesteps, conditioning)
        if torch.is_grad_enabled():
            if len(noisy) > self.max_images[self.model.unet.is_gradient_checkpointing]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has 11 GiB.")
            self.passes.append(len(noisy))
        return out


def trained(model: StableDiffusion, folder: Path, cache: Path) -> Checkpoint:
    return train_all(make_context(model, folder, cache, RUN), Job(RUN))[-1]


def assert_near(actual: Checkpoint, expected: Checkpoint) -> None:
    for key, tensor in expected.state.items():
        torch.testing.assert_close(actual.state[key], tensor, atol=2e-5, rtol=1e-3)
    assert actual.train_loss == pytest.approx(expected.train_loss, rel=1e-4)


def test_gradient_checkpointing_is_tried_before_micro_batches(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(model, folder, tmp_path)
    gpu = SmallGpu(model, 4, 5, monkeypatch)
    assert_near(trained(model, folder, tmp_path), expected)
    assert model.unet.is_gradient_checkpointing and max(gpu.passes) == 5


def test_micro_batches_give_the_same_result(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(model, folder, tmp_path)
    gpu = SmallGpu(model, 0, 2, monkeypatch)
    context, notes = make_context(model, folder, tmp_path, RUN), []

    def on_step(slot: TrainingSlot) -> None:
        notes.append(slot.memory_note)
        slot.memory_note = ""

    jobs = iter([Job(RUN)])
    ((slot,),) = train(lambda: next(jobs, None), context, on_step)
    context.adapter.detach()
    assert slot.checkpoint is not None
    assert_near(slot.checkpoint, expected)
    assert set(gpu.passes) == {1, 2} and gpu.passes[:3] == [2, 2, 1]
    assert "micro-batches of 2" in notes[0] and not any(notes[1:])


def test_a_step_that_never_fits_is_refused_with_settings_that_help(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallGpu(model, 0, 0, monkeypatch)
    with pytest.raises(MemoryFull, match=r"adamw does not fit .* one image at a time .*train\.batch_size=2 or"):
        trained(model, folder, tmp_path)


def test_validation_in_smaller_parts_gives_the_same_losses(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(model, folder, tmp_path, RUN)
    where = (context.model, context.dataset, context.latents, context.prompts, context.adapter)
    whole, predict, passes = validation_losses(*where), model.predict, list[int]()

    def small(noisy: Tensor, timesteps: Tensor, conditioning: Context) -> Tensor:
        if len(noisy) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        passes.append(len(noisy))
        return predict(noisy, timesteps, conditioning)

    monkeypatch.setattr(model, "predict", small)
    assert validation_losses(*where) == pytest.approx(whole, rel=1e-5)
    assert max(passes) == 2
