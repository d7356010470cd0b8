"""Where images and checkpoints are kept: in the run's folder, which workers may share, and optionally in a bucket.

With a bucket (`artifact_store=s3://BUCKET/PREFIX`, any S3-compatible server) workers need no common folder: a trial
that another worker started is fetched, and a scored checkpoint is sent before training continues, by Optuna's
artifact stores.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO, Protocol

from optuna.artifacts import Boto3ArtifactStore, FileSystemArtifactStore
from optuna.artifacts.exceptions import ArtifactNotFound
from pydantic import Field, TypeAdapter, ValidationError

from autolora.errors import ConfigError, StorageError
from autolora.files import atomic_path, path_below

Prefix = str | tuple[str, ...]
_Content = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]  # the hash of a file, as `_content` makes it
TRIES = 8  # of a request, with growing pauses


class Store(Protocol):
    """The interface of Optuna's artifact stores."""

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Open what was written under a name.

        Raises:
            ArtifactNotFound: nothing was written under it.
        """
        ...

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """Write or replace the content of a name, whole or not at all."""
        ...

    def remove(self, artifact_id: str) -> None:
        """Remove the content of a name."""
        ...


def local_store(folder: Path) -> Store:
    """The artifact store in a run's folder."""
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    return FileSystemArtifactStore(folder / "artifacts")


def open_bucket(address: str | None) -> Store | None:
    """Open the bucket, or the part of it, at an address; None for no address.

    Raises:
        ConfigError: it is no address, it holds keys, which logs and reports would then show, nothing answers there, or
            the package for it is not installed.
    """
    if address is None:
        return None
    scheme, _, place = str(address).partition("://")
    bucket, _, prefix = place.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            "artifact_store=s3://... must hold no keys, as it is shown in reports: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL for another server than Amazon's"
        )
    if scheme != "s3" or not bucket:
        raise ConfigError(
            f"artifact_store={address} is not understood; expected s3://BUCKET/PREFIX, or null for the run's own folder"
        )
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise ConfigError(
            f"artifact_store={address} needs a package that is missing: pip install 'autolora[s3]'"
        ) from error
    try:
        client = boto3.client("s3", config=Config(retries={"mode": "standard", "max_attempts": TRIES}))
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError) as error:
        raise ConfigError(
            f"artifact_store={address} cannot be opened ({error}); AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for "
            "another server than Amazon's, AWS_ENDPOINT_URL say who and where"
        ) from error
    return _Bucket(Boto3ArtifactStore(bucket, client), prefix.strip("/"), address)


@dataclass(frozen=True)
class _Bucket:
    """A part of a bucket; if it is unreachable the worker stops, so that its trial is not spoiled."""

    behind: Boto3ArtifactStore
    prefix: str
    address: str

    def open_reader(self, artifact_id: str) -> BinaryIO:
        with self._explained():
            return self.behind.open_reader(self._key(artifact_id))

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        with self._explained():
            self.behind.write(self._key(artifact_id), content_body)

    def remove(self, artifact_id: str) -> None:
        with self._explained():
            self.behind.remove(self._key(artifact_id))

    def _key(self, artifact_id: str) -> str:
        return f"{self.prefix}/{artifact_id}" if self.prefix else artifact_id

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            raise StorageError(
                f"artifact_store={self.address} cannot be reached ({error}); run the same command when it can"
            ) from error


@dataclass(frozen=True)
class TrialFiles:
    """Folders of trials here, by name, and what a worker elsewhere can fetch of them.

    In the store lies a list for each folder, `PREFIX` + `NAME.json`, of its files by their content. It is written last,
    so that a folder is fetched as it was at one moment.
    """

    folder: Path
    store: Store | None = None  # None: all workers share this folder
    prefix: str = ""  # of the names in the store, for folders that are called alike in every study
    _ended: set[tuple[str, Prefix]] = field(
        default_factory=set, repr=False, compare=False
    )  # ended trials that need not be fetched again

    def __getitem__(self, name: str) -> Path:
        return path_below(self.folder, name)

    def send(self, name: str) -> None:
        """Send a folder to the store as it is now.

        Raises:
            StorageError: the store cannot be reached.
        """
        if self.store is None:
            return
        paths = sorted(path for path in self[name].rglob("*") if path.is_file() and not path.name.startswith("."))
        files = {path.relative_to(self[name]).as_posix(): _content(path) for path in paths}
        known = set(self._listed(name).values())
        for path, content in zip(paths, files.values(), strict=True):
            if content not in known:
                with path.open("rb") as body:
                    self.store.write(f"{self.prefix}{name}-{content}", body)
        self.store.write(f"{self.prefix}{name}.json", io.BytesIO(json.dumps(files).encode()))
        for content in known - set(files.values()):
            self.store.remove(f"{self.prefix}{name}-{content}")

    def fetch(self, name: str, only: Prefix = "", ended: bool = False) -> Path:
        """Fetch the files of a folder that were sent last.

        Args:
            name: the folder.
            only: fetch only files whose path in the folder begins with this, or with one of these.
            ended: whether nothing in it will change again: it is then fetched once.

        Raises:
            StorageError: the store cannot be reached, or the disk is full.
        """
        if self.store is None or (name, only) in self._ended:
            return self[name]
        for relative, content in self._listed(name).items():
            path = path_below(self[name], relative)
            if not relative.startswith(only) or (path.is_file() and _content(path) == content):
                continue
            with (
                atomic_path(path) as temporary,
                self.store.open_reader(f"{self.prefix}{name}-{content}") as source,
                temporary.open("wb") as target,
            ):
                shutil.copyfileobj(source, target)
        if ended:
            self._ended.add((name, only))
        return self[name]

    def _listed(self, name: str) -> dict[str, str]:
        """The sent files by name, with the name of their content; empty where nothing was sent yet."""
        assert self.store is not None
        try:
            with self.store.open_reader(f"{self.prefix}{name}.json") as source:
                return TypeAdapter(dict[str, _Content]).validate_json(source.read())
        except ArtifactNotFound:
            return {}
        except ValidationError as error:
            raise StorageError(f"{self.prefix}{name}.json of the artifact store is no list of files") from error


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
