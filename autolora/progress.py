"""Progress bars with time left, one set for a whole command; a program that uses autolora gets calls instead."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from autolora.errors import printable

LOGGER = logging.getLogger("autolora")


@dataclass(frozen=True)
class ProgressUpdate:
    """How far one task is; `total` is None while it is unknown."""

    task: str
    completed: float
    total: float | None


class _Headed(Progress):
    """Bars below a table or another header."""

    head: RenderableType = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The header, then the bars."""
        if self.head:
            yield self.head
        yield from super().get_renderables()


class Bars:
    """Nested progress bars on standard error; finished bars are removed. Without a terminal only lines are written.

    Lines also go to the logger `autolora`.

    Args:
        quiet: draw and print nothing.
        on_progress: is called whenever a task has moved.
    """

    def __init__(self, quiet: bool = False, on_progress: Callable[[ProgressUpdate], None] | None = None) -> None:
        self.console = Console(stderr=True, quiet=quiet)
        self._on_progress = on_progress
        self._progress = _Headed(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=quiet or not self.console.is_terminal,
            speed_estimate_period=60,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, description: str, total: float | None, completed: int = 0) -> TaskID:
        """Add a bar."""
        return self._progress.add_task(description, total=total, completed=completed)

    def set(self, task: TaskID, completed: float, description: str | None = None) -> None:
        """Move a bar."""
        self._progress.update(task, completed=completed, description=description)
        self._report(task)

    def total(self, task: TaskID, total: float) -> None:
        """Set the end of a bar."""
        self._progress.update(task, total=total)

    def remove(self, task: TaskID) -> None:
        """Remove a bar."""
        self._progress.remove_task(task)

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[Callable[[int], None]]:
        """A bar for one block; yields a function that advances it."""
        task = self.add(description, total)

        def advance(count: int) -> None:
            self._progress.advance(task, count)
            self._report(task)

        try:
            yield advance
        finally:
            self.remove(task)

    def _report(self, task: TaskID) -> None:
        if self._on_progress:
            state = next(one for one in self._progress.tasks if one.id == task)
            self._on_progress(ProgressUpdate(state.description, state.completed, state.total))

    def log(self, line: str) -> None:
        """Print a line above the bars; without a terminal it is not wrapped, however long it is."""
        line = printable(line)
        LOGGER.info(line)
        self.console.print(line, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def show(self, head: RenderableType, line: str | None = None) -> None:
        """Keep a header in view above the bars; without a terminal print `line` instead, if there is one."""
        if self.console.is_terminal:
            self._progress.head = head
            self._progress.refresh()
        elif line is not None:
            self.log(line)
