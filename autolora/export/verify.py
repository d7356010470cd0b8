"""Proves that an exported file holds what was trained: the same change of every weight, the same renders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import delta_weight, parts_by_layer
from autolora.adapters.formats import layer_delta, layer_paths, layer_weights
from autolora.adapters.read import read_lora
from autolora.errors import ExportError
from autolora.export.key_names import program_readers
from autolora.models.base import BaseModel
from autolora.sampling import Images

MEAN_DIFFERENCE = 1.0  # of 255 levels, allowed between the renders of one LoRA by two programs in float32
JITTER = 1e-5  # relative change of a weight; larger than the rounding by which two programs differ


@dataclass(frozen=True)
class Verification:
    """The layers that were compared, and the programs that read the file correctly."""

    layers: int
    delta_error: float  # largest relative error of a layer's weight change (Frobenius norm)
    read_by: tuple[str, ...] = ()  # a program that does not read this kind of file is not listed


def verify_deltas(state: State, path: Path, model: BaseModel) -> Verification:
    """Read an exported file as each program does, and compare every layer's weight change with the adapter's.

    Raises:
        ExportError: a layer is missing or added, or differs by more than the rounding of the file explains.
    """
    weights, loaded = layer_weights(model.modules), to_device(read_lora(path, model), model.device)
    check_layers(state, loaded, str(path))
    tensors = load_file(path, str(model.device))
    readers, _ = program_readers(tensors, model)
    max_error = 0.0
    for name, expected in expected_changes(state, weights, rounding_unit(path), model.device):
        weight = weights[name].to(model.device).float()
        max_error = max(max_error, check_change(name, expected, layer_delta(loaded, name, weight), str(path)))
        for program, read in tuple(readers.items()):
            try:
                actual = read(name, weight)
            except NotImplementedError:
                del readers[program]
                continue
            check_change(name, expected, actual, f"{path} in {program}")
    return Verification(len(layer_paths(state)), max_error, tuple(readers))


def compare_renders(
    ours: Images,
    theirs: Images,
    most: float = MEAN_DIFFERENCE,
    jittered: Callable[[], Images] | None = None,
) -> float:
    """Return the mean difference, in levels of 255, of the two renders that differ most.

    An oversaturated LoRA amplifies rounding: with a LoHa whose weights moved by 1e-6, a render changed by 2.1 levels.
    So a render may differ by twice as much as it changes under `jitter`.

    Args:
        ours: N renders by autolora.
        theirs: the same N renders by diffusers.
        most: levels that any render may differ by.
        jittered: renders ours again with `jitter` in the weights; called only if a render differs by more than `most`.

    Raises:
        ExportError: a render differs by more.
    """
    levels = _mean_difference(ours, theirs)
    allowed = np.full_like(levels, most)
    if jittered is not None and (levels > most).any():
        allowed = np.maximum(most, 2 * _mean_difference(ours, jittered()))
    if (levels > allowed).any():
        worst = int((levels - allowed).argmax())
        raise ExportError(
            f"render {worst} by diffusers differs from autolora's: {levels[worst]:.1f} of 255 levels on average, "
            f"expected at most {allowed[worst]:.1f}; please report this with both library versions"
        )
    return float(levels.max(initial=0.0))


def _mean_difference(ours: Images, theirs: Images) -> NDArray[np.float64]:
    levels: NDArray[np.float64] = np.abs(ours.astype(np.int16) - theirs.astype(np.int16)).mean(axis=(1, 2, 3))
    return levels


def jitter(state: State) -> State:
    """Return an adapter with every factor changed by about JITTER of its value, by a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: tensor * (1 + JITTER * torch.randn(tensor.shape, generator=generator)) if tensor.dim() else tensor
        for key, tensor in state.items()
    }


@dataclass(frozen=True)
class ExpectedChange:
    """A layer's trained weight change."""

    change: Tensor
    size: float  # its Frobenius norm
    tolerance: float  # the most that rounding can move it, in the same norm


def expected_changes(
    state: State, weights: Mapping[str, Tensor], unit: float, device: torch.device
) -> Iterator[tuple[str, ExpectedChange]]:
    """Yield each layer and its trained weight change, one by one: all of them together may be as large as the model."""
    for name, layer_parts in sorted(parts_by_layer(state).items()):
        parts = to_device(layer_parts, device)
        expected = delta_weight(parts, weights[name])
        size = float(torch.linalg.vector_norm(expected))
        yield name, ExpectedChange(expected, size, _tolerance(parts, expected, weights[name], unit))


def rounding_unit(path: Path) -> float:
    """The largest relative error by which the numbers of a file were rounded."""
    return 2**-8 if torch.bfloat16 in {tensor.dtype for tensor in load_file(path).values()} else 2**-11


def to_device(state: State, device: torch.device) -> State:
    """A copy of an adapter on a device."""
    return {key: tensor.to(device) for key, tensor in state.items()}


def check_layers(state: State, loaded: State, where: str) -> None:
    """Check that a loaded adapter has the layers of the trained one.

    Raises:
        ExportError: layers are missing or added; the message begins with `where`.
    """
    ours, theirs = set(layer_paths(state)), set(layer_paths(loaded))
    if ours != theirs:
        problems = [
            f"{len(names)} layers {word} ({', '.join(sorted(names)[:2])}{', ...' if len(names) > 2 else ''})"
            for word, names in (("missing", ours - theirs), ("added", theirs - ours))
            if names
        ]
        raise ExportError(f"{where}: {' and '.join(problems)} compared with the trained adapter")


def check_change(name: str, expected: ExpectedChange, actual: Tensor, where: str) -> float:
    """Return the relative error of a layer's weight change.

    Raises:
        ExportError: the error is larger than rounding explains; the message begins with `where`.
    """
    error = float(torch.linalg.vector_norm(actual - expected.change))
    if not error <= expected.tolerance:  # this form refuses NaN too
        raise ExportError(
            f"{where}: the change of {name} differs from the trained one by {error:.3g} (its norm is "
            f"{expected.size:.3g}), more than rounding explains"
        )
    return error / expected.size if expected.size else error


def _tolerance(parts: State, expected: Tensor, weight: Tensor, unit: float) -> float:
    """The most by which rounding a layer's parts to the file's precision can move its weight change (Frobenius norm).

    Each entry x moves by at most u |x|, where u is 2^-11 (2^-8 in bfloat16), or by 2^-25 if it is subnormal: together
    by at most u (|x| + 2^-14). The product of k parts then moves by at most the product of these bounds times
    (1 + u)^k - 1. DoRA's change m (W + D) / |W + D| - W moves as its magnitude and its direction do. The factor 1.01
    and the last two terms allow for float32 arithmetic, and for what a plain LoRA loses of another kind's change.
    """
    if "dora_scale" in parts:
        return 1.01 * 4 * unit * float(torch.linalg.vector_norm(weight.to(expected).flatten(1) + expected))
    exact = ("alpha", "on_input")
    bounds = {name: part if name in exact else part.float().abs() + 2**-14 for name, part in parts.items()}
    moved = ((1 + unit) ** (len(parts) - 1) - 1) * torch.linalg.vector_norm(delta_weight(bounds, weight.abs()))
    return 1.01 * float(moved) + 2e-6 * float(torch.linalg.vector_norm(expected)) + 1e-12
