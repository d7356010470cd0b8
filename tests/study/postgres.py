"""A PostgreSQL server of one's own: Debian's binaries, a folder under /tmp, gone afterwards."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PASSWORD = "s3cret-of-the-tests"


@dataclass(frozen=True)
class Server:
    """A running server: its storage URL, and the commands that stop it as a crash would and start it again."""

    url: str
    outage: list[list[str]]


def binaries() -> Path | None:
    """Where initdb and pg_ctl lie: of the newest of Debian's versions, or on the path."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    found = str(debian[-1]) if debian else shutil.which("initdb")
    return Path(found).parent if found else None


@contextmanager
def postgres() -> Iterator[Server]:
    """Start a server; the test is skipped where there is none, which .ci/run does not allow."""
    where = binaries()
    if where is None:
        assert "AUTOLORA_CI" not in os.environ, "no PostgreSQL: .ci/run installs it"
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="autolora-postgres-"))
    user = _someone()
    if user:
        shutil.chown(folder, user)
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, log = folder / "data", folder / "log"
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"

    def command(name: str, *arguments: str) -> list[str]:
        run_as = ["runuser", "-u", user, "--"] if user else []
        return [*run_as, str(where / name), *arguments]

    control = ["-D", str(data), "-l", str(log), "-w", "-o", options]
    login = ["-U", "autolora", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}"]
    _quietly(command("initdb", "-D", str(data), *login))
    start, crash = command("pg_ctl", "start", *control), command("pg_ctl", "stop", "-m", "immediate", "-D", str(data))
    _quietly(start)
    try:
        yield Server(f"postgresql+psycopg://autolora:{PASSWORD}@127.0.0.1:{port}/postgres", [crash, start])
    finally:
        _quietly(crash)
        shutil.rmtree(folder, ignore_errors=True)


def _someone() -> str | None:
    """Whom to run the server as: it refuses root."""
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _quietly(command: Sequence[str]) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")
