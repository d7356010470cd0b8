"""How peft reads a file of its own: `adapter_model.safetensors` with `adapter_config.json` beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from autolora.adapters.file_keys import PEFT, split_any
from autolora.adapters.file_layers import Layers
from autolora.adapters.import_formats import layer_names

ChangeReader = Callable[[str, Tensor], Tensor]  # a layer's path and the base weight to the layer's weight change


def is_peft_file(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's keys have peft's prefix."""
    return any(key.startswith(PEFT) for key in tensors)


def peft_reader(tensors: Mapping[str, Tensor], path: Path, layers: Layers, architecture: str) -> ChangeReader:
    """Return a function from a layer's path and weight to its weight change, (out, in), as peft loads it.

    Peft loads each layer alone, into a model that holds nothing else, so that a large base model is in memory once.

    Args:
        tensors: the content of the file.
        path: the file; peft reads the settings beside it.
        layers: the layers of the model by path.
        architecture: the model's.
    """
    names, keys = layer_names(layers, architecture), dict[str, tuple[str, list[str]]]()
    for key in tensors:
        layer_name = split_any(key)[0]
        for row in names.find(layer_name) or ():
            keys.setdefault(row.path, (layer_name, []))[1].append(key)

    def read(name: str, weight: Tensor) -> Tensor:
        module_name, layer_keys = keys[name]
        layer, holder = _bare_layer(weight), nn.Module()
        holder.add_module(*_nested(module_name, layer))
        try:
            with warnings.catch_warnings(action="ignore"):  # of settings that name other layers
                inject_adapter_in_model(PeftConfig.from_pretrained(str(path.parent)), holder)
            loaded = set_peft_model_state_dict(holder, {key.removeprefix(PEFT): tensors[key] for key in layer_keys})
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise NotImplementedError((str(error).strip() or type(error).__name__).splitlines()[0]) from error
        if loaded.unexpected_keys:
            raise NotImplementedError(f"it does not know {loaded.unexpected_keys[0]}")
        tuner = holder.get_submodule(module_name)
        tuner.merge()  # type: ignore[operator]
        with torch.no_grad():
            return (layer.weight - weight.float()).flatten(1)

    return read


def _bare_layer(weight: Tensor) -> nn.Linear | nn.Conv2d:
    """A layer that holds a float32 copy of a weight; bias and stride have no part in a weight change."""
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs, outputs, tuple(kernel), bias=False) if kernel else nn.Linear(inputs, outputs, bias=False)  # type: ignore[arg-type]
    layer.weight.data = weight.detach().float().clone()
    return layer


def _nested(name: str, layer: nn.Module) -> tuple[str, nn.Module]:
    """The first part of a dotted name, and the modules that lead from there to a layer by the other parts."""
    first, *rest = name.split(".")
    for part in reversed(rest):
        parent = nn.Module()
        parent.add_module(part, layer)
        layer = parent
    return first, layer
