"""Where the GPU's memory is too small, the same is trained in less of it; what never fits is said, with what to set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autolora.errors import MemoryFull
from autolora.models.base import Context
from autolora.models.stable_diffusion import StableDiffusion
from autolora.paperdoll.world import write_dataset
from autolora.train.checkpoint import Checkpoint
from autolora.train.loop import train
from autolora.train.slot import Job, TrainingSlot
from tests.tiny import load_tiny
from tests.train.test_loop import ADAMW, train_all, work

RUN = replace(ADAMW, train=replace(ADAMW.train, scale_weight_norms=None, epochs=1, images_per_concept=8, batch_size=5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "doll"
    write_dataset(out, seed=1, outfits=2, images_per_outfit=6, size=32)
    return out


@pytest.fixture
def model(tiny_model_dir: Path) -> StableDiffusion:
    """One of its own, as its layers may be computed again from some moment on."""
    return load_tiny(tiny_model_dir)


class SmallCard:
    """A card too small for so many pictures without gradient checkpointing, and for fewer with it."""

    def __init__(self, model: StableDiffusion, plain: int, checkpointed: int, patch: pytest.MonkeyPatch) -> None:
        self.model, self.room, self.own = model, (plain, checkpointed), model.predict
        self.passes: list[int] = []  # pictures of each that was trained through
        patch.setattr(model, "predict", self.predict)

    def predict(self, noisy: Tensor, timesteps: Tensor, context: Context) -> Tensor:
        out = self.own(noisy, timesteps, context)
        if torch.is_grad_enabled():
            if len(noisy) > self.room[self.model.unet.is_gradient_checkpointing]:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB. GPU 0 has 11 GiB.")
            self.passes.append(len(noisy))
        return out


def trained(model: StableDiffusion, folder: Path, cache: Path) -> Checkpoint:
    return train_all(work(model, folder, cache, RUN), Job(RUN))[-1]


def assert_near(found: Checkpoint, wanted: Checkpoint) -> None:
    for key, tensor in wanted.state.items():
        torch.testing.assert_close(found.state[key], tensor, atol=2e-5, rtol=1e-3)
    assert found.train_loss == pytest.approx(wanted.train_loss, rel=1e-4)


def test_layers_are_computed_again_before_batches_are_divided(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = trained(model, folder, tmp_path)
    card = SmallCard(model, 4, 5, monkeypatch)
    assert_near(trained(model, folder, tmp_path), wanted)
    assert model.unet.is_gradient_checkpointing and max(card.passes) == 5


def test_batches_are_divided_with_the_same_result(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = trained(model, folder, tmp_path)
    card = SmallCard(model, 0, 2, monkeypatch)
    context, said = work(model, folder, tmp_path, RUN), []

    def on_step(slot: TrainingSlot) -> None:
        said.append(slot.memory_note)
        slot.memory_note = ""

    waiting = iter([Job(RUN)])
    ((slot,),) = train(lambda: next(waiting, None), context, on_step)
    context.adapter.detach()
    assert slot.checkpoint is not None
    assert_near(slot.checkpoint, wanted)
    assert set(card.passes) == {1, 2} and card.passes[:3] == [2, 2, 1]
    assert "parts of 2" in said[0] and not any(said[1:])


def test_what_never_fits_is_said_with_what_to_set(
    model: StableDiffusion, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallCard(model, 0, 0, monkeypatch)
    with pytest.raises(MemoryFull, match=r"adamw does not fit .* one image at a time .*train\.batch_size=2 or"):
        trained(model, folder, tmp_path)
