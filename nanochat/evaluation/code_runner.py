"""Running code that a model wrote: in a process of its own, with limits of time, memory, files and network.

This is no security boundary. It keeps a small model's accidents from harming the machine, endless loops, full disks and
the like, and not somebody who tries to break out.
"""

import ast
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanochat.tasks.questions import Question

WARNING = (
    "code that the model writes is run on this machine, with limits of time, memory, files and network that are no "
    "security boundary"
)
LAUNCHER = Path(__file__).with_name("code_launcher.py")
SECONDS = 5.0
MEMORY_BYTES = 512 << 20
FILE_BYTES = 1 << 20
_FENCED = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:\n```|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Verdict:
    """What became of a program."""

    passed: bool
    """It came to its end."""
    reason: str
    """`passed`, `timed out`, `died`, or the exception that ended it."""


def run_program(
    program: str, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES, file_bytes: int = FILE_BYTES
) -> Verdict:
    """Run a Python program with an empty directory, no environment, no input and no network.

    It passes by coming to its end: not by exiting, whatever its exit code, nor by being ended. With the program, every
    process that it started is ended.

    Args:
        seconds: of wall-clock, and about as many of processor time.
        memory_bytes: of address space.
        file_bytes: of any one file.
    """
    token = secrets.token_hex(16)  # only the launcher knows it: a program cannot report on itself
    directory = Path(tempfile.mkdtemp(prefix="nanochat-code-"))
    reader, writer = os.pipe()
    try:
        path = directory / "program.py"
        path.write_text(program, encoding="utf-8", errors="replace")
        limits = [str(value) for value in (writer, memory_bytes, int(seconds) + 1, file_bytes)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(LAUNCHER), str(path), *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env={},
            pass_fds=(writer,),
            start_new_session=True,
        )
        os.close(writer)
        writer = -1
        ended = _ended(process, f"{token}\n".encode(), seconds)
        os.set_blocking(reader, False)
        said = b""
        with suppress(BlockingIOError):
            said = os.read(reader, 4096)
    finally:
        for descriptor in (reader, writer):
            if descriptor >= 0:
                os.close(descriptor)
        shutil.rmtree(directory, ignore_errors=True)
    known, _, reason = said.decode(errors="replace").partition(" ")
    if not ended:
        return Verdict(False, "timed out")
    return Verdict(reason == "passed", reason) if known == token else Verdict(False, "died")


def _ended(process: subprocess.Popen[bytes], told: bytes, seconds: float) -> bool:
    """Whether the process ended by itself in time. In the end it and all of its group are gone."""
    try:
        process.communicate(told, timeout=seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def program_of(question: Question, reply: str) -> str:
    """The program that a reply to a question of kind `code` makes, its tests at the end.

    A reply that defines the function itself, in a fenced block or plainly, is put behind the question, whose other
    functions it may call, or behind its imports where the question alone is no program; any other one continues the
    question where it ends.
    """
    fenced = _FENCED.search(reply)
    code = fenced[1] if fenced else reply
    if re.search(r"^def \w", code, re.MULTILINE):
        code = f"{_whole_part(question.question)}\n{code}"
    else:
        code = question.question + code
    return f"{code}\n\n{question.answer}\n"


def _whole_part(beginning: str) -> str:
    """The beginning of a program if it is one by itself, as where it ends with a docstring; or else its imports."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes such as "\\d", which the process that runs it tells
            ast.parse(beginning)
        return beginning
    except (SyntaxError, ValueError):
        return "\n".join(line for line in beginning.splitlines() if line.startswith(("import ", "from ")))


def run_all(questions: Sequence[Question], replies: Sequence[str], workers: int | None = None) -> list[bool]:
    """Whether the code of each reply passes the tests of its question, a few processes at a time."""
    programs = [program_of(question, reply) for question, reply in zip(questions, replies, strict=True)]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return [verdict.passed for verdict in pool.map(run_program, programs)]
