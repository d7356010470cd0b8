"""The names that an exported file gives to an adapter's tensors, and the programs that know those names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import is_plain, layer_scale, parts_by_layer
from autolora.adapters.formats import is_transformer, layers_of, paths_by_name, to_kohya, with_text_model
from autolora.adapters.import_formats import in_diffusers_names, in_lycoris_parts, in_original_names, parts_by_path
from autolora.adapters.targets import in_text_encoder
from autolora.errors import ExportError
from autolora.export.readers import PROGRAMS, TRANSFORMER_PROGRAMS
from autolora.export.readers.formulas import LayerReader
from autolora.models.base import BaseModel

DIFFUSERS_PARTS = frozenset({"lora_down.weight", "lora_up.weight", "dora_scale", "alpha"})


def has_diffusers_format(state: State) -> bool:
    """Whether diffusers has a format for an adapter, which is the case for LoRA, LoCon and DoRA.

    Of a text encoder it reads LoRA only: it leaves out the magnitudes of a DoRA there.
    """
    return all(
        parts.keys() <= DIFFUSERS_PARTS and not ("dora_scale" in parts and in_text_encoder(path))
        for path, parts in parts_by_layer(state).items()
    )


def file_tensors(state: State, architecture: str) -> State:
    """Rename an adapter's tensors to the key names of an exported file.

    The names are kohya's. A LoRA of a transformer has diffusers' names, which ComfyUI, Forge and diffusers read there.
    """
    plain = is_transformer(architecture) and is_plain(state)
    return to_diffusers(state) if plain else to_kohya(state, architecture)


def to_diffusers(state: State) -> State:
    """Rename an adapter's tensors to the names of diffusers and peft.

    Names of a text encoder's layers contain `text_model`, without which ComfyUI, Forge and older versions of diffusers
    do not find them; newer versions of transformers leave it out of the path.

    Each layer's scale is multiplied into its factors. Alpha is then equal to the rank, which every version of diffusers
    assumes for a file without alphas.

    Raises:
        ExportError: the adapter is not LoRA, LoCon or DoRA.
    """
    if not has_diffusers_format(state):
        raise ExportError("diffusers has a format for LoRA, LoCon and DoRA only, in text encoders for LoRA only")
    tensors: State = {}
    for path, parts in parts_by_layer(state).items():
        path = with_text_model(path)
        down, up = parts["lora_down.weight"], parts["lora_up.weight"]
        root = layer_scale(parts, len(down)) ** 0.5
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = down * root, up * root
        if "dora_scale" in parts:
            magnitude = parts["dora_scale"].flatten()
            shape = (-1,) if up.dim() == 2 else (1, -1, *(1,) * (up.dim() - 2))  # peft's shape of a magnitude
            tensors[f"{path}.lora_magnitude_vector"] = magnitude.view(shape)
    return tensors


def readers_of(tensors: Mapping[str, Tensor], architecture: str) -> dict[str, LayerReader] | None:
    """The programs that know a file's layer names for a model of this architecture, each with its formula.

    None means that it is not known which programs do: the file has the names of a transformer's original code.
    """
    if is_transformer(architecture):
        return None if in_original_names(tensors) else TRANSFORMER_PROGRAMS
    return {} if _has_diffusers_names(tensors) else PROGRAMS


def layers_in_file(tensors: Mapping[str, Tensor], model: BaseModel) -> dict[str, State]:
    """Group a file's unchanged tensors by the paths of the model's layers, under LyCORIS' part names."""
    layers = layers_of(model.modules)
    if _has_diffusers_names(tensors):
        return parts_by_path(tensors, layers)
    names = paths_by_name(layers, model.architecture)
    return {names[name]: parts for name, parts in parts_by_layer(tensors).items()}


def _has_diffusers_names(tensors: Mapping[str, Tensor]) -> bool:
    return in_diffusers_names(tensors) and not in_lycoris_parts(tensors)
