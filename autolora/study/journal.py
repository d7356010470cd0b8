"""A journal file that a full disk or a killed process cannot break."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from autolora.study.optuna_internals import journal_path


class JournalLock(JournalFileOpenLock):
    """A lock on a journal file that the operating system releases when its holder dies."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.lock = FileLock(path.with_name(f"{path.name}.lock"))

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.lock.acquire()
        return True

    def release(self) -> None:
        """Give the lock to the next process that waits."""
        self.lock.release()


class SafeJournalBackend(JournalFileBackend):
    """A journal of whole lines: a line that a full disk or a power cut left half written is removed."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines; if that fails, the file stays as it was."""
        path = Path(journal_path(self))
        half = _half_line(path)
        if half:
            os.truncate(path, path.stat().st_size - half)
        size = path.stat().st_size
        try:
            super().append_logs(logs)
        except OSError:
            os.truncate(path, size)
            raise


def _half_line(path: Path) -> int:
    """The number of bytes after the last end of a line."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return 0
        file.seek(0)
        return size - file.read().rfind(b"\n") - 1
