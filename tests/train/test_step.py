"""What a step trains: two optimizers, every rank of a DyLoRA, and the cells of masked images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autolora.adapters.kinds import DyLoRA, LoRA
from autolora.adapters.low_rank import cut
from autolora.adapters.targets import in_text_encoder
from autolora.data.concepts import Dataset
from autolora.models.stable_diffusion import StableDiffusion
from autolora.optim.base import Optimizer
from autolora.optim.optimizers import AdamW, Prodigy
from autolora.optim.schedules import Constant
from autolora.train.batches import Stream
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.loss import validation_losses
from autolora.train.run import Run, TrainSettings
from autolora.train.slot import Job, TrainingContext, TrainingSlot, on_cpu
from autolora.train.step import _backward, train_step
from tests.train.helpers import make_context, train_all
from tests.train.test_stream import masked, mixed  # noqa: F401 - a fixture among them

pytestmark = pytest.mark.slow  # trains, renders or loads many models

BOTH = Run("both", LoRA(dim=2, alpha=1, text_encoder=True), train=TrainSettings(images_per_concept=20, batch_size=4))


@dataclass(frozen=True)
class Sgd(AdamW):
    """Plain gradient descent: a step is the gradient times the learning rate."""

    def build(self, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.lr)


DYLORA = DyLoRA(dim=8, alpha=4, unit=2)


@pytest.mark.parametrize(
    ("optimizer", "setting", "values"),
    [
        (AdamW(1e-3, 1e-4), "lr", (1e-3, 1e-4)),
        (Prodigy(d_coef=2, text_encoder_d_coef=0.5, d0=1e-4), "d_coef", (2, 0.5)),
        (AdamW(1e-3), "lr", (1e-3, 1e-3)),
    ],
    ids=["rates", "prodigys", "one rate"],
)
def test_the_text_encoder_has_its_own_optimizer(
    optimizer: Optimizer,
    setting: str,
    values: tuple[float, float],
    tiny_model: StableDiffusion,
    folder: Path,
    tmp_path: Path,
) -> None:
    run = replace(BOTH, optimizer=optimizer, schedule=Constant())
    context = make_context(tiny_model, folder, tmp_path, run)
    slot = TrainingSlot(0, Job(run), context)
    try:
        for _ in range(15):
            train_step(context, {0: slot})
        deltas = {path: layer.delta for path, layer in context.adapter.layers.items() if layer.delta}
        parts = [
            {id(p) for path, delta in deltas.items() if in_text_encoder(path) == text for p in delta.parameters(0)}
            for text in (False, True)
        ]
    finally:
        context.adapter.detach()
    assert len(slot.optimizers) == 2
    groups = [optimizer.param_groups for optimizer in slot.optimizers]
    assert [{id(p) for group in listed for p in group["params"]} for listed in groups] == parts
    assert all(parts) and not parts[0] & parts[1]
    assert [{group[setting] for group in listed} for listed in groups] == [{value} for value in values]
    if isinstance(optimizer, Prodigy):  # each has its own estimate
        (unet,), (text_encoder,) = groups
        assert unet["d"] != text_encoder["d"] and min(unet["d"], text_encoder["d"]) > optimizer.d0


def test_every_rank_of_a_dylora_has_learned(
    tiny_model: StableDiffusion,
    folder: Path,
    tmp_path: Path,
) -> None:
    """Each cut has a smaller validation loss than the base model."""
    settings = TrainSettings(epochs=1, images_per_concept=120, batch_size=4)
    run = Run("dylora", DYLORA, AdamW(lr=3e-3), Constant(), settings)
    context = make_context(tiny_model, folder, tmp_path, run)
    assert run.optimizer_steps(context.dataset) == 60

    def loss(context: TrainingContext, slot: int | None) -> float:
        return sum(
            validation_losses(tiny_model, context.dataset, context.latents, context.prompts, context.adapter, slot)
        )

    state = train_all(context, Job(run))[-1].state
    fresh = make_context(tiny_model, folder, tmp_path, run)
    try:
        base = loss(fresh, None)
        losses_by_rank = []
        for rank in (2, 4, 6, 8):
            fresh.adapter.load(cut(state, rank))
            losses_by_rank.append(loss(fresh, 0))
    finally:
        fresh.adapter.detach()
    assert max(losses_by_rank) < 0.95 * base


def test_cells_outside_a_mask_have_the_weight_of_the_recipe(
    tiny_model: StableDiffusion,
    mixed: Dataset,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The loss of a masked image and one without a mask equals a loss computed cell by cell."""
    square = [p for p in mixed.pictures if p.width == p.height]
    dataset = masked(square[0].path, mixed)
    pictures = tuple(next(p for p in dataset.pictures if p.path == original.path) for original in square[:2])
    assert [picture.mask is not None for picture in pictures] == [True, False]
    run = Run("masked", LoRA(dim=2), train=TrainSettings(unmasked_weight=0.3, min_snr_gamma=None, batch_size=2))
    plain = make_context(tiny_model, mixed.root, tmp_path, run)
    context = replace(plain, dataset=dataset, latents=LatentCache(tiny_model, tmp_path / "l"))
    try:
        batch = Stream(run, dataset, tiny_model).next_batch()
        generator = torch.Generator().manual_seed(0)
        batch = replace(
            batch,
            pictures=pictures,
            captions=tuple(picture.caption for picture in pictures),
            noise=torch.randn(2, *tiny_model.latent_shape, generator=generator),
            timesteps=torch.tensor([300, 700]),
            preserved=(False, False),
            weights=torch.ones(2),
            flips=(False, False),
        )
        context.adapter.start(0, run.adapter, generator)  # its delta is zero: the errors are the base model's
        loss = float(_backward(context, {0: batch}, {0: run.train})[0])
    finally:
        context.adapter.detach()
    clean = context.latents.latents(pictures, batch.flips)
    noisy = tiny_model.add_noise(clean, batch.noise, batch.timesteps)
    conditioning = PromptCache(tiny_model).contexts(batch.captions, False)
    with torch.no_grad():
        predicted = tiny_model.predict(noisy, batch.timesteps, conditioning)
    errors = (predicted - tiny_model.target(clean, batch.noise, batch.timesteps)).numpy().astype(float) ** 2
    masks = context.latents.masks(pictures, batch.flips)
    assert masks is not None and 0.4 < float(masks[0].mean()) < 0.6

    def expected_loss(unmasked: float) -> float:
        losses = []
        for error, mask in zip(errors, masks.numpy().astype(float), strict=True):
            weights = (mask + unmasked * (1 - mask))[0]
            losses.append((error.mean(axis=0) * weights).sum() / weights.sum())
        return float(np.mean(losses))

    assert loss == pytest.approx(expected_loss(0.3), rel=1e-5)
    assert all(loss != pytest.approx(expected_loss(other), rel=1e-3) for other in (0.0, 1.0))


