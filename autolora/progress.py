"""Progress bars with time left, one set for a whole command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

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


class _Headed(Progress):
    """Bars below something else."""

    head: RenderableType = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn: the head, then the bars."""
        if self.head:
            yield self.head
        yield from super().get_renderables()


class Bars:
    """Nested progress bars on standard error; finished ones go away. Without a terminal only lines are written.

    `quiet` shows nothing at all.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(stderr=True, quiet=quiet)
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

    def log(self, line: str) -> None:
        """Print a line above the bars; where there is no terminal it stays one line, however long."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)

    def show(self, head: RenderableType, line: str | None = None) -> None:
        """Keep something in view above the bars; where there is no terminal a line, if there is one, says it."""
        if self.console.is_terminal:
            self._progress.head = head
            self._progress.refresh()
        elif line is not None:
            self.log(line)
