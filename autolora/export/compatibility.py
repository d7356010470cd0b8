"""How each program reads a file that anyone may have written, and whether that is what the file says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from autolora.adapters.base import State
from autolora.adapters.deltas import change, parts_by_layer
from autolora.adapters.formats import delta, layer_paths, layer_weights, layers_of
from autolora.adapters.read import read_file, read_lora
from autolora.errors import ExportError
from autolora.export.key_names import layers_in_file, read_by
from autolora.export.peft_reader import by_peft, is_peft_file
from autolora.export.readers import CONSUMERS, Reader
from autolora.export.verify import DiffusersReference
from autolora.models.base import BaseModel

TOLERANCE = 1e-4  # of a layer's change, and a hundredth of that of its weight: 32-bit arithmetic in another order
HALVED = 2e-3  # the same where diffusers holds the file in half precision, as it does beside a 16-bit model
Read = Callable[[str, Tensor], Tensor]  # a layer's path and weight to its change


@dataclass(frozen=True)
class CompatibilityResult:
    """What a program makes of a file: all of it to within `apart`, or not, for the reason in one of the others."""

    program: str
    apart: float = 0.0  # the largest relative difference of a layer's change (Frobenius norm)
    unread: str = ""  # why it does not read the file
    differs: str = ""  # what it makes otherwise than the file says, with the first layer

    @property
    def alike(self) -> bool:
        """Whether it reads the file as it is meant."""
        return not (self.unread or self.differs)

    @property
    def verdict(self) -> str:
        """In a word or two: it reads the file as it is, otherwise, or not."""
        return "as it is" if self.alike else ("otherwise" if self.differs else "not")


def readings(
    path: Path, model: BaseModel, advance: Callable[[int], None] | None = None
) -> tuple[int, list[CompatibilityResult]]:
    """A file's number of layers, and how each program reads them; `advance` is told of every layer compared.

    Raises:
        ExportError: the file cannot be read, or was made for another base model.
    """
    state, weights = read_lora(path, model), layer_weights(model.modules)
    done, reading = dict[str, CompatibilityResult](), dict[str, Read]()
    tensors, _ = read_file(path)
    readers = read_by(tensors, model.architecture)
    if readers is not None:
        reason = f"it does not know its layers' names ({next(iter(tensors))})"
        done = {program: CompatibilityResult(program, unread=reason) for program in CONSUMERS if program not in readers}
    if readers:
        layers = layers_in_file(tensors, model)
        reading = {program: partial(_by_formula, formula, layers) for program, formula in readers.items()}
    if model.source is not None:
        loaded = _in_diffusers(path, model.source, model, state)
        if isinstance(loaded, CompatibilityResult):
            done[loaded.program] = loaded
        else:
            reading["diffusers"] = partial(delta, loaded)
    if is_peft_file(tensors):
        reading["peft"] = by_peft(tensors, path, layers_of(model.modules))
    halved = model.dtype != torch.float32
    worst = dict.fromkeys(reading, 0.0)
    for name, parts in sorted(parts_by_layer(state).items()):
        weight = weights[name].float().cpu()
        wanted = change(parts, weight)
        for program, read in tuple(reading.items()):
            tolerance = HALVED if halved and program == "diffusers" else TOLERANCE
            found = _compare(program, name, wanted, weight, read, tolerance)
            worst[program] = max(worst[program], found.apart)
            if not found.alike:
                done[program] = found
                del reading[program]
        if advance:
            advance(1)
    done |= {program: CompatibilityResult(program, worst[program]) for program in reading}
    return len(layer_paths(state)), [done[program] for program in (*CONSUMERS, "diffusers", "peft") if program in done]


def _by_formula(formula: Reader, layers: dict[str, State], name: str, weight: Tensor) -> Tensor:
    return formula(layers[name], weight).flatten(1)


def _in_diffusers(path: Path, source: Path, model: BaseModel, state: State) -> State | CompatibilityResult:
    """The adapter as diffusers loads it, or why it is not to be compared."""
    try:
        loaded = DiffusersReference(path, source, model).state()
    except ExportError as error:
        return CompatibilityResult("diffusers", unread=str(error).replace(f"diffusers does not load {path}: ", ""))
    ours, theirs = set(layer_paths(state)), set(layer_paths(loaded))
    if not theirs:
        return CompatibilityResult("diffusers", unread="it finds no LoRA in the file")
    if missing := sorted(ours - theirs):
        return CompatibilityResult("diffusers", differs=f"it leaves out {len(missing)} layers, such as {missing[0]}")
    if added := sorted(theirs - ours):
        return CompatibilityResult("diffusers", differs=f"it changes {len(added)} layers more, such as {added[0]}")
    return loaded


def _compare(
    program: str, name: str, wanted: Tensor, weight: Tensor, read: Read, tolerance: float
) -> CompatibilityResult:
    try:
        found = read(name, weight)
    except NotImplementedError as error:
        return CompatibilityResult(program, unread=f"{error} ({name})")
    size = float(torch.linalg.vector_norm(wanted))
    apart = float(torch.linalg.vector_norm(found - wanted))
    if not apart <= tolerance * (size + float(torch.linalg.vector_norm(weight)) / 100):
        return CompatibilityResult(
            program, differs=f"its change of {name} is {apart / max(size, 1e-12):.1%} off what the file says"
        )
    return CompatibilityResult(program, apart / size if size else apart)
