"""Renders prompts at given seeds and LoRA weights, and caches the base model's renders on disk."""

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
from autolora.train.caches import latent_shape

Images = NDArray[np.uint8]  # (N, H, W, 3)
Advance = Callable[[int], None]  # is called with the number of images that were added


@dataclass(frozen=True)
class RenderRequest:
    """One image to render."""

    prompt: str
    seed: int
    weight: float  # of the LoRA; 0 renders the base model


@torch.inference_mode()
def render(
    model: BaseModel,
    requests: Sequence[RenderRequest],
    settings: RenderSettings,
    adapter: AdapterSet | None = None,
    advance: Advance | None = None,
) -> Images:
    """Render the requests with classifier-free guidance, in batches that mix LoRA weights.

    Each image starts from the noise of its own seed, so it does not depend on the other images of its batch. The LoRA
    weight also applies to the unconditional prediction, as in diffusers and the common user interfaces.

    Args:
        model: the base model, with the adapter attached.
        requests: the images to render.
        settings: steps, guidance, size and batch size.
        adapter: the adapter that is attached to the model, with one slot; None: none is attached.
        advance: is called after each batch with its size.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        ValueError: a request has a LoRA weight but there is no adapter, an attached adapter was not passed, or the
            adapter has several slots.
    """
    _check_adapter(model, requests, adapter)
    side = settings.side(model.resolution)
    images = [np.zeros((0, side, side, 3), np.uint8)]
    batches = [requests[i : i + settings.batch_size] for i in range(0, len(requests), settings.batch_size)]
    text_adapter = adapter if adapter is not None and adapter.touches_text_encoder else None
    contexts = _encode_prompts(model, batches, settings, text_adapter)
    start, size = 0, settings.batch_size
    while start < len(requests):
        stop.check()
        batch = requests[start : start + size]
        context = stack_contexts([contexts[key] for key in _context_keys(model, batch, settings, text_adapter)])
        if model.guidance_embeds:
            context = replace(context, guidance=torch.full((len(batch),), settings.guidance_scale, device=model.device))
        rendered = _render_batch(model, batch, context, settings, adapter)
        if rendered is None:  # out of memory; a smaller batch renders the same images
            size = math.ceil(len(batch) / 2)
            continue
        images.append(rendered)
        start += len(batch)
        if advance:
            advance(len(batch))
    return np.concatenate(images)


