"""Files are whole or not there, one by one and together."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from autolora import files
from autolora.errors import ConfigError, StorageError
from autolora.files import (
    atomic_files,
    atomic_path,
    check_writable,
    expand_user,
    finished,
    remove_leftovers,
    write_atomic,
)


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
    with pytest.raises(StorageError, match="its name is too long"):
        write_atomic(tmp_path / ("x" * 256), "a")
    with pytest.raises(StorageError, match="its name is too long"):
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


WRITERS: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(bytes(2**20)),
    lambda path: save_file({"a": torch.zeros(2**18)}, path),
    lambda path: torch.save(torch.zeros(2**18), path),
    lambda path: np.save(path.open("wb"), np.zeros(2**17)),
    lambda path: Image.fromarray(np.random.default_rng(0).integers(0, 255, (600, 600, 3), np.uint8)).save(path),
]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of file sizes")
@pytest.mark.parametrize("write", WRITERS, ids=["bytes", "safetensors", "torch", "numpy", "png"])
def test_whatever_library_meets_the_end_of_the_disk_it_is_told_as_that(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    """torch and numpy say nothing of the disk, safetensors hides the number in its text."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    try:
        told = pytest.raises(StorageError, match=r"a\.png: the file is larger .* allows: raise that limit")
        with told, atomic_path(tmp_path / "a.png") as temporary:
            write(temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["file/a.json", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*: (a file|a folder|its name).*: choose"):
        write_atomic(tmp_path / name, "new")


@pytest.mark.parametrize("name", ["file", "file/below", "x" * 300])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_made(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_writable(tmp_path / "new" / "folder")
    with pytest.raises(StorageError, match="cannot write"):
        check_writable(tmp_path / name)
    assert inside(tmp_path) == {"file": "mine"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_a_file_gets_the_permissions_of_others(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.json", "new")
    (tmp_path / "b.json").write_text("new")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "b.json").stat().st_mode


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
