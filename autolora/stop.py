"""A stop by a signal: raised where it arrives, and again at the next step where that was lost."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2")  # the latter are how Slurm warns before it takes a machine away

_wanted = threading.Event()


class Stopped(KeyboardInterrupt):
    """One of the signals arrived."""


@contextmanager
def listening() -> Iterator[None]:
    """The signals raise `Stopped`; afterwards they do what they did before."""
    numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
    before = {number: signal.signal(number, _on_stop) for number in numbers}
    hook = sys.unraisablehook

    def said(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, Stopped):  # which comes again
            hook(unraisable)

    sys.unraisablehook = said
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _wanted.clear()
        sys.unraisablehook = hook


def check() -> None:
    """Stop if a signal arrived, for what a handler raises in a destructor is lost: Python prints it and goes on.

    Raises:
        Stopped: a signal arrived while listening.
    """
    if _wanted.is_set():
        raise Stopped


def _on_stop(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # what is in hand is handed back undisturbed
    _wanted.set()
    raise Stopped
