"""One owner at a time: a file lock that says who holds it, and whether that process still lives."""

import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar, get_type_hints

import psutil

from nanochat.errors import UserError

T = TypeVar("T")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_POLL_S = 0.1


@dataclass(frozen=True)
class Owner:
    """A process that holds a lock, or held it when it died. Times are seconds since the epoch."""

    pid: int
    host: str
    boot_id: str
    started: float
    """When the process began: a later process may have the same pid."""
    since: float
    """When it took the lock."""

    @classmethod
    def here(cls) -> "Owner":
        """This process, now."""
        return cls(os.getpid(), socket.gethostname(), _boot_id(), psutil.Process().create_time(), time.time())

    def is_local(self) -> bool:
        """Whether it ran on this machine."""
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether this very process runs on this machine now."""
        if not self.is_local() or self.boot_id != _boot_id():
            return False
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def describe(self) -> str:
        """For messages."""
        return f"process {self.pid} on {self.host}, since {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.since))}"


def read_owner(path: Path) -> Owner | None:
    """Who holds the lock at `path`, or died with it; None where it was released, or says nothing that makes sense."""
    owner = read_as(Owner, path)
    return owner if owner and owner.pid > 0 else None


def read_as(kind: type[T], path: Path) -> T | None:
    """The flat dataclass that was written to `path` as JSON; None where nothing is, or anything else."""
    hints = get_type_hints(kind)
    with suppress(OSError, ValueError, TypeError, RecursionError):
        record = kind(**json.loads(path.read_text(encoding="utf-8")))
        if all(
            isinstance(value, (int, float) if hints[name] is float else hints[name])
            for name, value in vars(record).items()
        ):
            return record
    return None


@contextmanager
def held(
    path: Path,
    what: str,
    *,
    wait_s: float = 0.0,
    evict: bool = False,
    say: Callable[[str], None] = lambda text: None,
    heard_of: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Hold the lock at `path`.

    The kernel frees it when the process ends, however it ends; what the file says stays, so that the next one knows
    whom it follows.

    Args:
        what: is locked, for messages.
        wait_s: how long to wait for an owner that holds it.
        evict: then kill it, if it is on this machine: somebody has given it up.
        say: told when the lock of a dead owner is taken over.
        heard_of: whether an owner on another machine, which the kernel's lock may not reach, gave a sign of life of
            late.

    Raises:
        UserError: somebody holds it, and who.
    """
    with path.open("ab", buffering=0) as file:  # nothing is left to be written when it is closed
        if not _locked(file, wait_s):
            owner = read_owner(path)
            if not (evict and owner and owner.alive()):
                raise _in_use(what, owner)
            os.kill(owner.pid, signal.SIGKILL)
            if not _locked(file, wait_s):
                raise _in_use(what, owner)
        last = read_owner(path)
        if last and not evict and (last.alive() or (not last.is_local() and heard_of())):
            raise _in_use(what, last)  # the file system does not lock for all who reach it
        if last:
            say(f"{last.describe()}, held {what} and is gone: taking over")
        _write(file, json.dumps(asdict(Owner.here())))
        try:
            yield
        finally:
            _write(file, "")


def _locked(file: BinaryIO, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)


def _in_use(what: str, owner: Owner | None) -> UserError:
    return UserError(
        f"{what} is in use by {owner.describe() if owner else 'another process'}",
        "wait for it, stop it with Ctrl-C, or give this run another --name",
    )


def _write(file: BinaryIO, text: str) -> None:
    with suppress(OSError):  # on a full disk the lock holds as well, it only does not say whose it is
        file.truncate(0)
        file.write(text.encode("utf-8"))


def _boot_id() -> str:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
