"""How a command begins and ends."""

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
