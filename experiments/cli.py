"""How every script here ends: exit code 0 done, 2 the user must change something, 130 interrupted; 1 is a bug."""

import atexit
import gc
import signal
import sys
import threading
from collections.abc import Callable

from nanochat.errors import UserError


def run(main: Callable[[list[str]], int], argv: list[str] | None = None) -> int:
    """The exit code of `main(argv)`, by default of the command line, with a user's mistake told in two lines. SIGTERM
    ends it as Ctrl-C does."""
    if argv is None:  # what Ray and PyTorch have made is not gone through once more as the process ends, for 0.7 s
        atexit.register(gc.freeze)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
