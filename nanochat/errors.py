"""The one exception that is for the user: something they can change."""

import errno

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """A mistake or condition the user must act on: printed as one line and a hint, exit code 2, no traceback.

    Args:
        message: what is wrong, in one sentence.
        hint: what to type or change.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)  # both in `args`, so that it survives pickling between processes
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message
