"""What peft makes of a file of its own: `adapter_model.safetensors` with `adapter_config.json` beside it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from peft import PeftConfig, inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from autolora.adapters.import_formats import PEFT, Layers, keys_by_path

Loaded = Callable[[str, Tensor], Tensor]


def is_peft_file(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's layers are called as peft calls them."""
    return any(key.startswith(PEFT) for key in tensors)


def by_peft(tensors: Mapping[str, Tensor], path: Path, layers: Layers) -> Loaded:
    """A function of a layer's path and weight that gives its change, (out, in), as peft's own code loads it.

    Each layer is loaded alone, in a model of nothing else with its names, so that a large base need not be held twice.

    Args:
        tensors: the file's.
        path: the file.
        layers: the model's.
    """
    keys = keys_by_path(tensors, layers)

    def loaded(name: str, weight: Tensor) -> Tensor:
        inside, own = keys[name]
        layer, holder = _bare(weight), nn.Module()
        holder.add_module(*_nested(inside, layer))
        try:
            with warnings.catch_warnings(action="ignore"):  # about settings of other layers
                inject_adapter_in_model(PeftConfig.from_pretrained(str(path.parent)), holder)
            found = set_peft_model_state_dict(holder, {key.removeprefix(PEFT): tensors[key] for key in own})
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            raise NotImplementedError((str(error).strip() or type(error).__name__).splitlines()[0]) from error
        if found.unexpected_keys:
            raise NotImplementedError(f"it knows no {found.unexpected_keys[0]}")
        tuner = holder.get_submodule(inside)
        tuner.merge()  # type: ignore[operator]
        with torch.no_grad():
            return (layer.weight - weight.float()).flatten(1)

    return loaded


def _bare(weight: Tensor) -> nn.Linear | nn.Conv2d:
    """A layer of a weight, in 32-bit floats, for whose change nothing else of the model's own matters."""
    outputs, inputs, *kernel = weight.shape
    layer = nn.Conv2d(inputs, outputs, tuple(kernel), bias=False) if kernel else nn.Linear(inputs, outputs, bias=False)  # type: ignore[arg-type]
    layer.weight.data = weight.detach().float().clone()
    return layer


def _nested(name: str, layer: nn.Module) -> tuple[str, nn.Module]:
    """A layer in modules by the names that lead to it, of which the first is given too."""
    first, *rest = name.split(".")
    for part in reversed(rest):
        above = nn.Module()
        above.add_module(part, layer)
        layer = above
    return first, layer
