"""Checkpoints: complete or not there (DESIGN.md, invariant 2), and nothing in them can execute (invariant 4).

A checkpoint is a directory `step_000500/` with one safetensors file for each group of tensors, `state.json`, and
`manifest.json` naming every file with its size and sha256. Where it is kept and how it comes to be there at once is
`storage`'s affair.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nanochat.training.storage import MANIFEST, NAME, CheckpointError, LocalStorage, Storage, split, storage_at

FORMAT = 1
STATE = "state.json"


class DamagedCheckpoint(CheckpointError):
    """Something is there, or should be, but it is not a whole checkpoint."""


class _Folder:
    """The files of one checkpoint: all there and of the right size, or it is not made. What is in a file is checked
    against the manifest once in each process, when it is first asked for.

    Raises ValueError saying what is wrong, or whatever a nonsensical manifest or an unreadable file leads to.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name = storage, name
        self._checked: dict[str, Path] = {}
        sizes = storage.sizes(name)
        if MANIFEST not in sizes:
            raise FileNotFoundError(f"it has no {MANIFEST}")
        manifest = json.loads(storage.fetch(name, MANIFEST, lambda: self._scratch).read_bytes())
        version, self.step, self.score = manifest["format"], manifest["step"], manifest.get("score")
        self._sha256 = {file: entry["sha256"] for file, entry in manifest["files"].items()}
        if version != FORMAT:
            raise ValueError(f"it has format {version!r}, this program reads format {FORMAT}")
        if (named := NAME.fullmatch(name)) and int(named[1]) != self.step:
            raise ValueError(f"its manifest says step {self.step!r}")
        if not isinstance(self.score, float | None):
            raise ValueError(f"its manifest says score {self.score!r}")
        if STATE not in self._sha256:
            raise ValueError(f"its manifest does not name {STATE}")
        for file, entry in manifest["files"].items():
            if file not in sizes:  # nor is anything outside the directory, whatever the manifest says
                raise ValueError(f"{file} is missing")
            if sizes[file] != entry["size"]:
                raise ValueError(f"{file} has {sizes[file]:,} bytes instead of {entry['size']:,}")

    def __getstate__(self) -> dict[str, Any]:
        """Without what is on this machine: who unpickles it may be on another."""
        return {"_storage": self._storage, "_name": self._name, "_sha256": self._sha256, "_checked": {}}

    @property
    def files(self) -> list[str]:
        return list(self._sha256)

    def file(self, name: str) -> Path:
        """Raises ValueError if its content is not what was saved, OSError if it cannot be read."""
        if name not in self._checked:
            path = self._storage.fetch(self._name, name, lambda: self._scratch)
            if _sha256(path) != self._sha256[name]:
                raise ValueError(f"the checksum of {name} does not match")
            self._checked[name] = path
        return self._checked[name]

    @cached_property
    def _scratch(self) -> Path:
        """Holds copies of files that are not on this machine, for as long as this object lives."""
        path = tempfile.mkdtemp(prefix="nanochat-")
        weakref.finalize(self, shutil.rmtree, path, ignore_errors=True)
        return Path(path)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were all there and whole when it was opened.

    It can be pickled and sent to another machine that reaches the same location.
    """

    location: str
    """The directory, or its URI; for messages, and for `open_checkpoint`."""
    step: int
    state: dict[str, Any]
    score: float | None
    """val_bpb if it was measured at this step."""
    _folder: _Folder = field(repr=False, compare=False)

    @property
    def path(self) -> Path:
        """Its directory, beside which the rest of its run lies. Raises CheckpointError if it is on no disk here."""
        if "://" in self.location:
            raise CheckpointError(f"{self.location} is not on a disk of this machine", "copy the run here first")
        return Path(self.location)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One group of tensors, on the CPU. Raises CheckpointError if this checkpoint has no such group, or if it is
        damaged or out of reach by now."""
        file = f"{name}.safetensors"
        if file not in self._folder.files:
            raise CheckpointError(f"{self.location} holds no {file}")
        try:
            return load_file(self._folder.file(file))
        except (ValueError, OSError, SafetensorError) as error:
            raise DamagedCheckpoint(f"checkpoint {self.location} is damaged: {error}") from error


def open_checkpoint(location: Path | str, *, check_all: bool = True) -> Checkpoint:
    """Check all files of one checkpoint against its manifest; those that are remote are copied here for as long as the
    result lives.

    With `check_all` off, the tensors are only looked at for their sizes now, and checked in full when they are read:
    for who wants only the state, or has opened it before.

    Raises:
        DamagedCheckpoint: it is not a whole checkpoint, and why.
        CheckpointError: the location cannot be reached.
    """
    parent, name = split(location)
    return _open(storage_at(parent), name, check_all)


