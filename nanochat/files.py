"""Writing to disk so that a crash leaves the old or the new, and one writer at a time."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nanochat.errors import FULL_DISK, UserError

POLL_S = 0.05  # to ask for a lock again


def write_json(path: Path, data: Any) -> None:
    """Replace `path` as a whole: a reader sees the old or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            json.dump(data, file, indent=2, ensure_ascii=False)
            file.write("\n")
        flush(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Have a file's content, or a directory's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_or_not_at_all(directory: Path) -> Iterator[Path]:
    """A temporary directory to fill, which then, flushed to disk, takes the place of `directory`.

    One process at a time: what it left if it died is removed by the next.

    Raises:
        UserError: the disk is full.
    """
    temporary = directory.with_name(f".partial-{directory.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        if directory.exists():  # damaged, or it would have been used
            shutil.rmtree(directory)
        temporary.rename(directory)
        flush(directory.parent)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise UserError(f"the disk is full at {directory.parent}", "free some space and start again") from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def exclusive(path: Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock at `path`, waiting for whoever has it; the system frees that of a process that dies.

    Args:
        waits: called again and again meanwhile; what it raises ends the waiting.
    """
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waits()
                time.sleep(POLL_S)
        yield