def test_large_gradients_are_clipped_for_each_slot_alone(
    tiny_model: StableDiffusion, folder: Path, tmp_path: Path
) -> None:
    """An SGD step is as long as the clipped gradient; one slot's large gradient does not shorten the other's step."""
    run = Run("sgd", LoRA(dim=2, alpha=1), Sgd(0.5), Constant(), TrainSettings(images_per_concept=8, batch_size=4))
    lengths = []
    for norms in ((None,), (1e-6,), (1e-6, None)):
        runs = [replace(run, train=replace(run.train, max_grad_norm=norm)) for norm in norms]
        context = make_context(tiny_model, folder, tmp_path, run, slots=len(runs))
        try:
            slots = {index: TrainingSlot(index, Job(one), context) for index, one in enumerate(runs)}
            before = [context.adapter.state(index) for index in slots]
            train_step(context, slots)
            moved = [
                [context.adapter.state(index)[key] - tensor for key, tensor in state.items()]
                for index, state in enumerate(before)
            ]
            lengths.append([float(torch.cat([change.flatten() for change in one]).norm()) for one in moved])
        finally:
            context.adapter.detach()
    (free,), (clipped,), (first, second) = lengths
    assert free > 1e-5
    assert clipped == pytest.approx(0.5e-6, rel=1e-2) and first == pytest.approx(0.5e-6, rel=1e-2)
    assert second == pytest.approx(free, rel=1e-3)


def test_a_checkpoint_holds_the_optimizer_on_the_cpu() -> None:
    state: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.ones(2)}},
        "param_groups": [{"lr": 0.1, "p": (1, 2)}],
    }
    copied = on_cpu(state)
    assert copied["param_groups"] == state["param_groups"] and copied["param_groups"] is not state["param_groups"]
    state["state"][0]["m"] += 1
    assert torch.equal(copied["state"][0]["m"], torch.ones(2)) and copied["state"][0]["m"].device.type == "cpu"
