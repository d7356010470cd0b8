"""Storages: what is opened, what is refused and how, who waits for what."""

from __future__ import annotations

import errno
import socket
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import OperationalError, PendingRollbackError, ProgrammingError

from autolora.errors import AutoloraError, ConfigError, StorageError, StudyError
from autolora.study import storage_retry
from autolora.study.storage import open_storage, redact_url, storage_url
from autolora.study.storage_retry import retrying


def nothing(_: str) -> None: ...


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql+psycopg://mona:hush@db/lora", "postgresql+psycopg://mona:***@db/lora"),
        ("postgresql+psycopg://mona@db/lora", "postgresql+psycopg://mona@db/lora"),
        ("mysql://a:hush@b:1/c?ssl=1", "mysql://a:***@b:1/c?ssl=1"),
        ("journal:///a/b.log", "journal:///a/b.log"),
        ("mysql://db/c?user=a&password=hush&sslmode=on", "mysql://db/c?password=***&sslmode=on&user=a"),
        ("mysql://db/c?sslpassword=hush", "mysql://db/c?sslpassword=***"),
        ("mysql://a:hu@hush@db/c", "mysql://a:***@db/c"),
        ("mysql://a:hush@b:port/c", "***"),
        ("journal:///a@b/c.log", "journal:///a@b/c.log"),
        ("grpc://a:hush@b:1", "grpc://***@b:1"),
        ("hush", "***"),
    ],
)
def test_a_password_is_never_shown(url: str, seen: str) -> None:
    assert redact_url(url) == seen


