"""The training loop: a generator of rounds that knows nothing of studies, scores or reports."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from autolora import stop
from autolora.adapters.adapter_set import AdapterSet
from autolora.adapters.base import NormStats
from autolora.data.concepts import Dataset
from autolora.data.sources import Picture
from autolora.errors import MemoryFull
from autolora.models.base import BaseModel
from autolora.train.batches import Batch, LatentCache, PromptCache, Stream, in_parts, padded
from autolora.train.checkpoint import Checkpoint
from autolora.train.init_from_lora import starting_state
from autolora.train.loss import diffusion_loss, validation_losses
from autolora.train.oom_fallback import memory_suggestions, reduce_memory_use
from autolora.train.run import Run, TrainSettings


@dataclass(frozen=True)
class Job:
    """A run for a free slot, and the checkpoint it continues from."""

    run: Run
    resume: Checkpoint | None = None
    name: str = ""  # by which the caller knows it again


class TrainingSlot:
    """One run in training: its position, its optimizer and its latest checkpoint."""

    def __init__(self, index: int, assignment: Job, context: TrainingContext) -> None:
        self.index, self.run, self.name, self.context = index, assignment.run, assignment.name, context
        self.stream = Stream(self.run, context.dataset, context.model, context.class_pictures)
        context.adapter.start(index, self.run.adapter, self.stream.generators["adapter"])
        if self.run.init_lora and not assignment.resume:
            context.adapter.load(starting_state(self.run, context.adapter.state(index), context.model), index)
        self.optimizers = _optimizers(self.run, context.adapter, index)
        self.base_rates = [[group["lr"] for group in one.param_groups] for one in self.optimizers]
        self.step, self.optimizer_step, self.seconds = 0, 0, 0.0
        self.norms: NormStats | None = None
        self.at_once = self.run.train.batch_size  # pictures that pass the model together
        self.relief = ""  # what was done since the last step to fit into the GPU's memory
        self.stopped = False
        self.losses: list[Tensor] = []
        self.epoch_steps = self.run.images_per_epoch(context.dataset)
        self.total_steps = self.epoch_steps * self.run.train.epochs
        self.total_optimizer_steps = self.stream.optimizer_steps()
        per_epoch = self.run.train.checkpoints_per_epoch
        self.marks = [round(self.epoch_steps * i / per_epoch) for i in range(1, self.run.train.epochs * per_epoch + 1)]
        self.checkpoint: Checkpoint | None = assignment.resume
        if assignment.resume:
            self._restore(assignment.resume)
            self.stopped = assignment.resume.done

    def stop(self) -> None:
        """End this run; its slot asks for the next one."""
        self.stopped = True

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.context.adapter.load(checkpoint.state, self.index)
        for optimizer, state in zip(self.optimizers, checkpoint.resume["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.stream.restore(checkpoint.resume["stream"])
        self.optimizer_step = checkpoint.resume["optimizer_step"]
        self.step, self.seconds = checkpoint.step, checkpoint.seconds

    def advance(self, shown: int, loss: Tensor) -> None:
        """One optimizer step on this slot's own parameters."""
        factor = self.run.schedule.factor(self.optimizer_step, self.total_optimizer_steps)
        for optimizer, rates in zip(self.optimizers, self.base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        if self.run.train.scale_weight_norms is not None:
            self.norms = self.context.adapter.apply_max_norm(self.index, self.run.train.scale_weight_norms)
        self.losses.append(loss)
        self.step += shown
        self.optimizer_step += 1

    def turn(self, to: str) -> None:
        """To `train` or `eval`, where an optimizer keeps other weights for these."""
        for optimizer in self.optimizers:
            turn = getattr(optimizer, to, None)
            if turn is not None:
                turn()

    def due(self) -> bool:
        """Whether a checkpoint mark was just reached or passed."""
        last = self.checkpoint.step if self.checkpoint else 0
        return any(last < mark <= self.step for mark in self.marks)

    def take(self) -> Checkpoint:
        """Make the checkpoint of this moment."""
        context = self.context
        self.turn("eval")
        train_loss = float(torch.stack(self.losses).mean())
        val_losses = validation_losses(
            context.model, context.dataset, context.latents, context.prompts, context.adapter, self.index
        )
        self.losses = []
        diverged = not (math.isfinite(train_loss) and math.isfinite(sum(val_losses)))
        self.checkpoint = Checkpoint(
            run=self.run,
            step=self.step,
            epoch=self.step / self.epoch_steps,
            state=context.adapter.state(self.index),
            resume={
                "optimizers": [copy.deepcopy(one.state_dict()) for one in self.optimizers],  # they go on changing
                "stream": self.stream.state(),
                "optimizer_step": self.optimizer_step,
            },
            train_loss=train_loss,
            val_losses=val_losses,
            norms=self.norms,
            seconds=self.seconds,
            done=self.step >= self.total_steps or diverged,
            diverged=diverged,
        )
        self.stopped = self.stopped or self.checkpoint.done
        return self.checkpoint


def _optimizers(run: Run, adapter: AdapterSet, slot: int) -> list[torch.optim.Optimizer]:
    """One for the UNet, and one for the text encoder where it is adapted too."""
    parts = [(run.optimizer, False), (run.optimizer.for_text_encoder(), True)]
    found = [(spec, adapter.parameters(slot, text_encoder)) for spec, text_encoder in parts]
    return [spec.build(parameters) for spec, parameters in found if parameters]


@dataclass(frozen=True)
class TrainingContext:
    """What all runs of a process share: the frozen model, its wrapped layers, the pictures and the caches."""

    model: BaseModel
    adapter: AdapterSet
    dataset: Dataset
    latents: LatentCache
    prompts: PromptCache
    class_pictures: tuple[Picture, ...] = ()  # the class word as the base model draws it, for runs that preserve it


def train(
    next_run: Callable[[], Job | None],
    context: TrainingContext,
    on_step: Callable[[TrainingSlot], None] | None = None,
) -> Iterator[list[TrainingSlot]]:
    """Train runs in every slot of the bench's adapter and yield a round whenever some reached a checkpoint.

    A slot whose run ended, or was stopped by `slot.stop()`, calls `next_run()`; training ends when all got None.
    A resumed checkpoint comes first, before any step: what the caller had to decide on it may not have been decided.
    """
    active: dict[int, TrainingSlot] = {}
    exhausted = False
    while True:
        for index in range(context.adapter.slots):
            if index not in active and not exhausted:
                assignment = next_run()
                exhausted = assignment is None
                if assignment is not None:
                    active[index] = TrainingSlot(index, assignment, context)
                    if assignment.resume:
                        yield [active[index]]
        active = {index: slot for index, slot in active.items() if not slot.stopped}
        if not active and exhausted:
            return
        if not active:
            continue
        stop.check()
        began = time.perf_counter()
        train_step(context, active)
        for slot in active.values():
            slot.seconds += (time.perf_counter() - began) / len(active)
            if on_step:
                on_step(slot)
        ready = [slot for slot in active.values() if slot.due()]
        for slot in ready:
            slot.take()
        if ready:
            yield ready
            active = {index: slot for index, slot in active.items() if not slot.stopped}


def train_one(run: Run, context: TrainingContext) -> Iterator[Checkpoint]:
    """One run's checkpoints from its start to its end, on a bench of one slot."""
    waiting = iter([Job(run)])
    for (slot,) in train(lambda: next(waiting, None), context):
        assert slot.checkpoint is not None
        yield slot.checkpoint


def train_step(context: TrainingContext, active: dict[int, TrainingSlot]) -> None:
    """A forward and backward of the base for all slots, then each slot's own optimizer step.

    Where the GPU's memory is too small for a slot that is alone it is tried again in less of it.

    Raises:
        MemoryFull: that is not enough.
    """
    batches = {index: active[index].stream.next_batch() for index in sorted(active)}
    for index, slot in active.items():
        slot.turn("train")
        context.adapter.draw_rank(index, slot.stream.generators["adapter"])
    while (losses := _try(context, active, batches)) is None:
        ((index, slot),) = active.items()
        room = reduce_memory_use(context.model, min(slot.at_once, len(batches[index].pictures)))
        if room is None:
            raise MemoryFull(
                f"a step of {slot.run.name} does not fit into the GPU's memory, one picture at a time and with its "
                f"layers computed again: set {' or '.join(memory_suggestions(slot.run, context.model))}"
            )
        slot.at_once, slot.relief = room
    context.adapter.gather_grads(context.model.loss_scale)
    for index, slot in active.items():
        slot.advance(len(batches[index].pictures), losses[index])
    context.adapter.clear_grads()  # what follows may be a render, which needs their memory


def _try(
    context: TrainingContext, active: dict[int, TrainingSlot], batches: dict[int, Batch]
) -> dict[int, Tensor] | None:
    """The losses by slot, after their backward passes; None where the GPU's memory was full and one slot trains alone.

    Slots whose batches have different frames take one after the other.
    """
    context.adapter.clear_grads()
    losses: dict[int, Tensor] = {}
    try:
        for frame in dict.fromkeys(batch.pictures[0].bucket for batch in batches.values()):
            together = {index: batch for index, batch in batches.items() if batch.pictures[0].bucket == frame}
            settings = {index: active[index].run.train for index in together}
            if len(active) > 1:
                losses |= _backward(context, together, settings)
                continue
            ((index, batch),) = together.items()
            for part in in_parts(batch, active[index].at_once):
                share = len(part.pictures) / len(batch.pictures)
                loss = _backward(context, {index: part}, settings, share)[index]
                losses[index] = losses[index] + loss if index in losses else loss
    except torch.OutOfMemoryError:
        if len(active) > 1:
            raise
        return None
    return losses


def _backward(
    context: TrainingContext, batches: dict[int, Batch], settings: dict[int, TrainSettings], share: float = 1.0
) -> dict[int, Tensor]:
    """The losses of batches of one frame by slot, after their backward pass; `share` is what they count.

    What the model sees is a segment for each of them, padded to the longest; padding carries no loss.
    """
    longest = max(len(batch.pictures) for batch in batches.values())
    segments = [padded(batch, longest) for batch in batches.values()]
    pictures = [picture for segment in segments for picture in segment.pictures]
    flips = [flip for segment in segments for flip in segment.flips]
    captions = [caption for segment in segments for caption in segment.captions]
    preserved = [i for i, flag in enumerate(flag for segment in segments for flag in segment.preserved) if flag]
    device = context.model.device
    clean = context.latents.latents(pictures, flips)
    masks = context.latents.masks(pictures, flips)
    noise = _sent(torch.cat([segment.noise for segment in segments]), device)
    timesteps = _sent(torch.cat([segment.timesteps for segment in segments]), device)
    noisy = context.model.add_noise(clean, noise, timesteps)
    sizes = context.latents.sizes(pictures, flips)
    target = context.model.target(clean, noise, timesteps)
    if preserved:
        shown = [captions[i] for i in preserved]
        own = base_prediction(context, noisy[preserved], timesteps[preserved], shown, sizes[preserved])
        target = target.index_copy(0, torch.tensor(preserved, device=device), own)
    losses: dict[int, Tensor] = {}
    with context.adapter.only(*batches), context.adapter.weighted(torch.cat([segment.weights for segment in segments])):
        conditioning = replace(context.prompts.contexts(captions, context.adapter.touches_text_encoder), sizes=sizes)
        predicted = context.model.predict(noisy, timesteps, conditioning)
        for place, (index, recipe) in enumerate(settings.items()):
            part = slice(place * longest, place * longest + len(batches[index].pictures))
            weights = None if masks is None else masks[part] + (1 - masks[part]) * recipe.unmasked_weight
            each = diffusion_loss(context.model, predicted[part], target[part], timesteps[part], recipe, weights)
            losses[index] = each.mean() * share
        # Still at these weights: with gradient checkpointing, layers are computed once more on the way back.
        whole = torch.stack(list(losses.values())).sum() * context.model.loss_scale
        whole.backward()  # type: ignore[no-untyped-call]
    return {index: loss.detach() for index, loss in losses.items()}


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On its way to a GPU from pinned memory, so that the step need not wait for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@torch.no_grad()
def base_prediction(
    context: TrainingContext, noisy: Tensor, timesteps: Tensor, captions: Sequence[str], sizes: Tensor
) -> Tensor:
    """What the base model alone answers, of `noisy`'s shape: the target where it must stay as it is.

    Prior preservation (Ruiz et al. 2023) on the model's own answers instead of its pictures' noise, as Learning without
    Forgetting (Li and Hoiem 2016) has it.
    """
    with context.adapter.disabled():
        conditioning = replace(context.prompts.contexts(captions, context.adapter.touches_text_encoder), sizes=sizes)
        return context.model.predict(noisy, timesteps, conditioning)
