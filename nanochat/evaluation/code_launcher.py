"""Runs one program inside limits that it sets upon itself first. A script of its own, started by `code_runner`.

    python -I -S code_launcher.py PROGRAM REPORT_FD MEMORY_BYTES CPU_SECONDS FILE_BYTES < one line

What was read from the standard input is written to REPORT_FD, with what became of the program behind it. Imports
nothing of nanochat, which the program could not import either.
"""

import os
import resource
import runpy
import sys
from typing import Any

MOST_FILES = 32
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000  # linux/sched.h
FORBIDDEN = (
    "ctypes.", "fcntl.", "ftplib.", "http.", "imaplib.", "mmap.", "os.chmod", "os.chown", "os.exec", "os.fork",
    "os.kill", "os.link", "os.posix_spawn", "os.spawn", "os.symlink", "os.system", "os.truncate", "os.unshare",
    "poplib.", "pty.", "resource.setrlimit", "resource.prlimit", "signal.pthread_kill", "smtplib.", "socket.",
    "sqlite3.", "subprocess.", "syslog.", "telnetlib.", "_thread.start", "urllib.",
)  # fmt: skip
INSIDE_ONLY = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.utime", "shutil.")
"""Audit events (PEP 578) that are refused, and those that are refused outside the program's own directory."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main(program: str, report_fd: int, memory_bytes: int, cpu_s: int, file_bytes: int) -> None:
    """Run the program and report on it."""
    token = sys.stdin.readline().strip()
    report = os.dup(report_fd)
    os.close(report_fd)
    for stream in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), stream)
    _leave_the_network()
    for limit, value in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, MOST_FILES),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(_guard(os.getcwd(), (*sys.path, sys.prefix, sys.base_prefix)))
    try:
        runpy.run_path(program, run_name="__main__")
        said = "passed"
    except BaseException as error:  # SystemExit too: who leaves early has passed nothing
        said = f"{type(error).__name__}: {error}"
    os.write(report, f"{token} {said}".encode(errors="replace")[:500])
    os._exit(0)  # whatever the program left behind to be done at the end is not done


def _leave_the_network() -> None:
    """Into a network that reaches nothing, where the system allows it; the guard refuses sockets anyway."""
    import ctypes

    unshare = getattr(ctypes.CDLL(None), "unshare", None)
    if unshare and unshare(CLONE_NEWUSER | CLONE_NEWNET):
        unshare(CLONE_NEWNET)


def _guard(directory: str, readable: tuple[str, ...]) -> Any:
    """An audit hook that refuses what a program to be graded has no need of."""
    inside = (os.path.realpath(directory) + os.sep,)
    below = (*inside, *(os.path.realpath(path) + os.sep for path in readable if path))
    realpath, fsdecode = os.path.realpath, os.fsdecode  # as they are now, whatever the program makes of them

    def within(path: Any, places: tuple[str, ...]) -> bool:
        return not isinstance(path, int) and (realpath(fsdecode(path)) + os.sep).startswith(places)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN):
            raise PermissionError(f"{event} is not allowed here")
        if event == "open":
            path, mode, flags = arguments
            writes = bool(flags & WRITES) if mode is None else any(letter in mode for letter in "wax+")
            if not within(path, inside if writes else below):
                raise PermissionError(f"opening {path!r} is not allowed here")
        elif event.startswith(INSIDE_ONLY):
            paths = [each for each in arguments if isinstance(each, (str, bytes, os.PathLike))]
            if not all(within(path, inside) for path in paths):
                raise PermissionError(f"{event} is not allowed here")

    return hook


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
