"""Progress bars with time left, one set for a whole command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)


class Bars:
    """Nested progress bars on standard error; finished ones go away."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
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

    def total(self, task: TaskID, total: float) -> None:
        """Say how far a bar goes."""
        self._progress.update(task, total=total)

    def remove(self, task: TaskID) -> None:
        """Take a bar away."""
        self._progress.remove_task(task)

    @contextmanager
    def task(self, description: str, total: float | None) -> Iterator[Callable[[int], None]]:
        """A bar for one block; yields what moves it on."""
        task = self.add(description, total)
        try:
            yield lambda count: self._progress.advance(task, count)
        finally:
            self.remove(task)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, highlight=False, markup=False)
