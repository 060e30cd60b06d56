"""Code that a model might write, run in earnest: right, wrong, endless, greedy and mischievous."""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from nanochat.evaluation.code_runner import FILE_BYTES, program_of, run_all, run_program
from nanochat.tasks.questions import Question

PROMPT = 'from typing import List\n\n\ndef double(numbers: List[int]) -> List[int]:\n    """Twice each."""\n'
TESTS = "def check(f):\n    assert f([1, 2]) == [2, 4]\n    assert f([]) == []\n\ncheck(double)\n"
DOUBLE = Question("humaneval", "code", PROMPT, None, TESTS, 0.0)
BODY = "    return [2 * number for number in numbers]\n"
HELPED = Question(
    "humaneval",
    "code",
    '''import math


def encode(text: str):
    """The text with every three characters turned."""
    groups = [text[3 * n : 3 * n + 3] for n in range(math.ceil(len(text) / 3))]
    return "".join(group[1:] + group[0] for group in groups)


def decode(text: str):
    """
    The text that encode turned. Never mind \\d.
    """
''',
    None,
    "def check(f):\n    for text in ('', 'abc', 'abcdefg'):\n        assert f(encode(text)) == text\n\ncheck(decode)\n",
    0.0,
)
DECODE = "    whole = len(text) // 3 * 3\n    return encode(encode(text[:whole])) + encode(text[whole:])\n"


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        (BODY, True),
        (PROMPT + BODY, True),
        (f"Here it is:\n```python\n{PROMPT}{BODY}```\nIt doubles.", True),
        (f"```\ndef double(numbers: List[int]) -> List[int]:\n{BODY}\n```", True),
        ("    return numbers\n", False),
        ("    return [2 * number for", False),
        ("I cannot.", False),
        ("", False),
        ("    import sys\n    sys.exit(0)\n", False),
        ("    import os\n    os._exit(0)\n", False),
        ("    pass\nraise SystemExit(0)\n", False),
    ],
)
def test_only_right_code_passes(reply: str, right: bool):
    assert run_all([DOUBLE], [reply]) == [right]


@pytest.mark.parametrize("reply", [DECODE, f"```python\ndef decode(text: str):\n{DECODE}```"])
def test_functions_that_the_question_brings_can_be_called(reply: str):
    assert run_program(program_of(HELPED, reply)).reason == "passed"
    assert not run_all([HELPED], [reply.replace("encode(encode(text[:whole]))", "text[:whole]")])[0]


def test_a_question_that_is_no_program_lends_its_imports():
    begun = replace(DOUBLE, question=PROMPT.partition('    """')[0] + "    # twice each\n")
    code = f"def double(numbers: List[int]) -> List[int]:\n{BODY}"
    assert run_all([begun], [code]) == [True]


def test_what_passes_is_what_came_to_its_end():
    assert run_program("import math, re, collections, hashlib, random, heapq\nassert math.sqrt(4) == 2").passed
    assert run_program("1/0").reason == "ZeroDivisionError: division by zero"
    assert run_program("raise SystemExit(0)").reason == "SystemExit: 0"
    assert run_program("import os; os._exit(0)").reason == "died"
    assert run_program("def broken(").reason.startswith("SyntaxError")
    write = "import os\nfor fd in range(3, 9):\n    try: os.write(fd, b'x passed')\n    except OSError: pass\n"
    assert not run_program(f"{write}os._exit(0)").passed


def test_an_endless_loop_ends_in_time():
    start = time.monotonic()
    assert run_program("while True: pass", seconds=1).reason == "timed out"
    assert run_program("import time; time.sleep(60)", seconds=1).reason == "timed out"
    assert time.monotonic() - start < 6


def test_a_fork_bomb_is_bounded_and_nothing_of_it_stays():
    before = {process.pid for process in psutil.process_iter()}
    start = time.monotonic()
    bomb = "import os\nwhile True:\n    try: os.fork()\n    except Exception: pass"
    assert not run_program(bomb, seconds=1).passed
    assert "PermissionError" in run_program("import os; os.fork()").reason
    assert "PermissionError" in run_program("import subprocess; subprocess.run(['true'])").reason
    assert time.monotonic() - start < 20
    now = [process for process in psutil.process_iter() if process.pid not in before]
    assert not [process for process in now if "code_launcher" in _line(process)]


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_memory_is_limited():
    assert run_program("block = bytearray(4 << 30)").reason.startswith("MemoryError")
    assert run_program("block = bytearray(100 << 20)").passed
    assert not run_program("blocks = []\nwhile True: blocks.append(bytearray(1 << 20))").passed


def test_files_are_small_and_stay_inside(tmp_path: Path):
    assert run_program("open('mine', 'w').write('x')\nassert open('mine').read() == 'x'").passed
    huge = f"with open('huge', 'wb') as file:\n    for _ in range(100): file.write(bytes({FILE_BYTES}))"
    assert not run_program(huge).passed
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for attack in (
        f"open({str(victim)!r}, 'w')",
        f"open({str(victim)!r})",
        f"import os; os.open({str(victim)!r}, os.O_RDWR)",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, 'mine')",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.symlink({str(victim)!r}, 'link'); open('link', 'w')",
        f"import pathlib; pathlib.Path({str(victim)!r}).unlink()",
        "open('/etc/passwd').read()",
    ):
        assert "PermissionError" in run_program(attack).reason, attack
    assert victim.read_text() == "precious"
    leftover = run_program("import os; os.mkdir('d'); raise ValueError(os.getcwd())").reason.partition(" ")[2]
    assert leftover
    assert not Path(leftover).exists()


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        attempt = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        assert not run_program(attempt).passed
        assert not run_program(f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}', timeout=2)").passed
        with pytest.raises(TimeoutError):
            server.accept()


def test_there_is_no_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SECRET", "s3cret")
    assert run_program("import os; assert 'SECRET' not in os.environ, os.environ").passed
    assert run_program("import os; assert os.listdir('.') == ['program.py']").passed
    assert run_program("import sys; assert sys.stdin.read() == ''").passed


def test_no_descriptor_is_left_open():
    count = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        run_program("pass")
    assert len(os.listdir("/proc/self/fd")) == count


def test_the_tests_stand_behind_the_code():
    assert program_of(DOUBLE, BODY) == f"{PROMPT}{BODY}\n\n{TESTS}\n"
