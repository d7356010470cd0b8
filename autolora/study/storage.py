"""Where a study lies: SQLite, a journal file, PostgreSQL (or what else SQLAlchemy knows), a gRPC proxy.

Every one of them may be away for a while: whoever asks waits, says so, and goes on.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    PendingRollbackError,
)

from autolora.errors import ConfigError, StorageError, StudyError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

EXAMPLES = "sqlite:///FILE.db, journal:///FILE.log, postgresql+psycopg://USER:PASSWORD@HOST/NAME or grpc://HOST:PORT"
LONGEST_WAIT = 15.0  # seconds between two tries to reach a database that is away
OPENINGS = 8  # tries to open a database that is starting, or whose tables another process is creating: 8 s
_FULL = ("disk is full", "No space left", "quota exceeded")
Say = Callable[[str], None]


def storage_url(given: str | None, folder: Path) -> str:
    """The URL of a study's storage; None is SQLite in the study's folder, `journal` a journal file there."""
    if given is None:
        return f"sqlite:///{folder / 'study.db'}"
    return f"journal:///{folder / 'study.log'}" if given == "journal" else given


def holds_study(folder: Path) -> bool:
    """Whether a study lies in a folder."""
    return any((folder / name).is_file() for name in ("study.db", "study.log"))


def study_in(folder: Path) -> optuna.Study:
    """The study that lies in a folder, without those beside it that hold its finals and what it started from.

    Raises:
        StudyError: it holds none.
    """
    if not holds_study(folder):
        raise StudyError(f"{folder} holds no study (no study.db): give a folder that `autolora tune` wrote")
    storage = study_storage(folder)
    for known in optuna.get_all_study_summaries(storage):
        if "space" in known.user_attrs:
            return optuna.load_study(study_name=known.study_name, storage=storage)
    raise StudyError(f"{folder} holds a study that never began; run `autolora tune` on it")


def study_storage(folder: Path) -> BaseStorage:
    """The storage of a study that lies in its folder."""
    return open_storage(storage_url("journal" if (folder / "study.log").is_file() else None, folder), print)


def shown(url: str) -> str:
    """A storage's URL without its password, for people, logs and files."""
    if not _is_sql(url):
        return url
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "***"


def _is_sql(url: str) -> bool:
    return not url.startswith(("journal:", "grpc:"))


def open_storage(url: str, say: Say) -> BaseStorage:
    """Open a storage by its URL; `say` is told while it is away.

    Raises:
        ConfigError: no such kind of storage, or the package for it is not installed.
        StudyError: nothing answers there.
    """
    try:
        return patient(_open(url, say), f"the storage {shown(url)}", say)
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigError(f"storage={shown(url)} is not understood; expected {EXAMPLES}") from error
    except ImportError as error:
        extra = "grpc" if url.startswith("grpc:") else "postgres"
        raise ConfigError(
            f"storage={shown(url)} needs a package that is missing ({error.name or error}): "
            f"pip install 'autolora[{extra}]', and write postgresql+psycopg:// for PostgreSQL"
        ) from error
    except (DBAPIError, ConnectionError, OSError) as error:
        raise StudyError(f"nothing can be opened at storage={shown(url)}: {_reason(error)}") from error


def _open(url: str, say: Say) -> BaseStorage:
    kind, _, place = url.partition("://")
    if kind == "journal":
        path = Path(place.removeprefix("/"))  # as SQLAlchemy has it: three slashes and a path from here, or four
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(WholeLines(str(path), KernelLock(path) if fcntl else JournalFileOpenLock(str(path))))
    if kind == "grpc":
        from optuna.storages import GrpcStorageProxy

        host, _, port = place.partition(":")
        proxy = GrpcStorageProxy(host=host or "localhost", port=int(port or 13000))
        proxy.wait_server_ready(timeout=20)
        return proxy
    database = make_url(url)
    if database.get_backend_name() == "sqlite":
        if database.database:
            Path(database.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"connect_args": {"timeout": 60}}
    else:
        options = {"pool_pre_ping": True, "pool_size": 3}
    for tries in range(1, OPENINGS + 1):
        try:
            return get_storage(RDBStorage(url, engine_kwargs=options))
        except DBAPIError as error:
            if tries == OPENINGS:
                raise
            if tries == 1 and _is_away(error):
                say(f"the storage {shown(url)} is away ({_reason(error)}): trying again")
            time.sleep(0.3 * tries)
    raise AssertionError("unreachable")


class KernelLock(JournalFileOpenLock):
    """A lock on a journal that the kernel releases when its holder dies; Optuna's own stays for half a minute."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path.with_name(f"{path.name}.lock")
        self.handle = -1

    def acquire(self) -> bool:
        """Wait for the lock."""
        self.handle = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self.handle, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        """Give the lock to whoever waits."""
        os.close(self.handle)


class WholeLines(JournalFileBackend):
    """A journal that holds whole lines only: one that a full disk or a power cut left half written is cut off."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append, or leave the file as it was."""
        path = Path(self._file_path)
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
    """Bytes after the last line's end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return 0
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return 0
        file.seek(0)
        return size - file.read().rfind(b"\n") - 1


def patient(storage: BaseStorage, name: str, say: Say) -> BaseStorage:
    """The storage, each of whose methods waits while the database is away, then does what it was asked.

    Raises (of the methods):
        StorageError: the disk of the database is full.
    """

    def waiting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(_: BaseStorage, *args: Any, **kwargs: Any) -> Any:
            return _wait_for(lambda: method(*args, **kwargs), name, say)

        return call

    names = [key for key, value in vars(BaseStorage).items() if callable(value) and not key.startswith("_")]
    methods: dict[str, Any] = {key: waiting(getattr(storage, key)) for key in names}
    kind: type[BaseStorage] = type("PatientStorage", (BaseStorage,), {**methods, "behind": storage})
    return kind()


def _wait_for(ask: Callable[[], Any], name: str, say: Say) -> Any:
    for tries in itertools.count():
        try:
            found = ask()
        except Exception as error:
            if any(words in str(error.__cause__ or error) for words in _FULL):
                raise StorageError(
                    f"{name} cannot be written: its disk is full; free some space, then go on"
                ) from error
            if not is_away(error):
                raise
            if tries == 1:  # not for a connection that was merely stale
                say(f"{name} is away ({_reason(error)}): waiting for it")
        else:
            if tries > 1:
                say(f"{name} is back")
            return found
        time.sleep(min(2.0 ** min(tries, 10) / 4, LONGEST_WAIT))
    raise AssertionError("unreachable")


def is_away(error: BaseException) -> bool:
    """Whether an error of a storage means that it cannot be reached now, and may be later."""
    if type(error).__module__.startswith("grpc") and getattr(error, "code", None):
        return str(error.code()) == "StatusCode.UNAVAILABLE"  # type: ignore[attr-defined]
    return _is_away(error) or (error.__cause__ is not None and is_away(error.__cause__))


def _is_away(error: BaseException) -> bool:
    if isinstance(error, PendingRollbackError):  # Optuna asked again on a connection that was just lost
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return isinstance(error, DBAPIError) and error.connection_invalidated
    return not isinstance(error.orig, sqlite3.Error) or "locked" in str(error.orig)


def _reason(error: BaseException) -> str:
    """What a database said, in one line; no driver quotes a password."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(getattr(error, "orig", None) or error)
    return text.strip().splitlines()[0].strip() if text.strip() else type(error).__name__
