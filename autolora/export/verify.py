"""Proves that an exported file is what was trained: the same change of every weight, the same pictures in diffusers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import change, parts_by_layer
from autolora.adapters.formats import delta, layer_paths, layer_weights
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.export.key_names import layers_in_file, read_by
from autolora.models.base import BaseModel, RenderSettings
from autolora.models.library_logging import silence_libraries
from autolora.models.pipelines import guidance_arguments, open_pipeline
from autolora.sampling import Images, RenderRequest

ADAPTER = "autolora"
MEAN_DIFFERENCE = 1.0  # of 255 levels, between two programs' renders of one LoRA in 32-bit floats
JITTER = 1e-5  # of a weight: more than what two programs' sums are apart


@dataclass(frozen=True)
class Verified:
    """What was compared; `delta_error` is the largest relative difference of a layer's change (Frobenius norm)."""

    layers: int
    delta_error: float
    read_by: tuple[str, ...] = ()  # the programs that make the same of the file; others do not read its kind


def verify_deltas(state: State, path: Path, model: BaseModel) -> Verified:
    """Reload a written file and compare every layer's change with the adapter's, as each program would read it.

    Raises:
        ExportError: a layer is missing or added, or differs by more than the file's rounding explains.
    """
    weights, loaded = layer_weights(model.modules), _moved(read_lora(path, model), model.device)
    _check_layers(state, loaded, str(path))
    tensors = load_file(path, str(model.device))
    layers, readers, worst = layers_in_file(tensors, model), dict(read_by(tensors, model.architecture) or {}), 0.0
    for name, wanted in _expectations(state, weights, _roundoff(path), model.device):
        weight = weights[name].to(model.device).float()
        worst = max(worst, _agree(name, wanted, delta(loaded, name, weight), str(path)))
        for program, read in tuple(readers.items()):
            try:
                found = read(layers[name], weight).flatten(1)
            except NotImplementedError:
                del readers[program]
                continue
            _agree(name, wanted, found, f"{path} in {program}")
    return Verified(len(layer_paths(state)), worst, tuple(readers))


