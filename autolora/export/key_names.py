"""What an exported file calls an adapter's tensors, and which programs read those names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import is_plain, layer_scale, parts_by_layer
from autolora.adapters.formats import is_transformer, layers_of, paths_by_name, to_kohya
from autolora.adapters.import_formats import in_diffusers_names, in_lycoris_parts, in_original_names, parts_by_path
from autolora.errors import ExportError
from autolora.export.readers import CONSUMERS, TRANSFORMER_CONSUMERS, Reader
from autolora.models.base import BaseModel

READ = frozenset({"lora_down.weight", "lora_up.weight", "dora_scale", "alpha"})  # the parts that diffusers' format has


def has_format(state: State) -> bool:
    """Whether diffusers has a format for an adapter: LoRA, LoCon or DoRA."""
    return all(parts.keys() <= READ for parts in parts_by_layer(state).values())


def file_tensors(state: State, architecture: str) -> State:
    """Kohya's names; LoRA of transformers has diffusers', which ComfyUI, Forge and diffusers read there."""
    plain = is_transformer(architecture) and is_plain(state)
    return to_diffusers(state) if plain else to_kohya(state, architecture)


def to_diffusers(state: State) -> State:
    """Diffusers' and peft's names.

    Each layer's scale is put into its factors, so that alpha is its rank: what diffusers takes where a file says
    nothing, in every version.

    Raises:
        ExportError: another kind of adapter than LoRA, LoCon and DoRA.
    """
    if not has_format(state):
        raise ExportError("diffusers has a format for LoRA, LoCon and DoRA only")
    found: State = {}
    for path, parts in parts_by_layer(state).items():
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        root = layer_scale(parts, len(down)) ** 0.5
        found[f"{path}.lora_A.weight"], found[f"{path}.lora_B.weight"] = down * root, up * root
        if "dora_scale" in parts:
            outputs = parts["dora_scale"].flatten()
            shape = (-1,) if up.dim() == 2 else (1, -1, *(1,) * (up.dim() - 2))  # as peft keeps it
            found[f"{path}.lora_magnitude_vector"] = outputs.view(shape)
    return found


def read_by(tensors: Mapping[str, Tensor], architecture: str) -> dict[str, Reader] | None:
    """The programs that find a file's layers for a model of this architecture; None: that is not known."""
    if is_transformer(architecture):
        return None if in_original_names(tensors) else TRANSFORMER_CONSUMERS
    return {} if _as_diffusers(tensors) else CONSUMERS


def layers_in_file(tensors: Mapping[str, Tensor], model: BaseModel) -> dict[str, State]:
    """A file's tensors as they stand in it, by the paths of the model's layers and LyCORIS' names of parts."""
    layers = layers_of(model.modules)
    if _as_diffusers(tensors):
        return parts_by_path(tensors, layers)
    names = paths_by_name(layers, model.architecture)
    return {names[name]: parts for name, parts in parts_by_layer(tensors).items()}


def _as_diffusers(tensors: Mapping[str, Tensor]) -> bool:
    return in_diffusers_names(tensors) and not in_lycoris_parts(tensors)
