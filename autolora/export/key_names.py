"""The names that an exported file gives to an adapter's tensors, and the programs that know those names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import is_plain, layer_scale, parts_by_layer
from autolora.adapters.file_keys import PEFT, split_any, without_unread
from autolora.adapters.file_layers import fused_weight, rows_of
from autolora.adapters.formats import (
    has_text_encoder,
    is_transformer,
    layer_weights,
    layers_of,
    to_kohya,
    with_text_model,
)
from autolora.adapters.import_formats import layer_names
from autolora.adapters.original_names import Rows
from autolora.adapters.targets import in_text_encoder
from autolora.errors import ExportError
from autolora.export.readers import PROGRAMS
from autolora.export.readers.formulas import LayerReader
from autolora.export.readers.names import knows
from autolora.models.base import BaseModel

ChangeReader = Callable[[str, Tensor], Tensor]  # a layer's path and the base weight to the layer's weight change
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


@dataclass(frozen=True)
class FileLayer:
    """A layer of a file: its name there, its unchanged tensors, and the model's layers whose rows it holds."""

    name: str
    parts: State  # by their LyCORIS names
    rows: tuple[Rows, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The model's layers."""
        return tuple(dict.fromkeys(row.path for row in self.rows))


def layers_in_file(tensors: Mapping[str, Tensor], model: BaseModel) -> list[FileLayer]:
    """The layers of a file that `read_lora` accepted.

    Raises:
        ExportError: a layer that the model does not have.
    """
    names = layer_names(layers_of(model.modules), model.architecture)
    layers: dict[str, State] = {}
    for key, tensor in without_unread(tensors, has_text_encoder(model.architecture)).items():
        name, part = split_any(key)
        layers.setdefault(f"{PEFT if key.startswith(PEFT) else ''}{name}", {})[part] = tensor
    found = {name: names.find(name) for name in layers}
    if missing := next((name for name, rows in found.items() if rows is None), None):
        raise ExportError(f"the base model has no layer {missing}")
    return [FileLayer(name, parts, found[name] or ()) for name, parts in layers.items()]


def program_readers(
    tensors: Mapping[str, Tensor], model: BaseModel
) -> tuple[dict[str, ChangeReader], dict[str, tuple[str, int, int]]]:
    """How each program reads a file's layers.

    Returns:
        For each program that finds every layer, a function from a layer's path and weight to its weight change,
        (out, in); for each other program the name of a layer that it does not find, how many there are, of how many.
    """
    layers, weights = layers_in_file(tensors, model), layer_weights(model.modules)
    by_path = {path: layer for layer in layers for path in layer.paths}
    readers, unknown = dict[str, ChangeReader](), dict[str, tuple[str, int, int]]()
    for program, formula in PROGRAMS.items():
        missing = [layer.name for layer in layers if not knows(program, layer.name, layer.paths[0], model.architecture)]
        if missing:
            unknown[program] = missing[0], len(missing), len(layers)
        else:
            readers[program] = partial(_change_by_formula, formula, by_path, weights)
    return readers, unknown


def _change_by_formula(
    formula: LayerReader, layers: Mapping[str, FileLayer], weights: Mapping[str, Tensor], path: str, weight: Tensor
) -> Tensor:
    layer = layers[path]
    if len(layer.rows) > 1:
        fused = fused_weight(layer.rows, {name: weights[name] for name in layer.paths}).float().to(weight.device)
        return rows_of(formula(layer.parts, fused).flatten(1), path, layer.rows)
    return formula(layer.parts, weight).flatten(1)
