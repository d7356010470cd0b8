"""Whatever somebody puts into a study, no command that reads it changes anything outside, runs anything, or tells a
secret; and every mistake is told in one line."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from autolora.cli import main
from autolora.commands import check, dashboard
from autolora.errors import AutoloraError
from autolora.evaluation import session
from autolora.study import storage_retry
from tests.study.hostile import MUTATIONS, SECRET, Fence
from tests.study.search.test_tune import SMALL

pytestmark = pytest.mark.slow  # reads a study that was trained

COUNT = int(os.environ.get("AUTOLORA_MUTATIONS", "16"))
WRITES = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "shutil.rmtree", "sqlite3.connect"}
_watched: list[tuple[Path, list[str]]] = []  # what the audit hook, which cannot be removed, checks at the moment


class Accepted(AutoloraError):
    """What was read is accepted; what follows needs a model and takes long."""


def accept(*_: object, **__: object) -> None:
    raise Accepted("accepted")


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note every write outside of the folders of the study."""
    is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if not _watched or not (is_write or event in WRITES | {"subprocess.Popen", "os.system", "os.exec"}):
        return
    if event in ("os.remove", "os.rmdir") and arguments[1] != -1:  # within a folder that `shutil.rmtree` told before
        return
    root, violations = _watched[0]
    for place in arguments[: 2 if event == "os.rename" else 1]:
        if not isinstance(place, str | bytes | os.PathLike):
            continue
        path = Path(os.path.realpath(os.fsdecode(place)))
        allowed = (*(root / name for name in ("run", "elsewhere", "mine/conf", "../tmp")), Path(os.devnull))
        if not any(path.is_relative_to(folder.resolve()) for folder in allowed):
            violations.append(f"{event} {path}")


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything in a folder, without `.cache`, where onnxruntime keeps a database when imported."""
    paths = [path for path in sorted(folder.rglob("*")) if ".cache" not in path.parts]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths}


@pytest.fixture(scope="module")
def heard() -> Iterator[tuple[int, list[bytes]]]:
    """A port, and what was sent there."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                with connection:
                    connection.settimeout(0.2)
                    try:
                        received.append(connection.recv(4096))
                    except OSError:
                        continue

        threading.Thread(target=listen, daemon=True).start()
        yield server.getsockname()[1], received


def copy_study(finished: Path, root: Path, port: int) -> Fence:
    """The fence with a copy of a finished study and of its LoRA; files that are only read are linked."""
    fence = Fence(root, port)
    for folder in (".ssh", "work/.git", "evil"):
        (fence.home / folder).mkdir(parents=True, exist_ok=True)
    (fence.home / ".ssh" / "id").write_text("private")
    (fence.home / ".bashrc").write_text("mine")
    shutil.copytree(finished / "run", fence.run, copy_function=os.link, ignore=shutil.ignore_patterns("latest.pt"))
    (fence.run / "study.db").unlink()
    shutil.copy(finished / "run" / "study.db", fence.run / "study.db")
    shutil.copytree(finished / "mine", root / "mine")
    shutil.copy(next((finished / "run" / "best").glob("*.safetensors")), fence.lora)
    for place in (fence.home, root / "mine", fence.run):
        (place / "evil.py").write_text(f"import os; os.mkdir({str(fence.home / 'ran')!r})")
        (place / "sqlalchemy.py").write_text("raise SystemExit('imported')")
    return fence


def command_of(name: str, fence: Fence, cache: Path) -> list[str]:
    """The command line by which somebody uses what was given."""
    places = [f"out={fence.run}", f"cache={cache}", *SMALL]
    study = [str(fence.study), *places]
    return {
        "joined": ["worker", "study=small", f"storage=sqlite:///{fence.run / 'study.db'}", f"cache={cache}"],
        "compare": ["compare", str(fence.run), f"out={fence.root / 'elsewhere'}"],
        "warm": ["tune", str(fence.study), *places[1:], f"out={fence.root / 'elsewhere'}", f"warm_start=[{fence.run}]"],
        "recipe": ["export", *study, "save_recipe=mine"],
        "score": ["score", str(fence.lora), *places],
        "verify": ["verify", str(fence.lora), "model=paperdoll"],
    }.get(name, [name, *study])


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands stop where a model would be loaded, and do not wait for what is not there."""
    for place in ("autolora.commands.export", "autolora.commands.worker", "autolora.study.full_study"):
        monkeypatch.setattr(f"{place}.open_session", accept)
    monkeypatch.setattr(session, "open_session", accept)
    monkeypatch.setattr(check, "measured_sections", lambda *_: [])
    monkeypatch.setattr(dashboard, "open_server", accept)
    monkeypatch.setattr(storage_retry, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr("autolora.study.storage.OPENINGS", 1)


def test_what_somebody_else_made_does_no_harm(
    finished: Path,
    tmp_path: Path,
    heard: tuple[int, list[bytes]],
    shortened: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sys.addaudithook(audit)
    port, received = heard
    monkeypatch.setenv("SECRET", SECRET)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before, codes, faults = snapshot(finished / "run"), list[int](), list[str]()
    for seed in range(COUNT):
        root = tmp_path / f"{seed}"
        root.mkdir()
        fence = copy_study(finished, root, port)
        random = Random(seed)
        mutate, commands = MUTATIONS[random.choice(list(MUTATIONS))]
        mutate(fence, random)
        command = command_of(random.choice(commands), fence, finished / "cache")
        about = f"seed {seed}, {mutate.__name__}: {' '.join(command[:2])}"
        monkeypatch.setenv("HOME", str(fence.home))
        monkeypatch.chdir(root / "mine")
        outside, violations = snapshot(fence.home), list[str]()
        _watched.append((root, violations))
        try:
            codes.append(main(command))
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            faults.append(f"{about} ended in {type(error).__name__}: {error} ({place.filename}:{place.lineno})")
        finally:
            _watched.clear()
        said = "".join(capfd.readouterr())
        changed = [f"{pair[0]} changed" for pair in set(snapshot(fence.home).items()) ^ set(outside.items())]
        if changed or violations:
            faults.append(f"{about} did something outside: {changed + violations}")
        if "Traceback" in said or SECRET in said or "\x1b" in said:
            faults.append(f"{about} said {said}")
        if [m for m in list(sys.modules.values()) if str(getattr(m, "__file__", "")).startswith(str(root))]:
            faults.append(f"{about} imported something")
        shutil.rmtree(root)
    assert not faults, "\n".join([f"{len(faults)} faults", *faults])
    assert not [content for content in received if SECRET.encode() in content]
    assert snapshot(finished / "run") == before
    assert len(set(codes)) > 1  # some are accepted, some are refused
