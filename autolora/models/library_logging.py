"""Silences diffusers and transformers while autolora calls them, because autolora checks and reports itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def silence_libraries(level: int = logging.ERROR) -> Iterator[None]:
    """Inside the block, hide the libraries' progress bars and their log messages below a level."""
    libraries: tuple[Any, ...] = (diffusers_logging, transformers_logging)  # untyped
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity(level)
    try:
        yield
    finally:
        for library, (bar, verbosity) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
