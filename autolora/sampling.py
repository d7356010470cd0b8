"""Renders prompts at seeds and LoRA weights; base renders are cached on disk for every trial and process."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from autolora import stop
from autolora.adapters.adapter_set import AdapterSet
from autolora.adapters.base import AdaptedLayer
from autolora.files import atomic_path
from autolora.models.base import BaseModel, Context, stack_contexts
from autolora.models.settings import RenderSettings
from autolora.train.batches import latent_shape

Images = NDArray[np.uint8]  # (N, H, W, 3)
Advance = Callable[[int], None]  # hears how many more pictures are ready


@dataclass(frozen=True)
class RenderRequest:
    """One picture to render: `weight` is the LoRA's, 0 being the base model."""

    prompt: str
    seed: int
    weight: float


@torch.inference_mode()
def render(
    model: BaseModel,
    shots: Sequence[RenderRequest],
    settings: RenderSettings,
    adapter: AdapterSet | None = None,
    advance: Advance | None = None,
) -> Images:
    """Render shots with classifier-free guidance; base and several weights ride in one batch.

    Every picture starts from noise of its own seed, so it does not depend on the batch it rides in. The
    LoRA's weight also holds for the unconditional half, as in diffusers and the usual interfaces.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        ValueError: weights without an adapter, an attached one not given, or an adapter of several slots.
    """
    _check_adapter(model, shots, adapter)
    side = settings.side(model.resolution)
    pictures = [np.zeros((0, side, side, 3), np.uint8)]
    batches = [shots[i : i + settings.batch_size] for i in range(0, len(shots), settings.batch_size)]
    trained = adapter if adapter is not None and adapter.touches_text_encoder else None
    known = _contexts(model, batches, settings, trained)
    begin, size = 0, settings.batch_size
    while begin < len(shots):
        stop.check()
        batch = shots[begin : begin + size]
        context = stack_contexts([known[key] for key in _keys(model, batch, settings, trained)])
        if model.guidance_embeds:
            context = replace(context, guidance=torch.full((len(batch),), settings.guidance_scale, device=model.device))
        drawn = _draw(model, batch, context, settings, adapter)
        if drawn is None:  # the GPU's memory is full: a picture does not depend on how many are drawn at once
            size = math.ceil(len(batch) / 2)
            continue
        pictures.append(drawn)
        begin += len(batch)
        if advance:
            advance(len(batch))
    return np.concatenate(pictures)


