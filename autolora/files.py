"""Atomic writes: a file exists whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from autolora.errors import ConfigError, StorageError

_REASONS = {
    errno.ENOSPC: "no space left on the device: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file is larger than the file system or `ulimit -f` allows: raise that limit",
    errno.EACCES: "permission denied: choose a folder you may write to",
    errno.EPERM: "not permitted: choose a folder you may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.EEXIST: "a file is where a folder is needed: choose another folder",
    errno.ENOTDIR: "a file is where a folder is needed: choose another folder",
    errno.EISDIR: "a folder is where a file is needed: choose another folder",
    errno.ENAMETOOLONG: "its name is too long: choose a shorter one",
    errno.ENOENT: "its folder was moved or deleted: put it back",
    errno.EIO: "the disk does not work: check it",
}
_PROBE_BYTES = 2**16  # more than what a failed write leaves of a full disk
_UMASK = os.umask(0o077)
os.umask(_UMASK)
_TEMPORARY = re.compile(r"\..+-[a-z0-9_]{8}(\.\w+)?|\.tmp\w{6}")  # ours, by tempfile's names, and safetensors'
_TEMPORARY_FOLDER = re.compile(r"\.new-[a-z0-9_]{8}")
_NAME = re.compile(r"\w[^\\/:*?\"<>|\x00-\x1f]*")


def expand_user(path: str | Path) -> Path:
    """A path as people write it, with `~` and `~name` replaced by a home folder, as the disk spells it.

    Raises:
        ConfigError: there is no such user, and no file or folder of this name.
    """
    try:
        return on_disk(Path(path).expanduser())
    except RuntimeError as error:
        if os.path.lexists(path):
            return Path(path)
        user = Path(path).parts[0]
        raise ConfigError(f"{path}: there is no user {user[1:]}: write ~/ for your own home folder") from error


def on_disk(path: Path) -> Path:
    """The path of an existing file or folder whose name differs only by Unicode's normalization; else the path itself.

    macOS decomposes letters such as é; files that were copied from there keep such names.
    """
    if str(path).isascii() or os.path.lexists(path):
        return path
    above = on_disk(path.parent) if path.parent != path else path
    with suppress(OSError):
        for name in sorted(os.listdir(above)):
            if composed(name) == composed(path.name):
                return above / name
    return path


def composed(text: str) -> str:
    """A text with letters such as é composed, so that it is equal for all of its spellings by Unicode."""
    return unicodedata.normalize("NFC", text)


def is_text(name: str) -> bool:
    """Whether a file's name is text in the system's encoding; others cannot be written into captions and results."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


@contextmanager
def atomic_path(path: Path, cached: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it when the block ends without an error.

    Args:
        path: the file.
        cached: whether the file is made again if it is broken, so that it need not outlast a power cut.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary: Path | None = None
    try:
        with explained(path) as probe:
            path.parent.mkdir(parents=True, exist_ok=True)
            stem = path.stem[:40]  # a file system's longest name leaves no room for more characters
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{stem}-", suffix=path.suffix)
            os.close(handle)
            temporary = Path(name)
            probe.append(temporary)
            yield temporary
            if not cached:
                _flush(temporary)
            temporary.chmod(0o666 & ~_UMASK)
            os.replace(temporary, path)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path) -> Iterator[Path]:
    """Yield a hidden folder in `folder`; what is in it takes its place when the block ends without an error.

    File by file, weights last: who is killed there leaves files that were all finished, under names of their own.

    Raises:
        StorageError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    hidden: Path | None = None
    try:
        with explained(folder) as probe:
            folder.mkdir(parents=True, exist_ok=True)
            hidden = Path(tempfile.mkdtemp(dir=folder, prefix=".new-"))
            probe.append(hidden / "probe")
            yield hidden
            made = [path for path in hidden.rglob("*") if path.is_file()]
            for path in made:
                _flush(path)
            for path in sorted(made, key=lambda path: (path.suffix == ".safetensors", path)):
                place = folder / path.relative_to(hidden)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
    finally:
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def explained(path: Path) -> Iterator[list[Path]]:
    """Tell in one line why `path` cannot be written, and what to do; yields a list for a file to probe the disk with.

    Some libraries do not pass on what the system said: such an error is repeated on the file in the list.

    Raises:
        StorageError: the disk is full or the place cannot be written.
    """
    probe: list[Path] = []
    try:
        yield probe
    except Exception as error:
        number = _error_number(error, probe)
        if number not in _REASONS or (number == errno.ENOENT and path.parent.is_dir()):
            raise
        raise StorageError(explain(OSError(number, "", str(path)))) from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written, before anything is computed; nothing is made yet.

    Raises:
        StorageError: why, and what to do.
    """
    with explained(folder):
        place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "", str(place))
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, "", str(place))


def explain(error: OSError, done: str = "write") -> str:
    """An error of the file system in one line: where, why, and what to do."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}: mend that")
    return f"cannot {done} {error.filename or 'a file'}: {reason} and run the same command again, it continues"


def _error_number(error: Exception, probe: list[Path]) -> int | None:
    """The system's number of an error, which safetensors writes into the text and torch and numpy leave out."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if told := re.search(r"\(os error (\d+)\)", str(error)):
        return int(told.group(1))
    if isinstance(error, OSError | RuntimeError) and probe:
        try:
            with probe[-1].open("ab") as file:
                file.write(bytes(_PROBE_BYTES))
        except OSError as repeated:
            return repeated.errno
    return None


def _flush(path: Path) -> None:
    """Have the disk keep a file's content before it gets its name: a power cut would leave an empty file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed left: temporary files and folders, by the names that they get.

    Everything else that is hidden, such as `.git`, is somebody's own and stays. No link is followed.
    """
    for place, folders, files in os.walk(folder):  # which follows no links
        for name in folders:
            path = Path(place, name)
            if _TEMPORARY_FOLDER.fullmatch(name) and not path.is_symlink():
                shutil.rmtree(path)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if _TEMPORARY.fullmatch(name):
                Path(place, name).unlink(missing_ok=True)


def path_below(folder: Path, name: str) -> Path:
    """The path of a file or folder below `folder`, by a name that somebody else may have written.

    Raises:
        StorageError: the name is absolute, leads out of the folder, is hidden, or goes through a link.
    """
    path = folder
    for part in str(name).split("/"):
        if not _NAME.fullmatch(part):
            raise StorageError(
                f"`{name}` is refused as a name below {folder}: it must be made of names of files and folders. "
                "A study holds no such names; do not use this one if somebody else made it"
            )
        path = path / part
        if path.is_symlink():
            raise StorageError(f"{path} is refused: it is a link, which could lead out of {folder}; remove it")
    return path


def finished(paths: Iterable[Path]) -> list[Path]:
    """Files without those that somebody is writing, or was killed at: their names are hidden; sorted."""
    return sorted(path for path in paths if not path.name.startswith("."))


def takes_any_character(stream: TextIO) -> bool:
    """Whether the encoding of a text stream is one of Unicode, unlike cp1252 of Windows."""
    return (stream.encoding or "utf-8").lower().startswith("utf")  # None: a stream in memory


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file atomically; text as UTF-8, with escapes for what is none, as file names may hold it.

    Raises:
        StorageError: as `atomic_path`.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
