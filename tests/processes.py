"""Functions in processes of their own, forked from one that imported the package once: importing takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = ("autolora.study.full_study", "tests.study.search.chaos")


def start(function: Callable[..., int | None], *arguments: Any, errors: Path) -> BaseProcess:
    """Start a process; its exit code is the number that the function returns, and `errors` gets its standard error."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    process = context.Process(target=_run, args=(function, arguments, errors))
    process.start()
    return process


def _run(function: Callable[..., int | None], arguments: tuple[Any, ...], errors: Path) -> None:
    with errors.open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.exit(function(*arguments))