def _draw(
    model: BaseModel,
    batch: Sequence[RenderRequest],
    context: Context,
    settings: RenderSettings,
    adapter: AdapterSet | None,
) -> Images | None:
    """The pictures of a batch; None where the GPU's memory is too small for all of them at once."""
    halves = [shot.weight for shot in batch] * (len(context) // len(batch))
    try:
        with _weighted(adapter, halves, model), model.fixed_context():
            latents = _denoise(model, batch, context, settings)
        return to_uint8(model.decode_latents(latents))
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        return None


def _check_adapter(model: BaseModel, shots: Sequence[RenderRequest], adapter: AdapterSet | None) -> None:
    """Refuse what would silently render something else than asked."""
    if adapter is not None:
        if adapter.slots != 1:
            raise ValueError(f"rendering takes an adapter of one slot, got {adapter.slots}")
        return
    if any(shot.weight for shot in shots):
        raise ValueError("shots with a LoRA weight need an adapter")
    if any(isinstance(module, AdaptedLayer) for root in model.modules.values() for module in root.modules()):
        raise ValueError("an adapter is attached to the model: pass it, else its LoRA is in every base render")


@contextmanager
def _weighted(adapter: AdapterSet | None, weights: Sequence[float], model: BaseModel) -> Iterator[None]:
    """The adapter at one weight a sample; switched off where all are 0, which is faster."""
    if adapter is None:
        yield
        return
    per_sample = torch.tensor(weights, device=model.device)
    with adapter.weighted(per_sample), nullcontext() if any(weights) else adapter.disabled():
        yield


_Key = tuple[str, float]  # a prompt, and the weight that the text encoder runs at


def _keys(
    model: BaseModel, batch: Sequence[RenderRequest], settings: RenderSettings, trained: AdapterSet | None
) -> list[_Key]:
    """Unconditional, then conditional prompts, 2B of them; only the latter without guidance, or where it is told."""
    keys = [(settings.prompt(shot.prompt), shot.weight if trained else 0.0) for shot in batch]
    guided = settings.guidance_scale != 1 and not model.guidance_embeds
    return [(settings.negative_prompt, weight) for _, weight in keys] + keys if guided else keys


def _contexts(
    model: BaseModel, batches: Sequence[Sequence[RenderRequest]], settings: RenderSettings, trained: AdapterSet | None
) -> dict[_Key, Context]:
    """The contexts of all batches, before anything is drawn: so the text encoders come to the device once.

    Args:
        trained: the adapter where it changes the text encoders.
    """
    known: dict[_Key, Context] = {}
    with model.on_device(*model.text_encoder_names):
        for batch in batches:
            new = [key for key in dict.fromkeys(_keys(model, batch, settings, trained)) if key not in known]
            if new:
                with _weighted(trained, [weight for _, weight in new], model):
                    known.update(zip(new, model.encode_prompts([prompt for prompt, _ in new]).rows(), strict=True))
    return known


def _denoise(model: BaseModel, batch: Sequence[RenderRequest], context: Context, settings: RenderSettings) -> Tensor:
    """Latents of a batch from each shot's own noise, guided as in Ho and Salimans (2022)."""
    shape = latent_shape(model, (settings.side(model.resolution),) * 2)
    sampler = model.sampler(settings.scheduler, settings.num_inference_steps, shape)
    # Each drawn alone and on the CPU: the same on every device, in every batch and in diffusers.
    sources = [torch.Generator().manual_seed(shot.seed) for shot in batch]
    noise = [torch.randn(shape, generator=source) for source in sources]
    latents: Tensor = torch.stack(noise).to(model.device) * sampler.init_noise_sigma
    copies = len(context) // len(batch)
    for t in sampler.timesteps:
        noisy = sampler.scale_model_input(torch.cat([latents] * copies), t)
        predicted = model.predict(noisy, t.to(model.device).expand(len(noisy)), context)
        if copies == 2:
            plain, prompted = predicted.chunk(2)
            predicted = plain + settings.guidance_scale * (prompted - plain)
            predicted = _rescaled(predicted, prompted, settings.guidance_rescale)
        latents = sampler.step(predicted, t, latents).prev_sample
    return latents


def _rescaled(guided: Tensor, prompted: Tensor, share: float) -> Tensor:
    """Guided predictions brought back towards the deviation of prompted ones (Lin et al. 2023, section 3.4)."""
    if not share:
        return guided
    deviations = [one.std(dim=(1, 2, 3), keepdim=True) for one in (prompted, guided)]
    return share * guided * (deviations[0] / deviations[1]) + (1 - share) * guided


def to_uint8(pixels: Tensor) -> Images:
    """Decoded pixels as pictures: (B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


class BaseRenders:
    """The base model's renders, each a lossless file that any number of processes may read and write."""

    def __init__(self, model: BaseModel, settings: RenderSettings, folder: Path) -> None:
        self.model, self.settings, self.folder = model, settings, folder
        # Keys that begin with "_" are bookkeeping of diffusers, and differ between processes.
        plain = model.sampler(settings.scheduler)
        sampler = {key: str(value) for key, value in plain.config.items() if not key.startswith("_")}
        self.side = settings.side(model.resolution)
        recipe = [
            model.base_hash,
            self.side,
            settings.num_inference_steps,
            settings.guidance_scale,
            settings.negative_prompt,
        ]
        more = {
            "dtype": None if model.dtype == torch.float32 else str(model.dtype),
            "quantize": model.settings.quantize,
            "clip_skip": model.clip_skip,
            "guidance_rescale": settings.guidance_rescale,
            "prefix": settings.prompt_prefix,
        }
        unusual = {name: value for name, value in more.items() if value}  # what is usual leaves older files their names
        recipe = [*recipe, *([unusual] if unusual else [])]
        self._stem = json.dumps([*recipe, type(plain).__name__, sampler], sort_keys=True)
        self._memory: dict[tuple[str, int], Images] = {}

    def path(self, prompt: str, seed: int) -> Path:
        """Where the render of a prompt and seed lies."""
        digest = hashlib.sha256(f"{self._stem}|{seed}|{prompt}".encode()).hexdigest()
        return self.folder / f"{digest[:32]}.png"

    def render(
        self,
        shots: Sequence[tuple[str, int]],
        advance: Advance | None = None,
        adapter: AdapterSet | None = None,
    ) -> Images:
        """(prompt, seed) pairs to (N, H, W, 3) uint8; only what is not cached yet is rendered.

        Give the adapter attached to the model, if there is one, so that it is switched off. Finished
        batches are kept even if a later one is interrupted.
        """
        missing = [shot for shot in dict.fromkeys(shots) if not self._find(*shot)]
        if advance and len(missing) < len(shots):
            advance(len(shots) - len(missing))
        for start in range(0, len(missing), self.settings.batch_size):
            batch = missing[start : start + self.settings.batch_size]
            fresh = render(self.model, [RenderRequest(p, s, 0.0) for p, s in batch], self.settings, adapter, advance)
            for (prompt, seed), picture in zip(batch, fresh, strict=True):
                with atomic_path(self.path(prompt, seed)) as temporary:
                    Image.fromarray(picture).save(temporary)
                self._memory[prompt, seed] = picture
        if not shots:
            return np.zeros((0, self.side, self.side, 3), np.uint8)
        return np.stack([self._memory[shot] for shot in shots])

    def _find(self, prompt: str, seed: int) -> bool:
        """Whether a render is in memory, or could be read from its file (a broken one is rendered again)."""
        if (prompt, seed) in self._memory:
            return True
        try:
            with Image.open(self.path(prompt, seed)) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError):  # missing, cut short or no picture
            return False
        if picture.shape != (self.side, self.side, 3):
            return False
        self._memory[prompt, seed] = picture
        return True
