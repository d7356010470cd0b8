"""One optimizer step of all slots, with less memory where the GPU's is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from autolora.errors import MemoryFull
from autolora.train.batches import Batch, in_parts, padded
from autolora.train.loss import diffusion_loss
from autolora.train.oom_fallback import memory_suggestions, reduce_memory_use
from autolora.train.run import TrainSettings
from autolora.train.slot import TrainingContext, TrainingSlot


def train_step(context: TrainingContext, active: dict[int, TrainingSlot]) -> None:
    """Make one forward and backward pass of the base model for all slots, then each slot's optimizer step.

    If the GPU's memory is too small for a slot that trains alone, the step is repeated with less memory.

    Raises:
        MemoryFull: the step does not fit into the memory in any way.
    """
    batches = {index: active[index].stream.next_batch() for index in sorted(active)}
    for index, slot in active.items():
        slot.set_mode("train")
        context.adapter.draw_rank(index, slot.stream.generators["adapter"])
    while (losses := _try_backward(context, active, batches)) is None:
        ((index, slot),) = active.items()
        reduced = reduce_memory_use(context.model, min(slot.micro_batch_size, len(batches[index].pictures)))
        if reduced is None:
            raise MemoryFull(
                f"a step of {slot.run.name} does not fit into the GPU's memory, even one image at a time with gradient "
                f"checkpointing: set {' or '.join(memory_suggestions(slot.run, context.model))}"
            )
        slot.micro_batch_size, slot.memory_note = reduced
    context.adapter.gather_grads(context.model.loss_scale)
    for index, slot in active.items():
        slot.advance(len(batches[index].pictures), losses[index])
    context.adapter.clear_grads()  # a render may follow and needs their memory


def _try_backward(
    context: TrainingContext, active: dict[int, TrainingSlot], batches: dict[int, Batch]
) -> dict[int, Tensor] | None:
    """Run the backward passes and return the losses by slot.

    Slots whose batches have different bucket resolutions are computed one after the other.

    Returns:
        The losses; None if the GPU's memory was full and one slot trains alone.
    """
    context.adapter.clear_grads()
    losses: dict[int, Tensor] = {}
    try:
        for bucket in dict.fromkeys(batch.pictures[0].bucket for batch in batches.values()):
            same_size = {index: batch for index, batch in batches.items() if batch.pictures[0].bucket == bucket}
            settings = {index: active[index].run.train for index in same_size}
            if len(active) > 1:
                losses |= _backward(context, same_size, settings)
                continue
            ((index, batch),) = same_size.items()
            for part in in_parts(batch, active[index].micro_batch_size):
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
    """Run the backward pass of batches of one bucket resolution and return their losses by slot.

    The model sees one segment per batch, padded to the longest; the padding has no loss.

    Args:
        context: what all slots share.
        batches: the batches by slot.
        settings: the training settings by slot.
        share: the factor of the losses: the share of a whole batch that a micro-batch is.
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
    noise = _to_device(torch.cat([segment.noise for segment in segments]), device)
    timesteps = _to_device(torch.cat([segment.timesteps for segment in segments]), device)
    noisy = context.model.add_noise(clean, noise, timesteps)
    sizes = context.latents.sizes(pictures, flips)
    target = context.model.target(clean, noise, timesteps)
    if preserved:
        preserved_captions = [captions[i] for i in preserved]
        base = base_prediction(context, noisy[preserved], timesteps[preserved], preserved_captions, sizes[preserved])
        target = target.index_copy(0, torch.tensor(preserved, device=device), base)
    losses: dict[int, Tensor] = {}
    with context.adapter.only(*batches), context.adapter.weighted(torch.cat([segment.weights for segment in segments])):
        conditioning = replace(context.prompts.contexts(captions, context.adapter.touches_text_encoder), sizes=sizes)
        predicted = context.model.predict(noisy, timesteps, conditioning)
        for place, (index, recipe) in enumerate(settings.items()):
            part = slice(place * longest, place * longest + len(batches[index].pictures))
            weights = None if masks is None else masks[part] + (1 - masks[part]) * recipe.unmasked_weight
            by_sample = diffusion_loss(context.model, predicted[part], target[part], timesteps[part], recipe, weights)
            losses[index] = by_sample.mean() * share
        # Inside the `with`: gradient checkpointing computes layers again in the backward pass, with the same weights.
        total = torch.stack(list(losses.values())).sum() * context.model.loss_scale
        total.backward()  # type: ignore[no-untyped-call]
    return {index: loss.detach() for index, loss in losses.items()}


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to the device; to a GPU without waiting, from pinned memory."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@torch.no_grad()
def base_prediction(
    context: TrainingContext, noisy: Tensor, timesteps: Tensor, captions: Sequence[str], sizes: Tensor
) -> Tensor:
    """Return the base model's prediction, of `noisy`'s shape: the target of images that preserve the base model.

    This is prior preservation (Ruiz et al. 2023), with the model's own prediction as the target instead of the noise,
    as in Learning without Forgetting (Li and Hoiem 2016).
    """
    with context.adapter.disabled():
        conditioning = replace(context.prompts.contexts(captions, context.adapter.touches_text_encoder), sizes=sizes)
        return context.model.predict(noisy, timesteps, conditioning)