class DiffusersReference:
    """The base model with an exported file, loaded by diffusers' own `load_lora_weights` and nothing of autolora's."""

    def __init__(self, path: Path, source: Path, model: BaseModel) -> None:
        """Load `path` onto the pipeline of `source`, the folder or file that `model` was read from.

        In 32-bit floats where the model is in them. Else, or where the model is quantized, it draws nothing, as
        pictures would differ by rounding, and is on the CPU in the half precision of exported files.

        Raises:
            ExportError: diffusers does not load the file.
        """
        self.path, self.model = path, model
        whole = model.dtype == torch.float32 and model.settings.quantize is None
        self.draws = whole and model.clip_skip in (None, 1)  # diffusers 0.42 skips no layers with transformers 5
        dtype = torch.float32 if whole else torch.float16
        unread = () if whole else [name for name in model.text_parts if name not in model.modules]  # T5 takes 9 GB
        with silence_libraries(logging.CRITICAL):
            self.pipeline = open_pipeline(source, model.architecture, dtype, unread)
            if whole:  # the VAE is the model's own, or what the model uses instead
                model.stay("vae")
                self.pipeline.register_modules(vae=model.vae)
                self.pipeline.set_progress_bar_config(disable=True)
                self.pipeline.to(model.device)
            try:
                self.pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=ADAPTER)
            except (ValueError, RuntimeError, KeyError, TypeError, OSError) as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ExportError(f"diffusers does not load {path}: {reason}") from error

    def state(self) -> State:
        """The adapter as diffusers holds it, by the paths of autolora's layers."""
        found: State = {}
        for root in self.model.modules:
            for name, layer in getattr(self.pipeline, root).named_modules():
                if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
                    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
                    found[f"{root}.{name}.lora_down.weight"] = down.detach().float().cpu()
                    found[f"{root}.{name}.lora_up.weight"] = up.detach().float().cpu()
                    # At weight 1 peft's scaling is alpha / rank, whatever alpha it made of the file.
                    found[f"{root}.{name}.alpha"] = torch.tensor(layer.scaling[ADAPTER] * down.shape[0])
                    if ADAPTER in layer.lora_magnitude_vector:
                        magnitude = layer.lora_magnitude_vector[ADAPTER].weight.detach().float().cpu()
                        found[f"{root}.{name}.dora_scale"] = magnitude.view(-1, *(1,) * (down.dim() - 1))
        return found

    def verify_deltas(self, state: State) -> Verified:
        """Compare every layer's change with the adapter's.

        Raises:
            ExportError: as the function `verify_deltas`.
        """
        where, loaded = f"{self.path} in diffusers", _moved(self.state(), self.model.device)
        _check_layers(state, loaded, where)
        weights, worst = layer_weights(self.model.modules), 0.0
        for name, wanted in _expectations(state, weights, _roundoff(self.path), self.model.device):
            worst = max(worst, _agree(name, wanted, delta(loaded, name, weights[name]), where))
        return Verified(len(layer_paths(state)), worst)

    @torch.inference_mode()
    def render(
        self, shots: Sequence[RenderRequest], settings: RenderSettings, advance: Callable[[int], None] | None = None
    ) -> Images:
        """Render shots with diffusers' pipeline, (N, H, W, 3) uint8, in the order given."""
        side = settings.side(self.model)
        pictures = np.zeros((len(shots), side, side, 3), np.uint8)
        try:
            for weight in dict.fromkeys(shot.weight for shot in shots):
                chosen = [index for index, shot in enumerate(shots) if shot.weight == weight]
                self.pipeline.set_adapters(ADAPTER, weight)
                for start in range(0, len(chosen), settings.batch_size):
                    batch = chosen[start : start + settings.batch_size]
                    pictures[batch] = self._draw([shots[index] for index in batch], settings)
                    if advance:
                        advance(len(batch))
        finally:
            self.pipeline.set_adapters(ADAPTER, 1.0)
        return pictures

    def _draw(self, shots: Sequence[RenderRequest], settings: RenderSettings) -> Images:
        self.pipeline.scheduler = self.model.sampler(settings.scheduler)
        told = guidance_arguments(self.model, settings)
        if "negative_prompt" in told:
            told["negative_prompt"] = [told["negative_prompt"]] * len(shots)
        drawn = self.pipeline(
            **told,
            prompt=[settings.prompt(shot.prompt) for shot in shots],
            generator=[torch.Generator().manual_seed(shot.seed) for shot in shots],
            num_inference_steps=settings.num_inference_steps,
            height=settings.side(self.model),
            width=settings.side(self.model),
            output_type="np",
        ).images
        return np.asarray((drawn * 255).round().astype(np.uint8))


def compare_pictures(
    ours: Images,
    theirs: Images,
    most: float = MEAN_DIFFERENCE,
    jittered: Callable[[], Images] | None = None,
) -> float:
    """The mean difference of two sets of renders, in levels of 255, in the picture where it is largest.

    An adapter that burns makes another picture of the last digits of a sum: a LoHa whose weights moved by 1e-6 drew
    one 2.1 levels apart. So twice what its own pictures move by under JITTER is allowed.

    Args:
        ours: N renders.
        theirs: the same by the other program.
        most: levels that a picture may differ by in any case.
        jittered: draws ours again with `jitter` in the weights; only asked where that is too little.

    Raises:
        ExportError: a picture differs by more.
    """
    levels = _levels_apart(ours, theirs)
    allowed = np.full_like(levels, most)
    if jittered is not None and (levels > most).any():
        allowed = np.maximum(most, 2 * _levels_apart(ours, jittered()))
    if (levels > allowed).any():
        worst = int((levels - allowed).argmax())
        raise ExportError(
            f"diffusers draws picture {worst} otherwise than autolora: {levels[worst]:.1f} of 255 levels apart on "
            f"average, expected at most {allowed[worst]:.1f}; please report this with both library versions"
        )
    return float(levels.max(initial=0.0))


