"""Moves parts of a model to the GPU while they are used and back to the CPU's memory afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

NO_OFFLOAD_BYTES = 20 * 2**30  # a GPU with this much memory holds all parts


class OffloadManager:
    """Moves frozen parts to a device while they are used.

    Frozen weights do not change, so nothing is copied back: a part points again at its copy in the CPU's memory. That
    copy is pinned, which halves the time of the next transfer, unless it needs more than a quarter of the free memory.
    """

    def __init__(self, device: torch.device, parts: Mapping[str, nn.Module], offload: bool) -> None:
        self.device = device
        self._users = Counter[str]()
        self._cpu_copies: dict[str, list[tuple[Tensor, Tensor]]] = {}  # by part: each tensor and its copy on the CPU
        if offload:
            for name, part in parts.items():
                tensors = [*part.parameters(), *part.buffers()]
                size = sum(tensor.nbytes for tensor in tensors)
                pinned = device.type == "cuda" and size < psutil.virtual_memory().available / 4
                copies = [tensor.data.cpu().pin_memory() if pinned else tensor.data.cpu() for tensor in tensors]
                self._cpu_copies[name] = [*zip(tensors, copies, strict=True)]
                self._move_back(name)
        else:
            for part in parts.values():
                part.to(device)

    @contextmanager
    def on_device(self, *names: str) -> Iterator[None]:
        """Keep these parts on the device inside the block; they move back when no other block uses them."""
        self.keep_on_device(*names)
        try:
            yield
        finally:
            for name in names:
                self._users[name] -= 1
                if not self._users[name]:
                    self._move_back(name)

    def keep_on_device(self, *names: str) -> None:
        """Keep these parts on the device from now on."""
        for name in names:
            if not self._users[name]:
                self._move_in(name)
            self._users[name] += 1

    def _move_in(self, name: str) -> None:
        with torch.inference_mode(False):  # gradients may flow through the weights later
            for tensor, copy in self._cpu_copies.get(name, ()):
                tensor.data = self._to_device(copy)

    def _to_device(self, copy: Tensor) -> Tensor:
        return copy.to(self.device, non_blocking=True)

    def _move_back(self, name: str) -> None:
        for tensor, copy in self._cpu_copies.get(name, ()):
            tensor.data = copy


def offloads(setting: bool | None, device: torch.device) -> bool:
    """Whether unused parts leave the device: as set, else on a GPU with less than 20 GiB."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_properties(device).total_memory < NO_OFFLOAD_BYTES if setting is None else setting