def _open(storage: Storage, name: str, check_all: bool = True) -> Checkpoint:
    location = str(storage.locate(name))
    try:
        folder = _Folder(storage, name)
        for file in folder.files if check_all else [STATE]:
            folder.file(file)
        state = json.loads(folder.file(STATE).read_bytes())
    except FileNotFoundError as error:
        raise DamagedCheckpoint(f"{location} is not a checkpoint: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"checkpoint {location} is damaged: {MANIFEST} makes no sense ({error!r})") from error
    except (ValueError, OSError) as error:
        raise DamagedCheckpoint(f"checkpoint {location} is damaged: {error}") from error
    return Checkpoint(location, folder.step, state, folder.score, folder)


class CheckpointStore:
    """The checkpoints of one stage of a run.

    Args:
        location: holds the checkpoints; made by the first save. A directory, or a URI that `pyarrow.fs` understands
            such as s3://bucket/prefix, of which one process at a time may be the writer.
        keep_last: how many to keep; older ones are removed once a new one is in place.
        keep_best: whether to keep the one with the lowest score besides.
        regular: tells steps that a checkpoint is due at from those where training was stopped. The newest of a regular
            step is always kept, as training may have to go back to it.
        fault: told the name of each point passed while saving, for tests that kill the process there.

    Raises CheckpointError if the location makes no sense.
    """

    def __init__(
        self,
        location: Path | str,
        *,
        keep_last: int = 2,
        keep_best: bool = False,
        regular: Callable[[int], bool] = lambda step: True,
        fault: Callable[[str], None] = lambda point: None,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, not {keep_last}")
        self._storage = storage_at(location)
        self.keep_last, self.keep_best, self.regular, self.fault = keep_last, keep_best, regular, fault

    @property
    def directory(self) -> Path:
        """Raises CheckpointError if the checkpoints are on no disk here."""
        if not isinstance(self._storage, LocalStorage):
            raise CheckpointError(f"{self._storage.location} is not on a disk of this machine")
        return self._storage.location

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        score: float | None = None,
    ) -> Path | str:
        """Write a checkpoint and return its location; a checkpoint of the same step is replaced.

        Args:
            tensors: group name -> tensor name -> tensor, of any device and layout; tensors that share memory are
                written once each.
            state: what JSON can hold.
            score: val_bpb at this step, lower is better; None if it was not measured, or is not a finite number.

        Raises CheckpointError if the disk is full, will not be written or cannot be reached; the older checkpoints are
        then untouched.
        """
        name = f"step_{step:06d}"
        score = float(score) if score is not None and math.isfinite(score) else None
        try:
            with self._storage.staging(name) as staged:
                self._write(staged, step, tensors, state, score)
                self._storage.publish(staged, name, self.fault)
                self._retain(step, name)
        except OSError as error:
            raise self._refusal(step, tensors, error) from error
        return self._storage.locate(name)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, whole or damaged, in order."""
        return sorted({step for step, _ in self._entries()})

    def open(self, step: int) -> Checkpoint:
        """Raises as `open_checkpoint`."""
        return _open(self._storage, f"step_{step:06d}")

    def newest(
        self, warn: Callable[[str], None], wanted: Callable[[int], bool] = lambda step: True
    ) -> Checkpoint | None:
        """The newest whole checkpoint of a wanted step, or None; each damaged one passed over is named to `warn`.

        Raises CheckpointError if the location cannot be reached: what is there is then unknown, not damaged.
        """
        for step, name in self._entries():
            if wanted(step):
                try:
                    return _open(self._storage, name)
                except DamagedCheckpoint as error:
                    warn(f"{error.message}; it is passed over")
        return None

    def _entries(self) -> list[tuple[int, str]]:
        """(step, name) of all checkpoints, newest first, one that is being replaced after its successor."""
        named = [NAME.fullmatch(name) for name in self._storage.names()]
        found = [(int(name[1]), not name[2], name[0]) for name in named if name]
        return [(step, name) for step, _, name in sorted(found, reverse=True)]

    def _write(
        self,
        staged: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
        score: float | None,
    ) -> None:
        for name, group in tensors.items():
            _save_tensors(staged / f"{name}.safetensors", group)
            self.fault(name)
        (staged / STATE).write_text(json.dumps(state, indent=1))
        self.fault("state")
        files = {file.name: {"size": file.stat().st_size, "sha256": _sha256(file)} for file in sorted(staged.iterdir())}
        manifest = {"format": FORMAT, "step": step, "score": score, "files": files}
        (staged / MANIFEST).write_text(json.dumps(manifest, indent=1))
        self.fault("manifest")

    def _retain(self, step: int, saved: str) -> None:
        """Remove all up to the step just saved but the last few, the last regular one, and the best.

        One of a later step can only be there because it was damaged or another one was chosen over it: it is left to
        be replaced when training gets there. Those seen to be damaged take no place of a whole one. If the one just
        saved is not there and sound, that is raised and nothing removed.
        """
        sound = {saved: _open(self._storage, saved, check_all=False)}
        earlier = [name for found, name in self._entries() if found <= step]
        for name in earlier:
            with suppress(DamagedCheckpoint):
                sound[name] = _open(self._storage, name, check_all=False)
        keep = list(sound)[: self.keep_last] + [name for name in sound if self.regular(sound[name].step)][:1]
        scores = {name: found.score for name, found in sound.items() if found.score is not None}
        if self.keep_best and scores:
            keep.append(min(scores, key=lambda name: scores[name]))
        for name in earlier:
            if name not in keep:
                self._storage.remove(name)
        self.fault("retained")

    def _refusal(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], error: OSError) -> CheckpointError:
        megabytes = sum(tensor.nbytes for group in tensors.values() for tensor in group.values()) / 1e6
        message = (
            f"cannot save the checkpoint of step {step} ({megabytes:,.1f} MB) in {self._storage.location}: "
            f"{error.strerror or error}"
        )
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return CheckpointError(
            message,
            ("make room" if full else "put that right") + " and start the same command "
            "again: it continues from the last checkpoint, which is intact",
        )


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
