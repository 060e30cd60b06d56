"""Checkpoints on disk: complete or not there (DESIGN.md, invariant 2), and nothing in them can execute (invariant 4).

A checkpoint is a directory `step_000500/` with one safetensors file for each group of tensors, `state.json`, and
`manifest.json` naming every file with its size and sha256. It is written under a hidden name, flushed to the disk and
renamed. A save to a step that is already there parks the old one as `step_000500.old` while the new one takes its
place, so at no instant is there neither.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.errors import UserError

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
_NAME = re.compile(r"step_(\d+)(\.old)?")


class CheckpointError(UserError):
    """A checkpoint could not be saved, or is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were all there and whole when it was opened."""

    path: Path
    step: int
    state: dict[str, Any]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One group of tensors, on the CPU. Raises CheckpointError if this checkpoint has no such group."""
        file = self.path / f"{name}.safetensors"
        if not file.is_file():
            raise CheckpointError(f"{self.path} holds no {file.name}")
        return load_file(file)


def open_checkpoint(path: Path) -> Checkpoint:
    """Check all files of one checkpoint directory against its manifest. Raises CheckpointError saying what is wrong."""
    if not (path / MANIFEST).is_file():
        problem = f"it has no {MANIFEST}" if path.is_dir() else "there is no such directory"
        raise CheckpointError(f"{path} is not a checkpoint: {problem}")
    try:
        step = _verify(path)
        return Checkpoint(path, step, json.loads((path / STATE).read_bytes()))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {MANIFEST} makes no sense ({error!r})") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {path} is damaged: {error}") from error


def _verify(path: Path) -> int:
    """Check the manifest and every file it names; return its step. Raises ValueError saying what is wrong, or whatever
    a nonsensical manifest or an unreadable file leads to."""
    manifest = json.loads((path / MANIFEST).read_bytes())
    version, step, files = manifest["format"], manifest["step"], manifest["files"]
    if version != FORMAT:
        raise ValueError(f"it has format {version!r}, this program reads format {FORMAT}")
    if (named := _NAME.fullmatch(path.name)) and int(named[1]) != step:
        raise ValueError(f"its manifest says step {step!r}")
    if STATE not in files:
        raise ValueError(f"its manifest does not name {STATE}")
    for name, entry in files.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if (found := file.stat().st_size) != entry["size"]:
            raise ValueError(f"{name} has {found:,} bytes instead of {entry['size']:,}")
        if _sha256(file) != entry["sha256"]:
            raise ValueError(f"the checksum of {name} does not match")
    return step


class CheckpointStore:
    """The checkpoints of one stage of a run.

    Args:
        directory: holds the checkpoints; made by the first save.
        keep_last: how many to keep; older ones are removed once a new one is in place.
        fault: told the name of each point passed while saving, for tests that kill the process there.
    """

    def __init__(
        self, directory: Path, *, keep_last: int = 2, fault: Callable[[str], None] = lambda point: None
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, not {keep_last}")
        self.directory, self.keep_last, self.fault = directory, keep_last, fault

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and return its directory; a checkpoint of the same step is replaced.

        Args:
            tensors: group name -> tensor name -> tensor, of any device and layout; tensors that share memory are
                written once each.
            state: what JSON can hold.

        Raises CheckpointError if the disk is full or will not be written; the older checkpoints are then untouched.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with _locked(self.directory / ".lock"):  # hence everything hidden was left behind by a dead writer
                for leftover in self.directory.glob(".step_*"):
                    shutil.rmtree(leftover)
                path = self._publish(self._write(step, tensors, state))
                self._retain(step)
        except OSError as error:
            raise self._refusal(step, tensors, error) from error
        return path

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or damaged, in order."""
        return sorted({step for step, _ in self._entries()})

    def newest(self, warn: Callable[[str], None]) -> Checkpoint | None:
        """The newest whole checkpoint, or None; each damaged one passed over is named to `warn`."""
        for _, path in self._entries():
            try:
                return open_checkpoint(path)
            except CheckpointError as error:
                warn(f"{error.message}; it is passed over")
        return None

    def _entries(self) -> list[tuple[int, Path]]:
        """(step, directory) of all checkpoints, newest first, one that is being replaced after its successor."""
        if not self.directory.is_dir():
            return []
        named = [(_NAME.fullmatch(path.name), path) for path in self.directory.iterdir()]
        found = [(int(name[1]), not name[2], path) for name, path in named if name]
        return [(step, path) for step, _, path in sorted(found, reverse=True)]

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Everything under the hidden name, flushed to the disk."""
        hidden = self.directory / f".step_{step:06d}"
        hidden.mkdir()
        try:
            for name, group in tensors.items():
                _save_tensors(hidden / f"{name}.safetensors", group)
                self.fault(name)
            (hidden / STATE).write_text(json.dumps(state, indent=1))
            self.fault("state")
            files = {
                file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(hidden.iterdir())
            }
            (hidden / MANIFEST).write_text(json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1))
            self.fault("manifest")
            for path in (*hidden.iterdir(), hidden):
                _flush(path)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        return hidden

    def _publish(self, hidden: Path) -> Path:
        path = self.directory / hidden.name.removeprefix(".")
        parked = path.with_name(f"{path.name}.old")
        self.fault("written")
        if path.exists():
            self._remove(parked)
            path.rename(parked)
            self.fault("parked")
        hidden.rename(path)
        _flush(self.directory)
        self.fault("renamed")
        self._remove(parked)
        return path

    def _retain(self, step: int) -> None:
        """Remove all but the last few up to the step just saved. One of a later step can only be there because it was
        damaged or another one was chosen over it: it is left to be replaced when training gets there."""
        earlier = [path for found, path in self._entries() if found <= step]
        for path in earlier[self.keep_last :]:
            self._remove(path)
        self.fault("retained")

    def _remove(self, path: Path) -> None:
        """Hidden first, so that a checkpoint half removed is never seen."""
        if path.exists():
            shutil.rmtree(path.rename(path.with_name(f".{path.name}")))

    def _refusal(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], error: OSError) -> CheckpointError:
        megabytes = sum(tensor.nbytes for group in tensors.values() for tensor in group.values()) / 1e6
        message = (
            f"cannot save the checkpoint of step {step} ({megabytes:,.1f} MB) in {self.directory}: "
            f"{error.strerror or error}"
        )
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return CheckpointError(
            message,
            ("make room" if full else "put that right") + " and start the same command "
            "again: it continues from the last checkpoint, which is intact",
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system releases however the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, which wants each dense and in memory of its own."""
    seen: set[int] = set()
    dense = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        dense[name] = tensor
    try:
        save_file(dense, path)
    except SafetensorError as error:  # it tells the system's error in words only
        if code := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Have a file's content, or a directory's entries, reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
