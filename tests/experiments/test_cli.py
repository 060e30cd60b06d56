"""How a command begins and ends."""

import os
import subprocess
import sys

from tests.small_run import ROOT


def test_what_was_made_is_not_gone_through_once_more_as_a_command_ends():
    """With Ray and PyTorch that took 0.7 s."""
    code = """
import atexit, gc
from experiments import cli
atexit.register(lambda: print(gc.get_freeze_count() > 1000))  # called after those that are registered later
raise SystemExit(cli.run(lambda argv: 3))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout) == (3, "True\n"), done.stderr


def run_to(stdout, code):
    code = f"import errno, os, sys\nfrom experiments import cli\n{code}\nraise SystemExit(cli.run(main))"
    return subprocess.run([sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                          timeout=60)  # fmt: skip


SPEAK = """
def main(argv):
    for line in range(3):
        print("a line", flush=True)
    print("a last one, still in the buffer at the end")
    return 3
"""


def test_a_command_goes_on_where_its_log_cannot():
    """On a full disk, or with nobody left to read."""
    with open("/dev/full", "w") as full:
        done = run_to(full, SPEAK)
    assert (done.returncode, done.stderr) == (3, "")
    reader, writer = os.pipe()
    os.close(reader)
    done = run_to(writer, SPEAK)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_full_disk_is_for_the_user_to_change():
    done = run_to(subprocess.PIPE, "def main(argv): raise OSError(errno.ENOSPC, 'No space left', '/runs/x')")
    assert (done.returncode, done.stderr) == (
        2, "error: the disk is full at /runs/x\nhint: make room and start the same command again\n")  # fmt: skip
    done = run_to(subprocess.PIPE, "def main(argv): raise OSError(errno.EINVAL, 'Invalid argument')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
