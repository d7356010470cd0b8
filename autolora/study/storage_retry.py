"""A storage whose calls wait while its database cannot be reached."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from optuna.storages import BaseStorage
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
)

from autolora.errors import StorageError, StudyError

LONGEST_WAIT = 15.0  # seconds between two tries to reach a database
_FULL = ("disk is full", "No space left", "quota exceeded", "disk I/O error", "File too large")
_GONE = ("readonly database", "unable to open database file")
_OF_CONTENT = (ValueError, TypeError, AssertionError, AttributeError, IndexError, OverflowError, RecursionError)
Log = Callable[[str], None]


def retrying(storage: BaseStorage, name: str, log: Log) -> BaseStorage:
    """Wrap a storage: each of its methods waits until the database is reachable.

    Raises (of the methods):
        StorageError: the disk of the database is full.
    """

    def waiting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
            return _wait_for(lambda: method(*args, **kwargs), name, log)

        return call

    names = [key for key, value in vars(BaseStorage).items() if callable(value) and not key.startswith("_")]
    methods: dict[str, Any] = {key: waiting(getattr(storage, key)) for key in names}
    kind: type[BaseStorage] = type("PatientStorage", (BaseStorage,), {**methods, "behind": storage})
    return kind()


def _wait_for(ask: Callable[[], Any], name: str, log: Log) -> Any:
    for tries in itertools.count():
        try:
            found = ask()
        except Exception as error:
            if any(words in str(error.__cause__ or error) for words in _FULL):
                raise StorageError(
                    f"{name} cannot be written: its disk is full, or `ulimit -f` is reached; free some space, then run "
                    "the same command"
                ) from error
            refuse_broken(error, name)
            if not is_unreachable(error):
                raise
            if tries == 1:  # the first error may be a stale connection only
                log(f"{name} is unreachable ({_reason(error)}): waiting for it")
        else:
            if tries > 1:
                log(f"{name} is reachable again")
            return found
        time.sleep(min(2.0 ** min(tries, 10) / 4, LONGEST_WAIT))
    raise AssertionError("unreachable")


def refuse_broken(error: BaseException, name: str) -> None:
    """Tell what to do where a storage holds what no study wrote, or where its file is gone.

    Raises:
        StorageError: the file was moved, deleted or write-protected.
        StudyError: the content is broken.
    """
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, sqlite3.Error):
        if any(words in str(cause) for words in _GONE):
            raise StorageError(
                f"{name} was moved, deleted or is write-protected ({_reason(error)}): put it back, then run the same "
                "command"
            ) from error
        if any(words in str(cause) for words in ("locked", "already exists", "UNIQUE constraint failed: alembic")):
            return  # another process is at it
    elif not (isinstance(error, _OF_CONTENT) or type(error) is LookupError):
        return
    raise StudyError(
        f"{name} is broken ({_reason(error)}): restore it from a copy, or start another study with out=OTHER_FOLDER"
    ) from error


def is_unreachable(error: BaseException) -> bool:
    """Whether an error of a storage means that it is unreachable now and may be reachable later."""
    if type(error).__module__.startswith("grpc") and getattr(error, "code", None):
        return str(error.code()) == "StatusCode.UNAVAILABLE"  # type: ignore[attr-defined]
    return _is_unreachable(error) or (error.__cause__ is not None and is_unreachable(error.__cause__))


def _is_unreachable(error: BaseException) -> bool:
    if isinstance(error, PendingRollbackError):  # Optuna used a connection again that was just lost
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return isinstance(error, DBAPIError) and error.connection_invalidated
    return not isinstance(error.orig, sqlite3.Error) or "locked" in str(error.orig)


def _reason(error: BaseException) -> str:
    """The message of a database, in one line; no driver puts a password into it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error)
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__