def _levels_apart(ours: Images, theirs: Images) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).mean(axis=(1, 2, 3))
    return found


def jitter(state: State) -> State:
    """An adapter with every factor moved by about JITTER of itself, always the same way."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: tensor * (1 + JITTER * torch.randn(tensor.shape, generator=generator)) if tensor.dim() else tensor
        for key, tensor in state.items()
    }


@dataclass(frozen=True)
class _Wanted:
    """A layer's trained change, its norm, and by how much rounding may move it."""

    change: Tensor
    size: float
    rounding: float


def _roundoff(path: Path) -> float:
    """By how much at most, relatively, a file's numbers have been rounded."""
    return 2**-8 if torch.bfloat16 in {tensor.dtype for tensor in load_file(path).values()} else 2**-11


def _expectations(
    state: State, weights: Mapping[str, Tensor], roundoff: float, device: torch.device
) -> Iterator[tuple[str, _Wanted]]:
    """What each layer must come to, one after the other, as all of them at once may be as large as the model."""
    for name, own in sorted(parts_by_layer(state).items()):
        parts = _moved(own, device)
        expected = change(parts, weights[name])
        size = float(torch.linalg.vector_norm(expected))
        yield name, _Wanted(expected, size, _rounding(parts, expected, weights[name], roundoff))


def _moved(state: State, device: torch.device) -> State:
    return {key: tensor.to(device) for key, tensor in state.items()}


def _check_layers(state: State, loaded: State, where: str) -> None:
    """Refuse a loaded state of other layers than the trained one's; `where` names the former in errors."""
    ours, theirs = set(layer_paths(state)), set(layer_paths(loaded))
    if ours != theirs:
        problems = [
            f"{len(names)} layers {word} ({', '.join(sorted(names)[:2])}{', ...' if len(names) > 2 else ''})"
            for word, names in (("missing", ours - theirs), ("added", theirs - ours))
            if names
        ]
        raise ExportError(f"{where}: {' and '.join(problems)} compared with the trained adapter")


def _agree(name: str, wanted: _Wanted, found: Tensor, where: str) -> float:
    """The relative difference of a layer's change from the trained one.

    Raises:
        ExportError: it is more than rounding explains.
    """
    error = float(torch.linalg.vector_norm(found - wanted.change))
    if not error <= wanted.rounding:  # so that NaN is refused as well
        raise ExportError(
            f"{where}: the change of {name} differs from the trained one by {error:.3g} (its norm is "
            f"{wanted.size:.3g}), more than rounding explains"
        )
    return error / wanted.size if wanted.size else error


def _rounding(parts: State, expected: Tensor, weight: Tensor, roundoff: float) -> float:
    """The most that storing a layer's parts in half precision can do to its change (Frobenius norm).

    Each entry x moves by half a unit in its last place, u = 2^-11 of it (2^-8 as bfloat16), or by 2^-25 where it is
    subnormal: so by at most u (|x| + 2^-14). A product of k parts then moves by at most the product of these times
    (1 + u)^k - 1. DoRA
    changes W by what it makes of W + D, which moves as its magnitude and its direction do. 1% is added for 32-bit
    arithmetic, and what a change written as a plain LoRA loses of it.
    """
    if "dora_scale" in parts:
        return 1.01 * 4 * roundoff * float(torch.linalg.vector_norm(weight.to(expected).flatten(1) + expected))
    kept = ("alpha", "on_input")
    larger = {name: part if name in kept else part.float().abs() + 2**-14 for name, part in parts.items()}
    moved = ((1 + roundoff) ** (len(parts) - 1) - 1) * torch.linalg.vector_norm(change(larger, weight.abs()))
    return 1.01 * float(moved) + 2e-6 * float(torch.linalg.vector_norm(expected)) + 1e-12
