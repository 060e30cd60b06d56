"""How every script here ends: exit code 0 done, 2 the user must change something, 130 interrupted; 1 is a bug."""

import atexit
import errno
import gc
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

from nanochat.errors import FULL_DISK, UserError

NOT_HEARD = (*FULL_DISK, errno.EPIPE, errno.EIO)  # a log on a full disk, a reader or a terminal that has gone


class Unfailing:
    """A stream whose words may be lost, but which does not end what speaks: a training goes on without its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            return self._lost(error, len(text))

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError, size: int = 0) -> int:
        if error.errno not in NOT_HEARD:
            raise error
        return size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run(main: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """The exit code of `main(argv)`, by default of the command line, with a user's mistake told in two lines. SIGTERM
    ends it as Ctrl-C does."""
    if argv is None:  # what Ray and PyTorch have made is not gone through once more as the process ends, for 0.7 s
        atexit.register(gc.freeze)
        sys.stdout, sys.stderr = Unfailing(sys.stdout), Unfailing(sys.stderr)  # type: ignore[assignment]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        print(f"error: the disk is full{f' at {error.filename}' if error.filename else ''}", file=sys.stderr)
        print("hint: make room and start the same command again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
