"""Opens a study's storage: SQLite, a journal file, PostgreSQL (or another database of SQLAlchemy), a gRPC proxy.

A storage may be unreachable for a while: its methods wait, log that, and continue.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalStorage
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
)

from autolora.errors import ConfigError, StudyError
from autolora.study.optuna_internals import journal_path
from autolora.study.received import check_study
from autolora.study.storage_retry import Log, _reason, is_unreachable, refuse_broken, retrying

EXAMPLES = "sqlite:///FILE.db, journal:///FILE.log, postgresql+psycopg://USER:PASSWORD@HOST/NAME or grpc://HOST:PORT"
_SECRET = re.compile(r"([?&][^=&]*(?:pass|pwd|secret|token|key)[^=&]*=)[^&]*", re.IGNORECASE)  # in a URL's query
OPENINGS = 8  # tries to open a database that is still starting, or whose tables another process creates: 8 s in all


def storage_url(given: str | None, folder: Path) -> str:
    """The URL of a study's storage: None means SQLite in the study's folder, `journal` a journal file there.

    Raises:
        ConfigError: the folder's name cannot be written in a URL.
    """
    if given is None:
        path = str(folder / "study.db")
        url = URL.create("sqlite", database=path).render_as_string()  # with characters such as ? and % quoted
        if make_url(url).database != path:  # by SQLAlchemy before 2.1
            raise ConfigError(f"{folder} cannot hold a database by its name: choose out=FOLDER without ? and %")
        return url
    return f"journal:///{folder / 'study.log'}" if given == "journal" else given


def holds_study(folder: Path) -> bool:
    """Whether a folder holds a study."""
    return any((folder / name).is_file() for name in ("study.db", "study.log"))


def load_study_from_folder(folder: Path) -> optuna.Study:
    """The study of a folder; its finals and priors, which are studies too, are left out.

    Raises:
        StudyError: it holds none.
    """
    if not holds_study(folder):
        raise StudyError(f"{folder} holds no study (no study.db): give a folder that `autolora tune` wrote")
    storage = study_storage(folder)
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if "space" in study.user_attrs:
            return check_study(study)
    raise StudyError(f"{folder} holds a study that was never started; run `autolora tune` on it")


def study_storage(folder: Path) -> BaseStorage:
    """The storage of the study in a folder."""
    return open_storage(storage_url("journal" if (folder / "study.log").is_file() else None, folder), print)


def redact_url(url: str) -> str:
    """The URL of a storage without passwords and other secrets of its query, for messages, logs and files."""
    if url.startswith("journal:"):
        return url
    if not _is_sql(url):
        return re.sub(r"//.*@", "//***@", url)
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return "***"
    shown = _SECRET.sub(r"\1***", parsed.render_as_string(hide_password=True))
    return re.sub(r"//([^:@/]*).*@", r"//\1:***@", shown) if "@" in (parsed.host or "") else shown


def _is_sql(url: str) -> bool:
    return not url.startswith(("journal:", "grpc:"))


def open_storage(url: str, log: Log) -> BaseStorage:
    """Open a storage by its URL; `log` is told while it cannot be reached.

    Raises:
        ConfigError: no such kind of storage, or the package for it is not installed.
        StudyError: nothing answers there.
    """
    try:
        if _is_sql(url) and "@" in (make_url(url).host or ""):
            raise ConfigError(f"storage={redact_url(url)}: a password that holds @ needs %40 in its place")
        return retrying(_open(url, log), f"the storage {redact_url(url)}", log)
    except json.JSONDecodeError as error:
        raise StudyError(
            f"storage={redact_url(url)} has a broken line ({error}): restore the file from a copy, or remove that "
            "line; what it recorded is then lost"
        ) from error
    except (KeyError, IndexError, TypeError, AttributeError, AssertionError, RuntimeError) as error:
        raise StudyError(
            f"storage={redact_url(url)} holds no study that this version reads ({type(error).__name__}: "
            f"{_reason(error)}): restore it from a copy, or start another study with out=OTHER_FOLDER"
        ) from error
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        raise ConfigError(f"storage={redact_url(url)} is not understood; expected {EXAMPLES}") from error
    except ImportError as error:
        extra = "grpc" if url.startswith("grpc:") else "postgres"
        raise ConfigError(
            f"storage={redact_url(url)} needs a package that is missing ({error.name or error}): "
            f"pip install 'autolora[{extra}]', and write postgresql+psycopg:// for PostgreSQL"
        ) from error
    except (DBAPIError, StorageInternalError, ConnectionError, OSError) as error:
        raise StudyError(f"nothing can be opened at storage={redact_url(url)}: {_reason(error)}") from error


def _open(url: str, log: Log) -> BaseStorage:
    kind, _, place = url.partition("://")
    if kind == "journal":
        path = Path(
            place.removeprefix("/")
        )  # as in SQLAlchemy: three slashes and a relative path, four and an absolute one
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(SafeJournalBackend(str(path), JournalLock(path)))
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
        except (DBAPIError, StorageInternalError) as error:  # Optuna wraps what fails in its first transaction
            refuse_broken(error, f"the storage {redact_url(url)}")
            if tries == OPENINGS:
                raise
            if tries == 1 and is_unreachable(error):
                log(f"the storage {redact_url(url)} is unreachable ({_reason(error)}): trying again")
            time.sleep(0.3 * tries)
    raise AssertionError("unreachable")


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
