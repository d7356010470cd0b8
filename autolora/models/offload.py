"""Which parts of a model are on the GPU: those in use; the others wait in the CPU's memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor, nn

ROOMY = 20 * 2**30  # bytes of a card on which nothing needs to leave


class OffloadManager:
    """Brings frozen parts to a device for as long as someone uses them.

    Their weights never change, so leaving copies nothing: a part points again at what it left in the CPU's memory,
    where it is pinned, as that halves the time of coming back, unless it takes more than a quarter of what is free.
    """

    def __init__(self, device: torch.device, parts: Mapping[str, nn.Module], offload: bool) -> None:
        self.device = device
        self._users = Counter[str]()
        self._homes: dict[str, list[tuple[Tensor, Tensor]]] = {}  # by part: each tensor, and its place while it waits
        if offload:
            for name, part in parts.items():
                tensors = [*part.parameters(), *part.buffers()]
                size = sum(tensor.nbytes for tensor in tensors)
                pinned = device.type == "cuda" and size < psutil.virtual_memory().available / 4
                homes = [tensor.data.cpu().pin_memory() if pinned else tensor.data.cpu() for tensor in tensors]
                self._homes[name] = [*zip(tensors, homes, strict=True)]
                self._leave(name)
        else:
            for part in parts.values():
                part.to(device)

    @contextmanager
    def on_device(self, *names: str) -> Iterator[None]:
        """These parts on the device; they leave when nobody uses them any more."""
        self.keep_on_device(*names)
        try:
            yield
        finally:
            for name in names:
                self._users[name] -= 1
                if not self._users[name]:
                    self._leave(name)

    def keep_on_device(self, *names: str) -> None:
        """These parts on the device from now on, since something there belongs to them."""
        for name in names:
            if not self._users[name]:
                self._arrive(name)
            self._users[name] += 1

    def _arrive(self, name: str) -> None:
        with torch.inference_mode(False):  # gradients may flow through it later
            for tensor, home in self._homes.get(name, ()):
                tensor.data = self._sent(home)

    def _sent(self, home: Tensor) -> Tensor:
        return home.to(self.device, non_blocking=True)

    def _leave(self, name: str) -> None:
        for tensor, home in self._homes.get(name, ()):
            tensor.data = home


def offloads(wanted: bool | None, device: torch.device) -> bool:
    """Whether parts leave a device: as asked for, else where it is a GPU of less than 20 GiB."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_properties(device).total_memory < ROOMY if wanted is None else wanted
