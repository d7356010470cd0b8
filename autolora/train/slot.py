"""What trains: a job, the slot that trains it, and the context that all slots share."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autolora.adapters.adapter_set import AdapterSet
from autolora.adapters.base import NormStats
from autolora.data.concepts import Dataset
from autolora.data.sources import Picture
from autolora.models.base import BaseModel
from autolora.train.batches import Stream
from autolora.train.caches import LatentCache, PromptCache
from autolora.train.checkpoint import Checkpoint
from autolora.train.init_from_lora import starting_state
from autolora.train.loss import validation_losses
from autolora.train.run import Run


@dataclass(frozen=True)
class Job:
    """A run to train, and the checkpoint that it continues from."""

    run: Run
    resume: Checkpoint | None = None
    name: str = ""  # by which the caller recognizes the job


@dataclass(frozen=True)
class TrainingContext:
    """What all runs of a process share: the frozen model, its adapted layers, the dataset and the caches."""

    model: BaseModel
    adapter: AdapterSet
    dataset: Dataset
    latents: LatentCache
    prompts: PromptCache
    class_pictures: tuple[Picture, ...] = ()  # the base model's renders of the class word, for prior preservation


class TrainingSlot:
    """One run in training: its position, its optimizers and its latest checkpoint."""

    def __init__(self, index: int, job: Job, context: TrainingContext) -> None:
        self.index, self.run, self.name, self.context = index, job.run, job.name, context
        self.stream = Stream(self.run, context.dataset, context.model, context.class_pictures)
        context.adapter.start(index, self.run.adapter, self.stream.generators["adapter"])
        if self.run.init_lora and not job.resume:
            context.adapter.load(starting_state(self.run, context.adapter.state(index), context.model), index)
        self.optimizers = _optimizers(self.run, context.adapter, index)
        self.base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.step, self.optimizer_step, self.seconds = 0, 0, 0.0  # `step` counts the images shown
        self.norms: NormStats | None = None
        self.micro_batch_size = self.run.train.batch_size  # images that pass through the model at once
        self.memory_note = ""  # what was changed since the last step to fit into the GPU's memory
        self.stopped = False
        self.losses: list[Tensor] = []
        train = self.run.train
        self.images_per_epoch = self.run.images_per_epoch(context.dataset)
        self.total_images = self.images_per_epoch * train.epochs
        self.total_optimizer_steps = self.stream.optimizer_steps()
        n_checkpoints = train.epochs * train.checkpoints_per_epoch
        self.checkpoint_images = [
            round(self.images_per_epoch * i / train.checkpoints_per_epoch) for i in range(1, n_checkpoints + 1)
        ]
        self.checkpoint: Checkpoint | None = job.resume
        if job.resume:
            self._restore(job.resume)
            self.stopped = job.resume.done

    def stop(self) -> None:
        """End this run; its slot then takes the next job."""
        self.stopped = True

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.context.adapter.load(checkpoint.state, self.index)
        for optimizer, state in zip(self.optimizers, checkpoint.resume["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.stream.restore(checkpoint.resume["stream"])
        self.optimizer_step = checkpoint.resume["optimizer_step"]
        self.step, self.seconds = checkpoint.step, checkpoint.seconds

    def advance(self, n_images: int, loss: Tensor) -> None:
        """Make one optimizer step of this slot's parameters.

        Args:
            n_images: the images of the batch.
            loss: the batch's loss, on the model's device.
        """
        if self.run.train.max_grad_norm is not None:
            parameters = [
                p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]
            ]
            torch.nn.utils.clip_grad_norm_(parameters, self.run.train.max_grad_norm)
        factor = self.run.schedule.factor(self.optimizer_step, self.total_optimizer_steps)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        if self.run.train.scale_weight_norms is not None:
            self.norms = self.context.adapter.apply_max_norm(self.index, self.run.train.scale_weight_norms)
        self.losses.append(loss)
        self.step += n_images
        self.optimizer_step += 1

    def set_mode(self, mode: str) -> None:
        """Switch optimizers that keep different weights for training and evaluation: `train` or `eval`."""
        for optimizer in self.optimizers:
            switch = getattr(optimizer, mode, None)
            if switch is not None:
                switch()

    def is_checkpoint_due(self) -> bool:
        """Return whether the number of images of a checkpoint was reached since the last one."""
        last = self.checkpoint.step if self.checkpoint else 0
        return any(last < images <= self.step for images in self.checkpoint_images)

    def make_checkpoint(self) -> Checkpoint:
        """Measure the validation loss and make a checkpoint of the present state."""
        context = self.context
        self.set_mode("eval")
        train_loss = float(torch.stack(self.losses).mean())
        val_losses = validation_losses(
            context.model, context.dataset, context.latents, context.prompts, context.adapter, self.index
        )
        self.losses = []
        diverged = not (math.isfinite(train_loss) and math.isfinite(sum(val_losses)))
        self.checkpoint = Checkpoint(
            run=self.run,
            step=self.step,
            epoch=self.step / self.images_per_epoch,
            state=context.adapter.state(self.index),
            resume={
                "optimizers": [on_cpu(optimizer.state_dict()) for optimizer in self.optimizers],
                "stream": self.stream.state(),
                "optimizer_step": self.optimizer_step,
            },
            train_loss=train_loss,
            val_losses=val_losses,
            norms=self.norms,
            seconds=self.seconds,
            done=self.step >= self.total_images or diverged,
            diverged=diverged,
        )
        self.stopped = self.stopped or self.checkpoint.done
        return self.checkpoint


def on_cpu(state: Any) -> Any:
    """A copy of an optimizer's state that takes no memory of the GPU."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: on_cpu(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(on_cpu(value) for value in state)
    return copy.deepcopy(state)


def _optimizers(run: Run, adapter: AdapterSet, slot: int) -> list[torch.optim.Optimizer]:
    """Build the optimizer of the UNet's parameters, and that of the text encoder's where it is adapted too."""
    settings = [(run.optimizer, False), (run.optimizer.for_text_encoder(), True)]
    groups = [(optimizer, adapter.parameters(slot, text_encoder)) for optimizer, text_encoder in settings]
    return [optimizer.build(parameters) for optimizer, parameters in groups if parameters]
