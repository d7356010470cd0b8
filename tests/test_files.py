"""Files are whole or not there, one by one and together."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autolora import files
from autolora.errors import ConfigError, StorageError
from autolora.files import atomic_files, expand_user, finished, remove_leftovers, write_atomic


def inside(folder: Path) -> dict[str, str]:
    """Every file, hidden ones too, with its text."""
    return {p.relative_to(folder).as_posix(): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_home_folders_are_those_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand_user("~/mona") == tmp_path / "mona" and expand_user("a~b/~") == Path("a~b/~")
    with pytest.raises(ConfigError, match="~zork/mona: there is no user zork: write ~/"):
        expand_user("~zork/mona")
    (tmp_path / "~zork").mkdir()
    assert expand_user("~zork") == Path("~zork")


def test_names_may_be_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    for longest in ("x" * 251 + ".txt", "é" * 125 + ".txt", "x" * 255):
        write_atomic(tmp_path / longest, "a")
    with pytest.raises(StorageError, match="the name is too long"):
        write_atomic(tmp_path / ("x" * 256), "a")
    with pytest.raises(StorageError, match="the name is too long"):
        write_atomic(tmp_path / ("x" * 300) / "a", "a")
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_no_text_is_escaped(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", "é mon\udce9")
    assert (tmp_path / "a.json").read_text("utf-8") == "é mon\\udce9"


def test_several_files_take_their_places_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights last: whoever finds them finds what belongs to them."""
    (tmp_path / "a.json").write_text("old")
    placed: list[str] = []
    replace = os.replace

    def noted(source: Path, target: Path) -> None:
        placed.append(Path(target).name)
        replace(source, target)

    with atomic_files(tmp_path) as hidden:
        for name in ("a.safetensors", "a.json", "copy/b.safetensors", "z.png"):
            write_atomic(hidden / name, "new")
        assert inside(tmp_path)["a.json"] == "old" and not (tmp_path / "a.safetensors").exists()
        monkeypatch.setattr(files.os, "replace", noted)
    assert inside(tmp_path) == dict.fromkeys(("a.json", "a.safetensors", "copy/b.safetensors", "z.png"), "new")
    assert placed == ["a.json", "z.png", "a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")

    def half() -> None:
        with atomic_files(tmp_path) as hidden:
            write_atomic(hidden / "a.json", "new")
            raise error

    with pytest.raises(error):
        half()
    assert inside(tmp_path) == {"a.json": "old"} and len(list(tmp_path.iterdir())) == 1


def test_a_disk_that_fills_up_half_way_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("old")

    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(StorageError, match=r"a\.json: no space left on the device"):
        write_atomic(tmp_path / "a.json", "new")
    with pytest.raises(StorageError, match="no space left"), atomic_files(tmp_path) as hidden:
        write_atomic(hidden / "a.json", "new")
    assert inside(tmp_path) == {"a.json": "old"} and len(list(tmp_path.iterdir())) == 1


WRITER = """
import sys
from itertools import count
from pathlib import Path
from autolora.files import atomic_files, write_atomic

for turn in count():
    with atomic_files(Path(sys.argv[1])) as hidden:
        for name in ("a.json", "a.safetensors"):
            write_atomic(hidden / name, f"{turn:07d}" * 100_000)
    print(turn, flush=True)
"""


def test_a_writer_that_is_killed_leaves_whole_files(tmp_path: Path) -> None:
    """At five moments of its work; weights are never newer than what lies beside them."""
    delays = random.Random(0)
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == b"0\n"
            time.sleep(delays.uniform(0, 0.05))
            writer.kill()
        beside, weights = ((tmp_path / name).read_text() for name in ("a.json", "a.safetensors"))
        for text in (beside, weights):
            assert text == text[:7] * 100_000
        assert int(beside[:7]) - int(weights[:7]) in (0, 1)
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_what_a_killed_writer_left_is_no_file_and_is_removed(tmp_path: Path) -> None:
    for name in (
        "a.safetensors",
        ".a-x1_45678.safetensors",
        ".new-x1_45678/b.safetensors",
        ".new-x1_45678/.b-x2_45678.json",
    ):
        write_atomic(tmp_path / name, "new")
    assert finished(tmp_path.glob("*.safetensors")) == [tmp_path / "a.safetensors"]
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
