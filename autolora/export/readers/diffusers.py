"""How diffusers reads a file: by its own `load_lora_weights`, without any code of autolora's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft.tuners.lora import LoraLayer

from autolora.adapters.base import State
from autolora.adapters.formats import layer_delta, layer_paths, layer_weights
from autolora.errors import ExportError
from autolora.export.verify import (
    Verification,
    check_change,
    check_layers,
    expected_changes,
    rounding_unit,
    to_device,
)
from autolora.models.base import BaseModel
from autolora.models.library_logging import silence_libraries
from autolora.models.pipelines import guidance_arguments, open_pipeline
from autolora.models.settings import RenderSettings
from autolora.sampling import Images, RenderRequest

ADAPTER = "autolora"  # the name that diffusers keeps the file's adapter under


class DiffusersReference:
    """A diffusers pipeline of the base model with an exported file loaded."""

    def __init__(self, path: Path, source: Path, model: BaseModel) -> None:
        """Load `path` onto the pipeline of `source`, the folder or file that `model` was read from.

        The pipeline is in float32 on the model's device if the model is in float32 and not quantized. Otherwise
        rounding would change its renders: it renders nothing, and stays on the CPU in float16.

        Raises:
            ExportError: diffusers does not load the file.
        """
        self.path, self.model = path, model
        exact = model.dtype == torch.float32 and model.settings.quantize is None
        self.can_render = exact and model.clip_skip in (None, 1)  # diffusers 0.42 ignores it
        dtype = torch.float32 if exact else torch.float16
        # A text encoder that the LoRA leaves alone is not loaded: T5 takes 9 GB.
        unread = () if exact else [name for name in model.text_encoder_names if name not in model.modules]
        with silence_libraries(logging.CRITICAL):
            self.pipeline = open_pipeline(source, model.architecture, dtype, unread)
            if exact:  # the VAE is the model's own, or the one that the model uses instead
                model.keep_on_device("vae")
                self.pipeline.register_modules(vae=model.vae)
                self.pipeline.set_progress_bar_config(disable=True)
                self.pipeline.to(model.device)
            try:
                self.pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=ADAPTER)
            except Exception as error:  # of any class: its conversions of names end in assertions too
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ExportError(f"diffusers does not load {path}: {reason}") from error

    def state(self) -> State:
        """Return the adapter as diffusers holds it, in float32 on the CPU, by the paths of autolora's layers."""
        state: State = {}
        for root in self.model.modules:
            for name, layer in getattr(self.pipeline, root).named_modules():
                if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
                    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                    state[f"{root}.{name}.lora_down.weight"] = down.detach().float().cpu()
                    state[f"{root}.{name}.lora_up.weight"] = up.detach().float().cpu()
                    # At weight 1, peft's scaling is alpha / rank, whatever alpha peft read from the file.
                    state[f"{root}.{name}.alpha"] = torch.tensor(layer.scaling[ADAPTER] * down.shape[0])
                    if ADAPTER in layer.lora_magnitude_vector:
                        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.detach().float().cpu()
                        state[f"{root}.{name}.dora_scale"] = magnitude.view(-1, *(1,) * (down.dim() - 1))
        return state

    def verify_deltas(self, state: State) -> Verification:
        """Compare every layer's weight change in diffusers with the adapter's.

        Raises:
            ExportError: a layer is missing or added, or differs by more than the rounding of the file explains.
        """
        where, loaded = f"{self.path} in diffusers", to_device(self.state(), self.model.device)
        check_layers(state, loaded, where)
        weights, max_error = layer_weights(self.model.modules), 0.0
        for name, expected in expected_changes(state, weights, rounding_unit(self.path), self.model.device):
            max_error = max(max_error, check_change(name, expected, layer_delta(loaded, name, weights[name]), where))
        return Verification(len(layer_paths(state)), max_error)

    @torch.inference_mode()
    def render(
        self, requests: Sequence[RenderRequest], settings: RenderSettings, advance: Callable[[int], None] | None = None
    ) -> Images:
        """Render with diffusers' pipeline; `advance` is called with the size of each finished batch.

        Returns:
            (N, H, W, 3) uint8, in the order of the requests.
        """
        side = settings.side(self.model.resolution)
        images = np.zeros((len(requests), side, side, 3), np.uint8)
        try:
            for weight in dict.fromkeys(request.weight for request in requests):
                places = [index for index, request in enumerate(requests) if request.weight == weight]
                self.pipeline.set_adapters(ADAPTER, weight)
                for start in range(0, len(places), settings.batch_size):
                    batch = places[start : start + settings.batch_size]
                    images[batch] = self._render_batch([requests[index] for index in batch], settings)
                    if advance:
                        advance(len(batch))
        finally:
            self.pipeline.set_adapters(ADAPTER, 1.0)
        return images

    def _render_batch(self, requests: Sequence[RenderRequest], settings: RenderSettings) -> Images:
        self.pipeline.scheduler = self.model.sampler(settings.scheduler)
        guidance = guidance_arguments(self.model, settings)
        if "negative_prompt" in guidance:
            guidance["negative_prompt"] = [guidance["negative_prompt"]] * len(requests)
        images = self.pipeline(
            **guidance,
            prompt=[settings.prompt(request.prompt) for request in requests],
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            num_inference_steps=settings.num_inference_steps,
            height=settings.side(self.model.resolution),
            width=settings.side(self.model.resolution),
            output_type="np",
        ).images
        return np.asarray((images * 255).round().astype(np.uint8))
