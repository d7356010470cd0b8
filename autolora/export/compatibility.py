"""Compares how each program reads a LoRA file of any trainer with what the file means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import delta_weight, parts_by_layer
from autolora.adapters.formats import layer_delta, layer_paths, layer_weights, layers_of
from autolora.adapters.read import read_file, read_lora, unread
from autolora.errors import ExportError
from autolora.export.key_names import ChangeReader, program_readers
from autolora.export.readers import PROGRAMS
from autolora.export.readers.diffusers import DiffusersReference
from autolora.export.readers.formulas import ReadsDifferently
from autolora.export.readers.names import NAMES
from autolora.export.readers.peft import is_peft_file, peft_reader
from autolora.models.base import BaseModel

# Allowed error, as a share of a layer's weight change plus 1% of its weight: float32 sums in another order.
TOLERANCE = 1e-4
HALF_TOLERANCE = 2e-3  # the same where diffusers holds the file in half precision, beside a 16-bit model


@dataclass(frozen=True)
class CompatibilityResult:
    """How one program reads a file: correctly, unless `unreadable` or `difference` is set."""

    program: str
    max_error: float = 0.0  # largest relative error of a layer's weight change (Frobenius norm)
    unreadable: str = ""  # why the program does not read the file
    difference: str = ""  # what the program reads differently, with the first such layer

    @property
    def correct(self) -> bool:
        """Whether the program reads the file as it is meant."""
        return not (self.unreadable or self.difference)

    @property
    def verdict(self) -> str:
        """How the program reads the file, as one word: correctly, differently or not."""
        return "correctly" if self.correct else ("differently" if self.difference else "not")


@dataclass(frozen=True)
class CompatibilityReport:
    """How every program that was asked reads one file."""

    path: Path
    layers: int
    results: tuple[CompatibilityResult, ...]
    unread: str = ""  # what the file changes that is not compared, because autolora does not read it

    def check(self) -> None:
        """Check that at least one program reads the file, and that every program that does reads the same.

        Raises:
            ExportError: otherwise; the first difference is named with its program and layer.
        """
        for result in self.results:
            if result.difference:
                raise ExportError(f"{self.path} is read differently by {result.program}: {result.difference}")
        if not any(result.correct for result in self.results):
            raise ExportError(f"{self.path} is read by none of {', '.join(r.program for r in self.results)}")


def check_compatibility(
    path: Path, model: BaseModel, advance: Callable[[int], None] | None = None
) -> CompatibilityReport:
    """Read a file as A1111, ComfyUI, kohya's sd-scripts, diffusers and peft do, and compare each layer's weight change.

    Args:
        path: the file; its own alphas, ranks and settings say what it means.
        model: the base model that it was made for.
        advance: called with 1 after each layer.

    Raises:
        ExportError: the file cannot be read, or was made for another base model.
    """
    state, weights = read_lora(path, model), layer_weights(model.modules)
    results, readers = _open_readers(path, model, state)
    half = model.dtype != torch.float32
    max_errors = dict.fromkeys(readers, 0.0)
    for name, parts in sorted(parts_by_layer(state).items()):
        weight = weights[name].float().cpu()
        expected = delta_weight(parts, weight)
        for program, read in tuple(readers.items()):
            tolerance = HALF_TOLERANCE if half and program == "diffusers" else TOLERANCE
            result = _compare_layer(program, name, expected, weight, read, tolerance)
            max_errors[program] = max(max_errors[program], result.max_error)
            if not result.correct:
                results[program] = result
                del readers[program]
        if advance:
            advance(1)
    results |= {program: CompatibilityResult(program, max_errors[program]) for program in readers}
    ordered = tuple(results[program] for program in (*PROGRAMS, "diffusers", "peft") if program in results)
    return CompatibilityReport(path, len(layer_paths(state)), ordered, unread(path, model))


def _open_readers(
    path: Path, model: BaseModel, state: State
) -> tuple[dict[str, CompatibilityResult], dict[str, ChangeReader]]:
    """The results of programs that do not find the file's layers, and the readers of the others, by program."""
    tensors, _ = read_file(path)
    readers, unknown = program_readers(tensors, model)
    results = {program: _unknown_names(program, model.architecture, *missing) for program, missing in unknown.items()}
    if model.source is not None:
        loaded = _load_in_diffusers(path, model.source, model, state)
        if isinstance(loaded, CompatibilityResult):
            results[loaded.program] = loaded
        else:
            readers["diffusers"] = partial(layer_delta, loaded)
    if is_peft_file(tensors):
        readers["peft"] = peft_reader(tensors, path, layers_of(model.modules), model.architecture)
    return results, readers


def _unknown_names(program: str, architecture: str, name: str, missing: int, layers: int) -> CompatibilityResult:
    """The result of a program that does not find all names of a file."""
    if architecture not in NAMES[program]:
        reason = "it does not render this base model, or it is not known here how it reads LoRA files for it"
        return CompatibilityResult(program, unreadable=reason)
    if missing == layers or NAMES[program][architecture].strict:
        return CompatibilityResult(program, unreadable=f"it does not know layer names such as {name}")
    return CompatibilityResult(program, difference=f"it leaves out {missing} of {layers} layers, such as {name}")


def _load_in_diffusers(path: Path, source: Path, model: BaseModel, state: State) -> State | CompatibilityResult:
    """The adapter as diffusers loads it, or a result that says why its layers cannot be compared."""
    try:
        loaded = DiffusersReference(path, source, model).state()
    except ExportError as error:
        return CompatibilityResult("diffusers", unreadable=str(error).replace(f"diffusers does not load {path}: ", ""))
    ours, theirs = set(layer_paths(state)), set(layer_paths(loaded))
    if not theirs:
        return CompatibilityResult("diffusers", unreadable="it finds no LoRA in the file")
    if missing := sorted(ours - theirs):
        return CompatibilityResult("diffusers", difference=f"it leaves out {len(missing)} layers, such as {missing[0]}")
    if added := sorted(theirs - ours):
        return CompatibilityResult("diffusers", difference=f"it changes {len(added)} more layers, such as {added[0]}")
    return loaded


def _compare_layer(
    program: str, name: str, expected: Tensor, weight: Tensor, read: ChangeReader, tolerance: float
) -> CompatibilityResult:
    try:
        actual = read(name, weight)
    except ReadsDifferently as error:
        return CompatibilityResult(program, difference=f"{error} ({name})")
    except NotImplementedError as error:
        return CompatibilityResult(program, unreadable=f"{error} ({name})")
    except (RuntimeError, KeyError, IndexError, ValueError) as error:  # shapes that only autolora accepts
        return CompatibilityResult(program, unreadable=f"its formula does not fit {name} ({error})")
    if actual.shape != expected.shape:
        return CompatibilityResult(program, unreadable=f"its formula gives {tuple(actual.shape)} weights for {name}")
    size = float(torch.linalg.vector_norm(expected))
    apart = float(torch.linalg.vector_norm(actual - expected))
    if not apart <= tolerance * (size + float(torch.linalg.vector_norm(weight)) / 100):  # this form refuses NaN too
        return CompatibilityResult(program, difference=f"its change of {name} is {apart / max(size, 1e-12):.1%} off")
    return CompatibilityResult(program, apart / size if size else apart)
