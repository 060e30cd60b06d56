"""Where checkpoints are kept: a directory of this machine, or whatever `pyarrow.fs` reaches by URI.

The two differ in what makes a checkpoint appear at once. A disk has a rename. Object storage has none, so there the
manifest commits: it is sent last and removed first, and files without one are what a dead writer left behind.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
from pyarrow import fs

from nanochat.errors import UserError
from nanochat.files import exclusive, flush

MANIFEST = "manifest.json"
NAME = re.compile(r"step_(\d+)(\.old)?")
URI_HINT = "give a directory, or a URI such as s3://bucket/prefix"
# pyarrow's own patience with an S3 server that accepts and says nothing is 100 s a request, with GCS 15 minutes.
S3_PATIENCE: dict[str, Any] = {"connect_timeout": 5, "request_timeout": 10}
S3_ATTEMPTS = 3
GCS_PATIENCE_S = 30


class CheckpointError(UserError):
    """A checkpoint could not be saved or read."""


class Storage(Protocol):
    """Directories of plain files, each a checkpoint, which appear whole or not at all."""

    @property
    def location(self) -> Path | str: ...

    def locate(self, name: str) -> Path | str:
        """What to give `open_checkpoint` for this name."""

    def names(self) -> list[str]:
        """The checkpoints there are, whole or damaged, in no order."""

    def sizes(self, name: str) -> dict[str, int]:
        """File name -> bytes. Raises FileNotFoundError if there is no such directory."""

    def fetch(self, name: str, file: str, scratch: Callable[[], Path]) -> Path:
        """The file on this machine; `scratch` is asked for a directory if that takes a copy. Raises OSError."""

    def staging(self, name: str) -> AbstractContextManager[Path]:
        """An empty directory of this machine to write a checkpoint into, gone at the end unless published. What dead
        writers left behind is removed first. Raises OSError."""

    def publish(self, staged: Path, name: str, fault: Callable[[str], None]) -> None:
        """Make what was staged the checkpoint of that name, in place of the one there. Raises OSError."""

    def remove(self, name: str) -> None:
        """Remove it, if it is there. Raises OSError."""


def storage_at(location: Path | str) -> Storage:
    """Raises CheckpointError if the location makes no sense or cannot be reached."""
    if isinstance(location, str) and "://" in location:
        if location.startswith("file://"):
            return LocalStorage(Path(_connect(location)[1]))
        return RemoteStorage(location)
    return LocalStorage(Path(location))


def inside(location: str, *names: str) -> str:
    """The location of something in a location: a path, or a URI, whose query stays at its end."""
    base, mark, query = location.partition("?") if "://" in location else (location, "", "")
    return f"{'/'.join([base.rstrip('/'), *map(quote, names)])}{mark}{query}"


def split(location: Path | str) -> tuple[Path | str, str]:
    """Where this checkpoint is kept, and its name there. Raises CheckpointError."""
    if isinstance(location, str) and "://" in location:
        base, mark, query = location.partition("?")
        parent, _, name = base.rstrip("/").rpartition("/")
        if "://" not in parent:
            raise CheckpointError(f"{location} is not a checkpoint: it names only a bucket", URI_HINT)
        return f"{parent}{mark}{query}", unquote(name)
    path = Path(os.path.abspath(location)) if Path(location).name in ("", "..") else Path(location)
    return path.parent, path.name


class LocalStorage:
    """Written under a hidden name, flushed to the disk and renamed. One that is replaced is parked as `.old` while its
    successor takes its place, so at no instant is there neither. Writers take turns by a lock."""

    def __init__(self, directory: Path) -> None:
        self.location = directory

    def locate(self, name: str) -> Path:
        return self.location / name

    def names(self) -> list[str]:
        if not self.location.is_dir():
            return []
        return [path.name for path in self.location.iterdir() if NAME.fullmatch(path.name)]

    def sizes(self, name: str) -> dict[str, int]:
        path = self.locate(name)
        if not path.is_dir():
            raise FileNotFoundError("there is no such directory")
        return {file.name: file.stat().st_size for file in path.iterdir() if file.is_file()}

    def fetch(self, name: str, file: str, scratch: Callable[[], Path]) -> Path:
        return self.locate(name) / file

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        self.location.mkdir(parents=True, exist_ok=True)
        with exclusive(self.location / ".lock"):  # hence everything hidden was left behind by a dead writer
            for leftover in self.location.glob(".step_*"):
                shutil.rmtree(leftover)
            hidden = self.location / f".{name}"
            hidden.mkdir()
            try:
                yield hidden
            finally:
                shutil.rmtree(hidden, ignore_errors=True)

    def publish(self, staged: Path, name: str, fault: Callable[[str], None]) -> None:
        for file in (*staged.iterdir(), staged):
            flush(file)
        fault("written")
        path, parked = self.locate(name), f"{name}.old"
        if path.exists():
            self.remove(parked)
            path.rename(self.locate(parked))
            fault("parked")
        staged.rename(path)
        flush(self.location)
        fault("renamed")
        self.remove(parked)

    def remove(self, name: str) -> None:
        """Hidden first, so that a checkpoint half removed is never seen."""
        path = self.locate(name)
        if path.exists():
            shutil.rmtree(path.rename(path.with_name(f".{name}")))


class RemoteStorage:
    """The manifest is the commit. Nothing keeps two writers of the same location apart: a run has one.

    Raises CheckpointError, naming the location, if the URI makes no sense; so does all that reads if the storage cannot
    be reached, does not let us in, or has no such bucket.
    """

    def __init__(self, uri: str) -> None:
        self.location = uri
        self._filesystem, self._path = _connect(uri)

    def __reduce__(self) -> tuple[type["RemoteStorage"], tuple[str]]:
        return RemoteStorage, (self.location,)  # a pickled pyarrow file system forgets its retries

    def locate(self, name: str) -> str:
        return inside(self.location, name)

    def names(self) -> list[str]:
        return [name for name, committed in self._found().items() if committed]

    def sizes(self, name: str) -> dict[str, int]:
        try:
            with self._reading():
                found = self._filesystem.get_file_info(fs.FileSelector(self._inside(name)))
        except FileNotFoundError:
            raise FileNotFoundError("there is no such directory") from None
        return {info.base_name: info.size for info in found if info.is_file}

    def fetch(self, name: str, file: str, scratch: Callable[[], Path]) -> Path:
        path = scratch() / file
        with (
            self._reading(),
            self._filesystem.open_input_stream(self._inside(name, file)) as source,
            path.open("wb") as to,
        ):
            shutil.copyfileobj(source, to, 1 << 20)
        return path

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        for leftover, committed in self._found().items():
            if not committed:
                self.remove(leftover)
        with tempfile.TemporaryDirectory(prefix="nanochat-") as staged:
            yield Path(staged)

    def publish(self, staged: Path, name: str, fault: Callable[[str], None]) -> None:
        fault("written")
        self.remove(name)
        fault("withdrawn")
        self._filesystem.create_dir(self._inside(name))
        for file in sorted(staged.iterdir(), key=lambda file: (file.name == MANIFEST, file.name)):
            with file.open("rb") as source, self._filesystem.open_output_stream(self._inside(name, file.name)) as to:
                shutil.copyfileobj(source, to, 1 << 20)
            fault(f"sent {file.name}")

    def remove(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(self._inside(name, MANIFEST))
        with suppress(FileNotFoundError):
            self._filesystem.delete_dir(self._inside(name))

    def _found(self) -> dict[str, bool]:
        """Name -> whether it has a manifest, for all that has the name of a checkpoint."""
        try:
            with self._reading():
                infos = self._filesystem.get_file_info(fs.FileSelector(self._path, recursive=True))
        except FileNotFoundError:
            return {}
        inside = [info.path.removeprefix(f"{self._path}/") for info in infos]
        return {
            name: f"{name}/{MANIFEST}" in inside
            for name in {path.split("/")[0] for path in inside}
            if NAME.fullmatch(name)
        }

    def _inside(self, *names: str) -> str:
        return "/".join((self._path, *names))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unreachable(self.location, error) from error


def _connect(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI and the path in it. Raises CheckpointError."""
    location, parts = uri, urlsplit(uri)
    if parts.password:  # it would stand in every message and record of the run
        raise CheckpointError(
            f"the location on {parts.hostname} has a password in it",
            "leave it out, and give credentials as the storage's own environment variables or files do",
        )
    if parts.scheme in ("gs", "gcs") and "retry_limit_seconds" not in parts.query:
        limit = f"retry_limit_seconds={GCS_PATIENCE_S}"
        uri = parts._replace(query=f"{parts.query}&{limit}" if parts.query else limit).geturl()
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        if isinstance(filesystem, fs.S3FileSystem):  # a URI cannot hold these, see S3FileSystem
            _, (options,) = filesystem.__reduce__()
            retry = fs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS)
            filesystem = fs.S3FileSystem(**{**options, **S3_PATIENCE, "retry_strategy": retry})
    except pa.ArrowException as error:
        raise CheckpointError(f"{location} is no place for checkpoints: {error}", URI_HINT) from error
    except OSError as error:
        raise _unreachable(location, error) from error
    if not path:
        raise CheckpointError(f"{location} names no bucket", URI_HINT)
    return filesystem, path.rstrip("/") or path


def _unreachable(location: str, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot read {location}: {error}",
        "check the address, the network, that the bucket exists, and that the credentials allow to read and write it",
    )