def _render_batch(
    model: BaseModel,
    batch: Sequence[RenderRequest],
    context: Context,
    settings: RenderSettings,
    adapter: AdapterSet | None,
) -> Images | None:
    """Render one batch; return None if the GPU runs out of memory for a batch of more than one image."""
    weights = [request.weight for request in batch] * (len(context) // len(batch))
    try:
        with _at_weights(adapter, weights, model), model.fixed_context():
            latents = _denoise(model, batch, context, settings)
        return to_uint8(model.decode_latents(latents))
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
        return None


def _check_adapter(model: BaseModel, requests: Sequence[RenderRequest], adapter: AdapterSet | None) -> None:
    """Refuse calls that would silently render something else than what was requested."""
    if adapter is not None:
        if adapter.slots != 1:
            raise ValueError(f"rendering needs an adapter with one slot, got {adapter.slots}")
        return
    if any(request.weight for request in requests):
        raise ValueError("requests with a LoRA weight need an adapter")
    if any(isinstance(module, AdaptedLayer) for root in model.modules.values() for module in root.modules()):
        raise ValueError("an adapter is attached to the model: pass it, or its LoRA changes every base render")


@contextmanager
def _at_weights(adapter: AdapterSet | None, weights: Sequence[float], model: BaseModel) -> Iterator[None]:
    """Apply the adapter at one weight per sample; if all weights are 0 it is switched off, which is faster."""
    if adapter is None:
        yield
        return
    per_sample = torch.tensor(weights, device=model.device)
    with adapter.weighted(per_sample), nullcontext() if any(weights) else adapter.disabled():
        yield


_ContextKey = tuple[str, float]  # a prompt, and the LoRA weight that the text encoder runs at


def _context_keys(
    model: BaseModel, batch: Sequence[RenderRequest], settings: RenderSettings, text_adapter: AdapterSet | None
) -> list[_ContextKey]:
    """Return the keys of a batch's contexts: the unconditional ones, then the conditional ones.

    Without guidance, and for models that take the guidance scale as an input, there are only conditional ones.
    """
    keys = [(settings.prompt(request.prompt), request.weight if text_adapter else 0.0) for request in batch]
    guided = settings.guidance_scale != 1 and not model.guidance_embeds
    return [(settings.negative_prompt, weight) for _, weight in keys] + keys if guided else keys


def _encode_prompts(
    model: BaseModel,
    batches: Sequence[Sequence[RenderRequest]],
    settings: RenderSettings,
    text_adapter: AdapterSet | None,
) -> dict[_ContextKey, Context]:
    """Encode the prompts of all batches before rendering, so that the text encoders move to the device only once.

    Args:
        model: the base model.
        batches: the requests of each batch.
        settings: prompt prefix, negative prompt and guidance.
        text_adapter: the adapter if it changes the text encoders.
    """
    contexts: dict[_ContextKey, Context] = {}
    with model.on_device(*model.text_encoder_names):
        for batch in batches:
            keys = dict.fromkeys(_context_keys(model, batch, settings, text_adapter))
            new = [key for key in keys if key not in contexts]
            if new:
                with _at_weights(text_adapter, [weight for _, weight in new], model):
                    encoded = model.encode_prompts([prompt for prompt, _ in new])
                    contexts.update(zip(new, encoded.rows(), strict=True))
    return contexts


def _denoise(model: BaseModel, batch: Sequence[RenderRequest], context: Context, settings: RenderSettings) -> Tensor:
    """Denoise a batch, each image from its own noise, with the guidance of Ho and Salimans (2022)."""
    shape = latent_shape(model, (settings.side(model.resolution),) * 2)
    sampler = model.sampler(settings.scheduler, settings.num_inference_steps, shape)
    # Each image's noise is drawn by itself on the CPU, so it is the same on every device, in every batch, in diffusers.
    generators = [torch.Generator().manual_seed(request.seed) for request in batch]
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    latents: Tensor = torch.stack(noise).to(model.device) * sampler.init_noise_sigma
    copies = len(context) // len(batch)
    for t in sampler.timesteps:
        noisy = sampler.scale_model_input(torch.cat([latents] * copies), t)
        prediction = model.predict(noisy, t.to(model.device).expand(len(noisy)), context)
        if copies == 2:
            unconditional, conditional = prediction.chunk(2)
            prediction = unconditional + settings.guidance_scale * (conditional - unconditional)
            prediction = _rescale_guidance(prediction, conditional, settings.guidance_rescale)
        latents = sampler.step(prediction, t, latents).prev_sample
    return latents


def _rescale_guidance(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Move the standard deviation of guided predictions towards the conditional one's (Lin et al. 2023, section 3.4).

    diffusers' `rescale_noise_cfg` multiplies in another order and differs in the last bit, which would change renders
    and scores of earlier studies.
    """
    if not share:
        return guided
    conditional_std, guided_std = (part.std(dim=(1, 2, 3), keepdim=True) for part in (conditional, guided))
    return share * guided * (conditional_std / guided_std) + (1 - share) * guided


def to_uint8(pixels: Tensor) -> Images:
    """Convert decoded pixels to images: (B, 3, H, W) in [-1, 1] -> (B, H, W, 3) uint8."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round()
    return levels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


class BaseRenders:
    """The base model's renders, cached as lossless files that any number of processes may read and write."""

    def __init__(self, model: BaseModel, settings: RenderSettings, folder: Path) -> None:
        self.model, self.settings, self.folder = model, settings, folder
        scheduler = model.sampler(settings.scheduler)
        # Keys that begin with "_" are bookkeeping of diffusers and differ between processes.
        scheduler_config = {key: str(value) for key, value in scheduler.config.items() if not key.startswith("_")}
        self.side = settings.side(model.resolution)
        options = {
            "dtype": None if model.dtype == torch.float32 else str(model.dtype),
            "quantize": model.settings.quantize,
            "clip_skip": model.clip_skip,
            "guidance_rescale": settings.guidance_rescale,
            "prefix": settings.prompt_prefix,
        }
        # Only options that differ from their defaults enter the key, so that older cache files keep their names.
        changed = {name: value for name, value in options.items() if value}
        key = [
            model.base_hash,
            self.side,
            settings.num_inference_steps,
            settings.guidance_scale,
            settings.negative_prompt,
            *([changed] if changed else []),
            type(scheduler).__name__,
            scheduler_config,
        ]
        self._key = json.dumps(key, sort_keys=True)
        self._memory: dict[tuple[str, int], Images] = {}

    def path(self, prompt: str, seed: int) -> Path:
        """Return the file of the render of a prompt and seed."""
        digest = hashlib.sha256(f"{self._key}|{seed}|{prompt}".encode()).hexdigest()
        return self.folder / f"{digest[:32]}.png"

    def render(
        self,
        requests: Sequence[tuple[str, int]],
        advance: Advance | None = None,
        adapter: AdapterSet | None = None,
    ) -> Images:
        """Return the renders of (prompt, seed) pairs, (N, H, W, 3) uint8; only those not in the cache are rendered.

        Each batch is written when it is finished, so an interrupted call loses at most one batch.

        Args:
            requests: prompts and seeds.
            advance: is called with the number of images that are ready.
            adapter: the adapter that is attached to the model, which is switched off here.
        """
        missing = [pair for pair in dict.fromkeys(requests) if not self._load(*pair)]
        if advance and len(missing) < len(requests):
            advance(len(requests) - len(missing))
        for start in range(0, len(missing), self.settings.batch_size):
            batch = missing[start : start + self.settings.batch_size]
            images = render(self.model, [RenderRequest(p, s, 0.0) for p, s in batch], self.settings, adapter, advance)
            for (prompt, seed), image in zip(batch, images, strict=True):
                with atomic_path(self.path(prompt, seed), cached=True) as temporary:
                    Image.fromarray(image).save(temporary)
                self._memory[prompt, seed] = image
        if not requests:
            return np.zeros((0, self.side, self.side, 3), np.uint8)
        return np.stack([self._memory[pair] for pair in requests])

    def _load(self, prompt: str, seed: int) -> bool:
        """Load a render into memory; False if its file is missing or broken, so that it is rendered again."""
        if (prompt, seed) in self._memory:
            return True
        try:
            with Image.open(self.path(prompt, seed)) as file:
                image = np.asarray(file.convert("RGB"))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):  # missing, or no whole image
            return False
        if image.shape != (self.side, self.side, 3):
            return False
        self._memory[prompt, seed] = image
        return True