@pytest.mark.parametrize("given", [None, "journal"])
@pytest.mark.parametrize("name", ["what?", "a%20b", "x?a", "x?b", "%", "a&b=c#d", "name with spaces", "日本"])
def test_a_folder_of_any_name_holds_its_own_storage(
    given: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    open_storage(storage_url(given, Path(name)), nothing)
    assert {path.name for path in tmp_path.iterdir()} == {name} and list((tmp_path / name).glob("study.*"))


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("nonsense", ConfigError, "expected sqlite:"),
        ("oracles://a:hush@b/c", ConfigError, "expected sqlite:"),
        ("postgresql+psycopg2://a:hush@b/c", ConfigError, r"pip install 'autolora\[postgres\]'"),
        ("postgresql+psycopg://a:hush@127.0.0.1:1/c", StudyError, "nothing can be opened"),
        ("mysql://a:hush@b:port/c", ConfigError, "expected sqlite:"),
        ("mysql://a:hu@hush@b/c", ConfigError, "%40 in its place"),
        ("grpc://localhost:notaport", ConfigError, "expected sqlite:"),
        ("sqlite:////proc/nowhere/study.db", StudyError, "nothing can be opened"),
    ],
)
def test_what_cannot_be_opened_is_explained(
    url: str, kind: type[AutoloraError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_retry.time, "sleep", lambda _: None)  # between two tries
    with pytest.raises(kind, match=message) as caught:
        open_storage(url, nothing)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("given", [None, "journal"])
def test_a_study_lies_in_its_folder_unless_told_otherwise(given: str | None, tmp_path: Path) -> None:
    optuna.create_study(storage=open_storage(storage_url(given, tmp_path), nothing), study_name="mona").ask()
    again = open_storage(storage_url(given, tmp_path), nothing)
    assert len(optuna.load_study(storage=again, study_name="mona").trials) == 1
    assert (tmp_path / ("study.db" if given is None else "study.log")).is_file()


def test_a_grpc_proxy_serves_a_study(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    behind = open_storage(storage_url(None, tmp_path), nothing)
    serve = threading.Thread(
        target=lambda: optuna.storages.run_grpc_proxy_server(behind, host="localhost", port=port), daemon=True
    )
    serve.start()
    study = optuna.create_study(storage=open_storage(f"grpc://localhost:{port}", nothing), study_name="mona")
    study.tell(study.ask(), 1.0)
    assert optuna.load_study(storage=behind, study_name="mona").best_value == 1.0


def journal(path: Path) -> optuna.Study:
    return optuna.create_study(
        storage=open_storage(f"journal:///{path}", nothing), study_name="mona", load_if_exists=True
    )


def test_half_a_line_in_a_journal_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    journal(path).tell(journal(path).ask(), 1.0)
    with path.open("ab") as file:
        file.write(b'{"op_code":')
    journal(path).ask()
    assert len(journal(path).trials) == 2
    assert path.read_bytes().endswith(b"\n") and b'{"op_code":\n' not in path.read_bytes()


def test_a_full_disk_leaves_a_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.log"
    study = journal(path)
    study.ask()
    before = path.read_bytes()

    def full(self: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        path.write_bytes(before + b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(StorageError, match="disk is full"):
        study.ask()
    assert path.read_bytes() == before


class Failing(optuna.storages.InMemoryStorage):
    """Fails some times before it answers."""

    def __init__(self, *errors: Exception) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.errors = list(errors)

    def get_all_studies(self) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return super().get_all_studies()


def lost(text: str, kind: type[Exception] = OperationalError) -> Exception:
    """As Optuna passes on what the database said."""
    error = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    error.__cause__ = kind("SELECT", {}, Exception(text))  # type: ignore[call-arg]
    return error


def test_a_database_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(storage_retry.time, "sleep", pauses.append)
    said: list[str] = []
    asked_again = optuna.exceptions.StorageInternalError("An exception is raised during the commit.")
    asked_again.__cause__ = PendingRollbackError("Can't reconnect until invalid transaction is rolled back.")
    behind = Failing(asked_again, *[lost("server closed the connection") for _ in range(9)])
    assert retrying(behind, "the storage", said.append).get_all_studies() == []
    assert said == [
        "the storage is unreachable (server closed the connection): waiting for it",
        "the storage is reachable again",
    ]
    assert pauses[0] < 1 and max(pauses) == storage_retry.LONGEST_WAIT


def test_a_full_database_and_a_mistake_are_not_waited_for() -> None:
    with pytest.raises(StorageError, match="disk is full"):
        retrying(Failing(lost("could not extend file: No space left on device")), "it", nothing).get_all_studies()
    with pytest.raises(optuna.exceptions.StorageInternalError):
        retrying(Failing(lost("no such table", ProgrammingError)), "it", nothing).get_all_studies()


@pytest.mark.parametrize("content", [b"no database" * 99, b"SQLite format 3\0" * 99], ids=["text", "header"])
def test_a_broken_database_is_told_as_one(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.db is broken \(.*\): restore it from a copy"):
        open_storage(f"sqlite:///{tmp_path / 'study.db'}", nothing)


@pytest.mark.parametrize("how", ["trials SET state = 'ODD'", "trial_user_attributes SET value_json = '{'"])
def test_a_database_with_odd_values_is_told_as_broken(how: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=open_storage(url, nothing), study_name="mona")
    study.ask().set_user_attr("a", 1)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute(f"UPDATE {how}")
        database.commit()
    with pytest.raises(StudyError, match="is broken"):
        _ = optuna.load_study(storage=open_storage(url, nothing), study_name="mona").trials


def test_a_database_that_is_deleted_while_it_is_used_is_told(tmp_path: Path) -> None:
    study = optuna.create_study(
        storage=open_storage(f"sqlite:///{tmp_path / 'study.db'}", nothing), study_name="mona", direction="maximize"
    )
    (tmp_path / "study.db").unlink()
    with pytest.raises((StudyError, StorageError), match=r"study\.db (is broken|was moved)"):
        study.set_user_attr("a", 1)


def test_a_broken_line_of_a_journal_is_told_as_one(tmp_path: Path) -> None:
    journal = tmp_path / "study.log"
    optuna.create_study(storage=open_storage(f"journal:///{journal}", nothing), study_name="mona")
    journal.write_text(journal.read_text() + '{"op_code": 4, "wor\n' + journal.read_text())
    with pytest.raises(StudyError, match=r"has a broken line .* restore the file"):
        open_storage(f"journal:///{journal}", nothing)
